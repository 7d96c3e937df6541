"""Every score of every filter on real clips and on marionettes, each refusal beside it: a table to choose limits by.

    python tests/benchmarks/filter_scores.py CLIP_OR_FOLDER ... [--marionettes 8] [--pose FOLDER] [--seconds 4]

Of each source the first clip, cut as recipe `curate` cuts it (24 frames per second, at least 768x768 covered, at most
`--seconds`). Scores about people need poses. Marionettes have those of `mini/dwpose`, which was trained on marionettes
alone; real clips have scores about people only where `--pose` names DWPose's own weights, and scores of the camera in
any case. A score in brackets is outside its default limit; the sources' size and duration are not judged.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from dynamictrl.errors import MediaError
from dynamictrl.media.video import probe, read_video
from dynamictrl.mini.marionettes import write_marionettes
from dynamictrl.poses.dwpose import PoseEstimator
from dynamictrl.poses.pose import PoseSequence
from pipelines.clip import Clip
from pipelines.files import storage
from pipelines.recipes import Curation, curate, curate_mini
from pipelines.stage import Stage, run_local
from pipelines.stages.cut_clips import CutClips
from pipelines.stages.split_shots import SplitShots

VIDEOS = (".mp4", ".mkv", ".avi", ".mov", ".webm")
PICTURE = ("picture", "light", "life", "sharpness", "framing", "lettering")
PEOPLE = ("person", "whole", "visible", "tracked", "uncut", "motion", "steady", "marks")


def sources(names: list[Path]) -> Iterator[Path]:
    for name in names:
        yield from sorted(p for p in name.iterdir() if p.suffix in VIDEOS) if name.is_dir() else [name]


def clips_of(path: Path, work: Path, cut: CutClips) -> list[Clip]:
    """The first shot's first clip; nothing for a file that cannot be read."""
    try:
        info = probe(path)
        sha = hashlib.sha256(path.read_bytes()).hexdigest()
        source = Clip(source=path.name, source_sha256=sha, path=str(path), work=str(work))
        source = replace(source, width=info.width, height=info.height, fps=info.fps)
        shots = [shot for shot in SplitShots().process(source) if not shot.rejected]
        return [clip for shot in shots[:1] for clip in islice(cut.process(shot), 1)]
    except MediaError as problem:
        print(f"{path.name}: {problem.code}")
        return []


def measured(clip: Clip, stages: list[Stage]) -> tuple[Clip, list[str], float]:
    """All scores, every reason that a filter would give, and CPU seconds per second of clip."""
    reasons, start = [], time.process_time()
    for stage in stages:
        (clip,) = run_local([stage], [clip])
        if clip.rejected:
            reasons.append(clip.rejected)
            clip = replace(clip, rejected="", message="", stage="")
    return clip, reasons, (time.process_time() - start) / max(clip.duration, 1e-6)


def shown(clip: Clip, names: list[str], limits: dict[str, tuple[float, float]]) -> str:
    cells = []
    for name in names:
        value = clip.scores.get(name, float("nan"))
        low, high = limits.get(name, (float("-inf"), float("inf")))
        text = f"{value:.3g}"
        cells.append((text if low <= value <= high else f"({text})").rjust(9))
    return "".join(cells)


def table(title: str, clips: list[Clip], stages: list[Stage]) -> None:
    limits = {score: ends for stage in stages for score, ends in getattr(stage, "limits", {}).items()}
    names: list[str] = []
    rows = []
    for clip in clips:
        result, reasons, cost = measured(clip, stages)
        names = names or [name for name in result.scores if name not in clip.scores]
        rows.append((clip.source[:26], result, reasons, cost))
    print(f"\n{title}\n" + " " * 27 + "".join(name[-8:].rjust(9) for name in names) + "    CPU/s  refused for")
    for name, result, reasons, cost in rows:
        print(f"{name:27}{shown(result, names, limits)}{cost:9.2f}  {', '.join(reasons) or '-'}")


def with_pose(clip: Clip, estimate: PoseEstimator | None) -> Clip:
    pose = estimate(read_video(clip.file("mp4")).frames) if estimate else PoseSequence.empty(clip.frames)
    storage.write_bytes(clip.file("pose.npz"), pose.to_npz())
    return clip.with_file("pose.npz")


def tables(what: str, recipe: Curation, clips: list[Clip], estimate: PoseEstimator | None) -> None:
    if not clips:
        return
    table(f"picture: {what}", clips, [getattr(recipe, name) for name in PICTURE])
    names = PEOPLE if estimate else ("motion", "marks")
    # What the later filters need of the picture is measured again: their table stands alone.
    posed = [next(iter(recipe.picture.process(with_pose(clip, estimate)))) for clip in clips]
    table(f"{'people' if estimate else 'camera'}: {what}", posed, [getattr(recipe, name) for name in names])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="*", type=Path)
    parser.add_argument("--marionettes", type=int, default=8)
    parser.add_argument("--pose", help="DWPose's folder or hub id")
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    full, small = curate(), curate_mini()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, one thread")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        cut = replace(full.cut, longest=options.seconds)
        real = [clip for path in sources(options.videos) for clip in clips_of(path, work, cut)]
        poser = PoseEstimator(options.pose, num_threads=1) if options.pose else None
        tables("real clips, limits of `curate`", full, real, poser)
        videos = write_marionettes(work / "videos", options.marionettes, seed=7) if options.marionettes else []
        drawn = [clip for path in videos for clip in clips_of(path, work, small.cut)]
        tables("marionettes, limits of `curate-mini`", small, drawn, PoseEstimator("mini/dwpose", num_threads=1))


if __name__ == "__main__":
    main()
