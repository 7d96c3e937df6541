"""How many copies are found and how many others are taken for copies; and what it costs over 60,000 clips.

    python tests/benchmarks/duplicates.py [--rooms 16] [--first-room 0] [--clips FOLDER] [--many 60000] [--workers 1]

Labelled: in each room one marionette does four things; each take is encoded as it is and once for every change of the
table. Hard others: takes of one figure in one room, and stretches that follow one another in one take, where exercise
comes round again. The stage's thresholds were chosen on rooms 0 to 165 or seen on those to 215: others are held out.
`--clips` adds the videos of a folder, cut every 4 s: there a stretch is a copy of nothing but its own changes. Recall:
of the changed copies, those refused for a clip of their own original. Precision: of the clips refused, those that were
refused so. The action "dance" is left out: drawn figures repeat it to the frame every 2 s, a loop and found as one.

Many: smooth random movement in random rooms, 8 s each, of which one in a hundred is planted again, cropped or mirrored.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from dynamictrl.media.video import crop_to_even, encode_video, read_video
from dynamictrl.media.video_copies import candidates
from dynamictrl.media.video_groups import find_copies
from dynamictrl.media.video_hash import RATE, WAVES, VideoHash, hash_video
from dynamictrl.media.video_likeness import MIRROR, cropped
from dynamictrl.mini.marionettes import MarionetteScene
from pipelines.stages.drop_duplicates import REPEATED, DropDuplicates

Frames = NDArray[np.uint8]
FPS = 24.0
ACTIONS = ("walk", "squat", "stretch", "box", "kick", "wave", "turn", "jumping_jacks", "talk", "bow", "clap")


def resized(frames: Frames, scale: float) -> Frames:
    size = (round(frames.shape[2] * scale), round(frames.shape[1] * scale))
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames])


def edges(frames: Frames, top: float, bottom: float, left: float, right: float) -> Frames:
    height, width = frames.shape[1:3]
    return frames[
        :, round(top * height) : round((1 - bottom) * height), round(left * width) : round((1 - right) * width)
    ]


def changes(frames: Frames) -> Iterator[tuple[str, Frames, float, int]]:
    """(name, frames, frames a second, x264 quality)"""
    height, width = frames.shape[1:3]
    third = len(frames) // 6
    yield "re-encoded, crf 35", frames, FPS, 35
    yield "scaled to 60 %", resized(frames, 0.6), FPS, 23
    yield "10 % cropped, centre", edges(frames, 0.05, 0.05, 0.05, 0.05), FPS, 23
    yield "10 % cropped, one corner", edges(frames, 0, 0.1, 0, 0.1), FPS, 23
    yield "10 % of each edge cropped", edges(frames, 0.1, 0.1, 0.1, 0.1), FPS, 23
    yield "mirrored", frames[:, :, ::-1], FPS, 23
    yield "24 to 15 frames/s", frames[np.arange(0, len(frames), 1.6).astype(int)], 15.0, 23
    yield "brighter, more contrast", np.clip(frames * 1.12 + 8, 0, 255).astype(np.uint8), FPS, 23
    yield "colours warmer", np.clip(frames * np.array([1.12, 1.0, 0.88]), 0, 255).astype(np.uint8), FPS, 23
    yield "letterboxed", np.pad(frames, ((0, 0), (height // 8,) * 2, (0, 0), (0, 0))), FPS, 23
    yield "pillarboxed", np.pad(frames, ((0, 0), (0, 0), (width // 3,) * 2, (0, 0))), FPS, 23
    yield "cut 0.4 s later", frames[10:], FPS, 23
    yield "a sixth cut off both ends", frames[third:-third], FPS, 23
    yield "mirrored, centre crop, crf 30", edges(frames, 0.05, 0.05, 0.05, 0.05)[:, :, ::-1], FPS, 30


@dataclass(frozen=True)
class Take:
    """Four seconds of a source."""

    name: str
    source: str
    room: str
    frames: Frames


def takes_of_room(room: int) -> Iterator[Take]:
    for number in range(4):
        action = ACTIONS[(3 * room + number) % len(ACTIONS)]
        scene = MarionetteScene(room, 100 + 7 * room + number, room, action=action, close_up=False)
        frames = scene.render(192 if number == 0 else 96, 192, 144, FPS, supersampling=1).frames
        for begin in range(0, len(frames), 96):
            name = f"figure {room} {action}"
            yield Take(f"{name} {begin}", name, f"figure {room}", frames[begin : begin + 96])


def takes_of_video(path: Path) -> Iterator[Take]:
    frames = read_video(path, fps=FPS, max_pixels=192 * 192, partial=True, num_frames=1440).frames
    for begin in range(0, len(frames) - 60, 96):
        yield Take(f"{path.stem} {begin}", path.stem, path.stem, frames[begin : begin + 96])


def versions(source: int | Path) -> list[tuple[Take, str, VideoHash]]:
    """The takes of a room or a video, each as it is (under the name "") and changed."""
    found = []
    for take in takes_of_room(source) if isinstance(source, int) else takes_of_video(source):
        original, shown = hashed(take.frames), replace(take, frames=take.frames[:0])
        if (np.abs(original.steps_TK).astype(float) * original.step_K).mean() < 0.05:
            print(f"{take.name}: nothing moves, left out", flush=True)
            continue
        changed = ((name, hashed(frames, fps, crf)) for name, frames, fps, crf in changes(take.frames))
        found += [(shown, name, video) for name, video in [("", original), *changed]]
    return found


def hashed(frames: Frames, fps: float = FPS, crf: int = 20) -> VideoHash:
    return hash_video(encode_video(crop_to_even(np.ascontiguousarray(frames)), fps, crf=crf))


def labelled(sources: list[int | Path], workers: int) -> None:
    stage = DropDuplicates()
    with ProcessPoolExecutor(workers) as pool:
        found = [one for part in pool.map(versions, sources) for one in part]
    hashes = [video for _, _, video in found]
    labels = [(take, name) for take, name, _ in found]

    def enough(a: int, b: int) -> float:
        one_source = (labels[a][0].source, labels[a][1]) == (labels[b][0].source, labels[b][1])
        return max(stage.similarity, REPEATED) if one_source else stage.similarity

    began = time.process_time()
    copies = find_copies(hashes, lambda place: (bool(labels[place][1]), place), enough, overlap=stage.overlap)
    seconds = time.process_time() - began
    made = Counter(name for _, name in labels if name)
    right = [copy for copy in copies if labels[copy.video][0].name == labels[copy.keeper][0].name]
    hits = Counter(labels[copy.video][1] for copy in right)
    takes_of = Counter(take.room for take, name in labels if not name)
    print(f"\n{sum(takes_of.values())} originals, {len(hashes)} clips, {seconds:.1f} CPU s to search and compare\n")
    print("| change | recall |\n|---|---|")
    for name in made:
        print(f"| {name} | {hits[name] / made[name]:.1%} ({hits[name]} of {made[name]}) |")
    print(f"| all | {sum(hits.values()) / sum(made.values()):.2%} |")
    print(f"\nprecision {len(right) / max(1, len(copies)):.2%} ({len(right)} of {len(copies)} clips refused)")
    others = sum(n * (n - 1) // 2 for n in takes_of.values())
    lost = [copy for copy in copies if not labels[copy.video][1]]
    print(f"{others} pairs of other takes in one room or stretches of one take; originals lost: {len(lost)}")
    for copy in lost:
        print(f"  {labels[copy.video][0].name} for {labels[copy.keeper][0].name}, {copy.likeness.similarity:.2f}")


def smooth(rng: np.random.Generator, samples: int) -> NDArray[np.float32]:
    """Movement of a few frequencies up to 2 Hz, before a picture of its own."""
    noise = rng.normal(size=(samples + 16, len(WAVES)))
    kernel = np.hanning(rng.integers(4, 10))
    moved = np.stack([np.convolve(noise[:, k], kernel, mode="same") for k in range(len(WAVES))], axis=1)[8:-8]
    order = 1 + np.array([y + x for y, x in WAVES])
    return (moved * rng.uniform(0.3, 1.0) + rng.normal(size=len(WAVES)) * 25 / order).astype(np.float32)


def many(count: int) -> None:
    rng = np.random.default_rng(0)
    samples = round(8 * RATE)
    levels = [smooth(rng, samples) for _ in range(count)]
    planted = {}
    for number in range(count // 100):
        kind = ("cropped", "mirrored", "later")[number % 3]
        source = levels[number]
        changed = {
            "cropped": lambda s: cropped(s, (0.05, 0.05), (0.05, 0.05)),
            "mirrored": lambda s: s * MIRROR,
            "later": lambda s: s[12:],
        }[kind](source)
        planted[len(levels)] = number
        levels.append(changed + rng.normal(scale=0.05, size=changed.shape).astype(np.float32))
    hashes = [VideoHash.of_levels(one) for one in levels]
    del levels
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    wall = time.perf_counter()
    pairs = candidates(hashes)
    searched = time.perf_counter() - wall
    wall, cpu = time.perf_counter(), time.process_time()
    copies = find_copies(hashes, lambda place: place, lambda _, __: 0.83, overlap=0.5)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    right = sum(planted.get(copy.video) == copy.keeper for copy in copies)
    print(f"\n{len(hashes)} clips of 8 s: {len(pairs)} candidates in {searched:.0f} s")
    print(f"search, comparison and choice: {wall:.0f} s, {cpu:.0f} CPU s; {peak:.2f} GiB at most, {before:.2f} before")
    print(f"{right} of {len(planted)} planted ones found, {len(copies) - right} others")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", type=int, default=16)
    parser.add_argument("--first-room", type=int, default=0)
    parser.add_argument("--clips", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--many", type=int, default=60_000)
    given = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    rooms: list[int | Path] = list(range(given.first_room, given.first_room + given.rooms))
    if sources := rooms + (sorted(given.clips.iterdir()) if given.clips else []):
        labelled(sources, given.workers)
    if given.many:
        many(given.many)


if __name__ == "__main__":
    main()
