"""Training data of the mini family: marionettes drawn by worker processes into one pool of files that trainers map.

    python -m dynamictrl.mini.stream --out POOL --count 8000 --workers 14 --seed 7

A trainer may start while the pool still fills. Clip i of seed s is always the same clip.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HEIGHT, WIDTH, NUM_FRAMES, FPS = 192, 128, 25, 12
"""As in `mini/models.py`, repeated so that a drawing worker need not import torch; a test holds them equal."""
TEXT_BYTES = 2048
PERSON, CLOTHES = 0x7F, 0x80
"""The bits of `Example.masks` that number persons, and the one that marks clothes."""
HELD_OUT_SEED = 900_001
"""Clips of this seed are for measuring; no trainer draws them."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Example:
    """One clip as a trainer sees it."""

    video: NDArray[np.uint8]
    """[F, H, W, 3] RGB."""
    pose: NDArray[np.uint8]
    """[F, H, W, 3]: its pose, drawn on black."""
    masks: NDArray[np.uint8]
    """[F, H, W]: the person's number in the low bits (0 nobody, then 1, 2), CLOTHES where clothes are."""
    caption: str
    attributes: dict[str, Any]


def draw_example(seed: int, index: int) -> Example:
    """Marionette number `index` of a seed, at the mini family's size and rate."""
    from dynamictrl.mini.marionettes import sample_clip
    from dynamictrl.poses.pose_drawing import draw_pose

    clip = sample_clip(np.random.default_rng([seed, index]), NUM_FRAMES, HEIGHT, WIDTH, FPS)
    masks = clip.persons | np.where(clip.clothes > 0, np.uint8(CLOTHES), np.uint8(0))
    return Example(clip.frames, draw_pose(clip.pose, HEIGHT, WIDTH), masks, clip.caption, clip.attributes)


class Pool:
    """A folder of memory-mapped clips, filled by workers in any order. `ready` says which are complete."""

    def __init__(self, folder: Path, count: int | None = None):
        """Opens a pool, or creates one of `count` clips."""
        self.folder = folder
        size_file = folder / "pool.json"
        if count is not None:
            folder.mkdir(parents=True, exist_ok=True)
            size_file.write_text(json.dumps({"count": count}))
        self.count: int = json.loads(size_file.read_text())["count"]
        mode = "w+" if count is not None else "r+"
        shape = (self.count, NUM_FRAMES, HEIGHT, WIDTH, 3)
        self.video = np.memmap(folder / "video.u8", np.uint8, mode, shape=shape)
        self.pose = np.memmap(folder / "pose.u8", np.uint8, mode, shape=shape)
        self.masks = np.memmap(folder / "masks.u8", np.uint8, mode, shape=shape[:-1])
        self._text = np.memmap(folder / "text.u8", np.uint8, mode, shape=(self.count, TEXT_BYTES))
        self._ready = np.memmap(folder / "ready.u8", np.uint8, mode, shape=(self.count,))

    def ready(self) -> NDArray[np.int64]:
        """Indices of the complete clips."""
        return np.flatnonzero(self._ready)

    def complete(self) -> int:
        """How many clips from the front are complete: workers fill in step, so that is nearly all there are."""
        ready = self.ready()
        gaps = np.flatnonzero(ready != np.arange(len(ready)))
        return int(gaps[0]) if len(gaps) else len(ready)

    def write(self, index: int, example: Example) -> None:
        """Stores a clip and then declares it complete."""
        self.video[index], self.pose[index], self.masks[index] = example.video, example.pose, example.masks
        text = json.dumps({"caption": example.caption, "attributes": example.attributes}).encode("ascii")
        self._text[index, : len(text)] = np.frombuffer(text, np.uint8)
        self._ready[index] = 1

    def caption(self, index: int) -> str:
        """What a complete clip shows, in words."""
        return self._said(index)["caption"]

    def attributes(self, index: int) -> dict[str, Any]:
        """What a complete clip shows, by name: `marionettes.caption.attributes_of`."""
        return self._said(index)["attributes"]

    def _said(self, index: int) -> dict[str, Any]:
        return json.loads(bytes(self._text[index]).rstrip(b"\0"))


def _fill(folder: Path, indices: Iterable[int], seed: int, draw: Callable[[int, int], Example]) -> None:
    pool = Pool(folder)
    for index in indices:
        pool.write(index, draw(seed, index))


def render(
    folder: Path, count: int, *, workers: int, seed: int, draw: Callable[[int, int], Example] = draw_example
) -> list[multiprocessing.process.BaseProcess]:
    """Creates the pool and starts drawing into it; returns the running processes.

    Worker w draws clips w, w + workers, ..., so the pool fills evenly from the front.
    """
    Pool(folder, count)
    context = multiprocessing.get_context("spawn")
    processes = []
    for worker in range(workers):
        process = context.Process(target=_fill, args=(folder, range(worker, count, workers), seed, draw), daemon=True)
        process.start()
        processes.append(process)
    return processes


def main() -> None:
    """Draws a whole pool and waits for it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=8000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    processes = render(options.out, options.count, workers=options.workers, seed=options.seed)
    for process in processes:
        process.join()
    failed = [process.exitcode for process in processes if process.exitcode]
    logger.info("%d clips are ready", len(Pool(options.out).ready()))
    if failed:
        raise SystemExit(f"{len(failed)} workers failed")


if __name__ == "__main__":
    main()
