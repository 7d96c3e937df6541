"""An endless, seeded stream of marionette frames for training the mini detector and the mini pose model.

Shape suffixes: N frames, P persons (2), J joints (133, COCO-WholeBody order as the models give them).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from dynamictrl.dwpose import JOINTS_OF_LAYOUT
from dynamictrl.mini.marionettes import MarionetteClip, sample_clip
from dynamictrl.mini.marionettes.scene import PLACES, paint_place

SIZES = ((192, 128), (192, 128), (256, 256), (384, 216), (216, 384), (320, 240), (384, 256), (448, 256), (270, 480))
PERSONS = 2
_FRAMES_PER_SCENE = 6
_FPS = 2.5
"""Far apart, so that the frames of one scene differ."""

Batch = dict[str, NDArray[Any]]


def joints_133(values_J: NDArray[np.float32]) -> NDArray[np.float32]:
    """134-layout values [..., 134, *] in the models' order [..., 133, *]: the neck left out."""
    return values_J[:, :, JOINTS_OF_LAYOUT]


def render_batch(rng: np.random.Generator, scenes: int, empty_share: float = 0.0) -> Batch:
    """Frames of several scenes at one size, keypoints and boxes in pixels; absent persons have boxes of zeros."""
    height, width = SIZES[int(rng.integers(len(SIZES)))]
    clips = [_scene(rng, height, width, empty_share) for _ in range(scenes)]
    size = np.array([width, height], np.float32)
    return {
        "frames": np.concatenate([clip["frames"] for clip in clips]),
        "keypoints": np.concatenate([clip["keypoints"] for clip in clips]) * size,
        "scores": np.concatenate([clip["scores"] for clip in clips]),
        "boxes": np.concatenate([clip["boxes"] for clip in clips]) * np.tile(size, 2),
    }


def _scene(rng: np.random.Generator, height: int, width: int, empty_share: float) -> Batch:
    if rng.uniform() < empty_share:
        return _nobody(rng, height, width)
    detail = 1 if rng.uniform() < 0.5 else 2
    clip = sample_clip(rng, _FRAMES_PER_SCENE, height, width, _FPS, supersampling=detail)
    return {"frames": clip.frames, **_padded(clip)}


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
        place = paint_place(rng, str(rng.choice(sorted(PLACES))), height, width, 1.0)
        pictures = [_view(rng, place, height, width) for _ in range(count)]
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
    return np.asarray(view[:, ::-1] if rng.uniform() < 0.5 else view, np.float32)


class MarionetteStream(IterableDataset[Batch]):
    """Endless batches; worker k of a run draws its own part of the seed's stream."""

    def __init__(self, seed: int, scenes: int, empty_share: float = 0.0):
        super().__init__()
        self.seed, self.scenes, self.empty_share = seed, scenes, empty_share

    def __iter__(self) -> Iterator[Batch]:
        cv2.setNumThreads(1)
        info = get_worker_info()
        worker = info.id if info else 0
        step = 0
        while True:
            rng = np.random.default_rng([self.seed, worker, step])
            yield render_batch(rng, self.scenes, self.empty_share)
            step += 1


def stream(seed: int, scenes: int, workers: int, empty_share: float = 0.0) -> Iterator[dict[str, Any]]:
    """Batches as torch tensors, rendered by `workers` processes."""
    data = MarionetteStream(seed, scenes, empty_share)
    return iter(
        DataLoader(data, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None, pin_memory=False)
    )
