"""Writes marionette videos with cuts between shots, and their truth beside them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dynamictrl.errors import ConfigError
from dynamictrl.poses.pose import NUM_KEYPOINTS, PoseSequence

if TYPE_CHECKING:
    from dynamictrl.mini.marionettes.clip import MarionetteClip

SIZES = ((448, 256), (640, 360), (360, 640), (480, 480), (512, 288), (288, 512))
"""Height and width of the videos."""
RATES = (12, 15, 20, 24, 25, 30)
SHOT_SECONDS = (2.4, 4.4)


def write_marionettes(
    out: Path, count: int, seed: int, *, progress: Callable[[int, int], None] | None = None
) -> list[Path]:
    """Writes `count` videos `marionette-0000.mp4` and so on; the same seed gives the same bytes.

    Beside each: `.json` (seed, fps, and for each shot its seconds, caption, attributes; what the side-car captioner
    reads) and `.truth.npz` (keypoints, scores, boxes, track ids as `PoseSequence`, and the masks `persons`, `clothes`
    [F, H, W]). Each person of each shot has a track of its own. `progress` is called with (done, count).
    Raises ConfigError for a count below 1.
    """
    if count < 1:
        raise ConfigError(f"count is {count}; at least 1 video can be written", param="count")
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for index in range(count):
        written.append(_write_one(out / f"marionette-{index:04d}.mp4", seed, index))
        if progress:
            progress(index + 1, count)
    return written


def _write_one(path: Path, seed: int, index: int) -> Path:
    from dynamictrl.media.video import write_video

    rng = np.random.default_rng([seed, index])
    # The sizes take turns so that even a few videos show several.
    height, width = SIZES[(index + int(np.random.default_rng(seed).integers(len(SIZES)))) % len(SIZES)]
    fps = int(rng.choice(RATES))
    shots = [_shot(rng, height, width, fps) for _ in range(int(rng.integers(1, 4)))]
    write_video(path, np.concatenate([shot.frames for shot in shots]), fps)
    path.with_suffix(".truth.npz").write_bytes(_truth(shots))
    path.with_suffix(".json").write_text(json.dumps(_side_car(shots, seed, fps), indent=2) + "\n", encoding="utf-8")
    return path


def _shot(rng: np.random.Generator, height: int, width: int, fps: int) -> MarionetteClip:
    from dynamictrl.mini.marionettes.clip import sample_clip

    frames = round(float(rng.uniform(*SHOT_SECONDS)) * fps)
    return sample_clip(rng, frames, height, width, fps)


def _side_car(shots: list[MarionetteClip], seed: int, fps: int) -> dict[str, Any]:
    listed, start = [], 0
    for shot in shots:
        end = start + len(shot.frames)
        seconds = {"start": round(start / fps, 6), "end": round(end / fps, 6)}
        listed.append({**seconds, "caption": shot.caption, "attributes": shot.attributes})
        start = end
    return {"generator": "marionettes", "seed": seed, "fps": fps, "shots": listed}


def _truth(shots: list[MarionetteClip]) -> bytes:
    frames, people = sum(len(s.frames) for s in shots), sum(s.pose.num_persons for s in shots)
    pose = PoseSequence(
        np.zeros((frames, people, NUM_KEYPOINTS, 2), np.float32),
        np.zeros((frames, people, NUM_KEYPOINTS), np.float32),
        np.zeros((frames, people, 4), np.float32),
        np.arange(1, people + 1, dtype=np.int32),
    )
    masks, frame, person = [], 0, 0
    for shot in shots:
        there = (slice(frame, frame + len(shot.frames)), slice(person, person + shot.pose.num_persons))
        pose.keypoints[there], pose.scores[there] = shot.pose.keypoints, shot.pose.scores
        pose.boxes[there] = shot.pose.boxes
        masks.append(np.where(shot.persons > 0, shot.persons + person, 0).astype(np.uint8))
        frame, person = there[0].stop, there[1].stop
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        keypoints=pose.keypoints,
        scores=pose.scores,
        boxes=pose.boxes,
        track_ids=pose.track_ids,
        persons=np.concatenate(masks),
        clothes=np.concatenate([s.clothes for s in shots]),
    )
    return buffer.getvalue()
