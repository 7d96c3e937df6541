"""Measures a mask tracker on held-out marionettes as curation uses it, with exact poses and with found ones.

    python -m dynamictrl.mini.tracker.evaluate --model mini/tracker --clips 60 --poses truth mini/dwpose --out DIR

`--model skeleton-seeded` measures the tracker without weights. Writes `evaluated.json` and a sheet of overlays.

Shape suffixes: F frames, P persons, H W pixels.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dynamictrl.masks.mask_tracking import SkeletonMaskTracker
from dynamictrl.masks.sam_tracking import Sam2MaskTracker
from dynamictrl.mini.tracker.held_out import held_out_clip

if TYPE_CHECKING:
    from dynamictrl.mini.marionettes import MarionetteClip
    from dynamictrl.poses.dwpose import PoseEstimator

logger = logging.getLogger(__name__)
Labels = NDArray[np.uint8]


@dataclass(frozen=True)
class Measured:
    """One clip."""

    overlaps_PF: list[list[float]]
    """IoU of every true person in every frame in which it or its mask is."""
    seconds: float


def overlaps(found_FHW: Labels, true_FHW: Labels) -> list[list[float]]:
    """Per true person the IoU in each frame; labels are matched over the whole clip, since poses come in any order.

    Frames in which neither person nor mask is are left out; a person without any mask has zeros.
    """
    from scipy.optimize import linear_sum_assignment

    persons, labels = int(true_FHW.max()), max(int(found_FHW.max()), 1)
    table = np.full((persons, max(labels, persons), len(true_FHW)), np.nan)
    for person in range(persons):
        true = true_FHW == person + 1
        for label in range(table.shape[1]):
            found = found_FHW == label + 1
            union = (found | true).sum(axis=(1, 2))
            table[person, label, union > 0] = ((found & true).sum(axis=(1, 2)) / np.maximum(union, 1))[union > 0]
    rows, columns = linear_sum_assignment(-np.nanmean(table, axis=2))
    return [
        table[row, column][~np.isnan(table[row, column])].tolist() for row, column in zip(rows, columns, strict=True)
    ]


def measure(
    tracker: Sam2MaskTracker | SkeletonMaskTracker, clip: MarionetteClip, estimator: PoseEstimator | None
) -> tuple[Measured, Labels]:
    """One clip's overlaps and masks; poses are the true ones where no estimator is given."""
    pose = clip.pose if estimator is None else estimator(clip.frames)
    start = time.monotonic()
    found = tracker(clip.frames, pose)
    return Measured(overlaps(found, clip.persons), time.monotonic() - start), found


def summary(clips: list[Measured]) -> dict[str, Any]:
    """Mean IoU over all persons and frames, over clips of one and of two persons, and how the poor ones fare."""
    persons = [np.mean(person) for clip in clips for person in clip.overlaps_PF]
    said: dict[str, Any] = {"clips": len(clips), "persons": len(persons), "mean_iou": _mean(clips)}
    for count in (1, 2):
        of_count = [clip for clip in clips if len(clip.overlaps_PF) == count]
        if of_count:
            said[f"mean_iou_{count}_persons"] = _mean(of_count)
    said["tenth_percentile_of_persons"] = round(float(np.percentile(persons, 10)), 4)
    said["worst_person"] = round(float(min(persons)), 4)
    said["seconds_per_clip"] = round(float(np.mean([clip.seconds for clip in clips])), 2)
    return said


def _mean(clips: list[Measured]) -> float:
    return round(float(np.mean([value for clip in clips for person in clip.overlaps_PF for value in person])), 4)


def overlay(clip: MarionetteClip, found_FHW: Labels, every: int = 6) -> NDArray[np.uint8]:
    """Some frames side by side, true outlines in white, found masks in colour."""
    row = []
    for frame, true, found in zip(clip.frames[::every], clip.persons[::every], found_FHW[::every], strict=True):
        picture = frame.copy()
        for label, colour in ((1, (255, 0, 0)), (2, (0, 90, 255)), (3, (0, 255, 0))):
            inside = found == label
            picture[inside] = picture[inside] // 2 + np.array(colour, np.uint8) // 2
            outline, _ = cv2.findContours((true == label).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(picture, outline, -1, (255, 255, 255), 1)
        row.append(picture)
    return np.concatenate(row, axis=1)


def _tracker(name: str, device: str) -> Sam2MaskTracker | SkeletonMaskTracker:
    return SkeletonMaskTracker() if name == SkeletonMaskTracker.model_id else Sam2MaskTracker(name, device)


def _estimator(name: str) -> PoseEstimator | None:
    from dynamictrl.poses.dwpose import PoseEstimator

    return None if name == "truth" else PoseEstimator(name, provider="cpu")


def main() -> None:
    """Measures with every source of poses; the sheet shows the worst clips first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="mini/tracker", help="folder, mini/tracker or skeleton-seeded")
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--poses", nargs="+", default=["truth"], help="truth, or a pose model's folder")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    tracker, measured = _tracker(options.model, options.device), {}
    options.out.mkdir(parents=True, exist_ok=True)
    for source in options.poses:
        estimator, clips, sheet = _estimator(source), [], []
        for index in range(options.clips):
            clip = held_out_clip(index)
            one, found = measure(tracker, clip, estimator)
            clips.append(one)
            sheet.append((min(np.mean(person) for person in one.overlaps_PF), overlay(clip, found)))
        measured[source] = summary(clips)
        logger.info("%s, poses %s: %s", options.model, source, measured[source])
        worst = [picture for _, picture in sorted(sheet, key=lambda pair: pair[0])[:10]]
        name = f"worst-{source.replace('/', '-')}.png"
        cv2.imwrite(str(options.out / name), cv2.cvtColor(np.concatenate(worst), cv2.COLOR_RGB2BGR))
    (options.out / "evaluated.json").write_text(json.dumps({"model": options.model, **measured}, indent=1))


if __name__ == "__main__":
    main()
