"""Marionettes as the video model sees them, for measuring the detector and the pose model, and pictures of nobody.

Shape suffixes: N frames, P persons (2), J joints (133, COCO-WholeBody order as the models give them).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from dynamictrl.mini.marionettes import MarionetteClip, sample_clip
from dynamictrl.mini.marionettes.scene import PLACES, choose_place, paint_place
from dynamictrl.poses.dwpose_pictures import JOINTS_OF_LAYOUT

SIZES = ((192, 128), (192, 128), (256, 256), (384, 216), (216, 384), (320, 240), (384, 256), (448, 256), (270, 480))
PERSONS = 2
HELD_OUT_SEED = 990_001
"""No trainer draws from this seed."""
_FRAMES_PER_SCENE = 6
_FPS = 2.5
"""Far apart, so that the frames of one scene differ."""

Batch = dict[str, NDArray[Any]]


def joints_133(values_J: NDArray[Any]) -> NDArray[Any]:
    """134-layout values [N, P, 134, *] in the models' order [N, P, 133, *]: the neck left out."""
    return values_J[:, :, JOINTS_OF_LAYOUT]


def scene(seed: int, index: int, *, empty: bool = False) -> Batch:
    """Frames of one scene, keypoints and boxes in pixels; absent persons have boxes of zeros.

    `frames` [N, H, W, 3], `keypoints` [N, P, J, 2], `scores` [N, P, J], `boxes` [N, P, 4].
    """
    rng = np.random.default_rng([seed, index, int(empty)])
    height, width = SIZES[int(rng.integers(len(SIZES)))]
    if empty:
        return _nobody(rng, height, width)
    detail = 1 if rng.uniform() < 0.5 else 2
    clip = sample_clip(rng, _FRAMES_PER_SCENE, height, width, _FPS, supersampling=detail)
    size = np.array([width, height], np.float32)
    truth = _padded(clip)
    return {
        "frames": clip.frames,
        "keypoints": truth["keypoints"] * size,
        "scores": truth["scores"],
        "boxes": truth["boxes"] * np.tile(size, 2),
    }


def small_scene(seed: int, index: int) -> Batch:
    """Frames in which one person, cut out of another shot, is 8 to 30 percent of the frame high; as `scene`."""
    rng = np.random.default_rng([seed, index, 2])
    height, width = SIZES[int(rng.integers(len(SIZES)))]
    clip = sample_clip(rng, 4, 288, 288, _FPS, persons=1, supersampling=1)
    place = choose_place(rng, str(rng.choice(sorted(PLACES))))
    canvas = paint_place(rng, place, height, width, 1.0)
    frames, boxes = [], np.zeros((4, PERSONS, 4), np.float32)
    for frame, persons in enumerate(clip.persons):
        view = _view(rng, canvas, height, width)
        rows, columns = np.flatnonzero(persons.any(axis=1)), np.flatnonzero(persons.any(axis=0))
        cut = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        high = round(rng.uniform(0.08, 0.3) * height)
        wide = min(max(round(high * len(columns) / len(rows)), 1), width)
        top, left = int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1))
        mask = cv2.resize(persons[cut].astype(np.float32), (wide, high), interpolation=cv2.INTER_AREA)[..., None]
        paint = cv2.resize(clip.frames[frame][cut].astype(np.float32), (wide, high), interpolation=cv2.INTER_AREA)
        spot = view[top : top + high, left : left + wide]
        spot[:] = spot + np.minimum(mask, 1) * (paint - spot)
        frames.append(np.clip(view, 0, 255).astype(np.uint8))
        boxes[frame, 0] = left, top, left + wide, top + high
    return {"frames": np.stack(frames), "boxes": boxes}


def _padded(clip: MarionetteClip) -> Batch:
    count = clip.pose.num_persons
    gap = PERSONS - count
    keypoints = np.pad(joints_133(clip.pose.keypoints), ((0, 0), (0, gap), (0, 0), (0, 0)))
    scores = np.pad(joints_133(clip.pose.scores), ((0, 0), (0, gap), (0, 0)))
    return {"keypoints": keypoints, "scores": scores, "boxes": np.pad(clip.pose.boxes, ((0, 0), (0, gap), (0, 0)))}


def _nobody(rng: np.random.Generator, height: int, width: int) -> Batch:
    """Views of a place without people, or flat and blotchy pictures."""
    count = 4
    if rng.uniform() < 0.7:
        # Every kind of place as often as the next.
        place = choose_place(rng, str(rng.choice(sorted(PLACES))))
        canvas = paint_place(rng, place, height, width, 1.0)
        pictures = [_view(rng, canvas, height, width) for _ in range(count)]
    else:
        cells = rng.integers(1, 24, (count, 2))
        blotches = [rng.uniform(0, 255, (*cell, 3)).astype(np.float32) for cell in cells]
        pictures = [cv2.resize(blotch, (width, height), interpolation=cv2.INTER_CUBIC) for blotch in blotches]
    frames = np.clip(np.stack(pictures), 0, 255).astype(np.uint8)
    return {
        "frames": frames,
        "keypoints": np.zeros((count, PERSONS, 133, 2), np.float32),
        "scores": np.zeros((count, PERSONS, 133), np.float32),
        "boxes": np.zeros((count, PERSONS, 4), np.float32),
    }


def _view(rng: np.random.Generator, place: NDArray[np.uint8], height: int, width: int) -> NDArray[np.float32]:
    """A random part of a painted place at the frame's size."""
    share = rng.uniform(0.4, 1.0)
    high, wide = round(share * place.shape[0]), round(share * place.shape[1])
    top, left = int(rng.integers(place.shape[0] - high + 1)), int(rng.integers(place.shape[1] - wide + 1))
    part = place[top : top + high, left : left + wide]
    view = cv2.resize(part, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.array(view[:, ::-1] if rng.uniform() < 0.5 else view, np.float32)


class _Scenes(Dataset[Batch]):
    def __init__(self, seed: int, counts: tuple[int, int, int]):
        self.seed, self.counts = seed, counts

    def __len__(self) -> int:
        return sum(self.counts)

    def __getitem__(self, index: int) -> Batch:
        cv2.setNumThreads(1)
        people, empty, _ = self.counts
        if index < people:
            return scene(self.seed, index)
        if index < people + empty:
            return scene(self.seed, index - people, empty=True)
        return small_scene(self.seed, index - people - empty)


def _as_drawn(batch: Any) -> Any:  # noqa: ANN401 (what a DataLoader asks for)
    return batch


@dataclass(frozen=True)
class HeldOut:
    """Scenes to measure on."""

    people: list[Batch]
    """One or two marionettes, whole or cut off, in clips as the video model's."""
    empty: list[Batch]
    small: list[Batch]

    def first(self, count: int) -> HeldOut:
        """At most `count` scenes of each kind."""
        return HeldOut(self.people[:count], self.empty[:count], self.small[:count])


def held_out_scenes(
    people: int, empty: int = 0, small: int = 0, workers: int = 0, seed: int = HELD_OUT_SEED
) -> HeldOut:
    """So many scenes of each kind, drawn by `workers` processes."""
    scenes = _Scenes(seed, (people, empty, small))
    # Left as numpy arrays, which a DataLoader would otherwise turn into tensors.
    drawn = list(DataLoader(scenes, batch_size=None, num_workers=workers, collate_fn=_as_drawn))
    return HeldOut(drawn[:people], drawn[people : people + empty], drawn[people + empty :])
