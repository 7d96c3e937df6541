"""What the pose benchmark runs over, and how far two runners' joints lie apart."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamictrl.mini.marionettes import MarionetteScene
from dynamictrl.poses.dwpose_pictures import CROP_HEIGHT, CROP_WIDTH, JOINTS_OF_LAYOUT
from dynamictrl.poses.pose import VISIBLE, PoseSequence

HEIGHT, WIDTH, FPS = 720, 1280, 12.0
DRAWN = 12
"""Different pictures a clip; they are gone through forwards and backwards."""
Image = NDArray[np.uint8]
Clips = list[list[Image]]
People = list[list[list[tuple[Any, ...]]]]
"""By clip, frame and person: 133 joints in pixels of the frame, their scores, of ours also a crop pixel's size."""


def draw_clips(frames: int) -> Clips:
    """Three clips, of one, two and three persons."""

    def scene(seed: int, persons: int, width: int) -> Image:
        shot = MarionetteScene(seed, seed + 5, seed + 2, persons=persons, close_up=False)
        return shot.render(DRAWN, HEIGHT, width, FPS, supersampling=1).frames

    three = np.concatenate([scene(4, 2, 832), scene(9, 1, WIDTH - 832)], axis=2)
    there_and_back = [*range(DRAWN), *range(DRAWN - 2, 0, -1)]
    each = max(frames // 3, 1)
    drawn = (scene(1, 1, WIDTH), scene(2, 2, WIDTH), three)
    return [[clip[there_and_back[k % len(there_and_back)]] for k in range(each)] for clip in drawn]


def people_of(clips: list[PoseSequence]) -> People:
    """Ours, in the models' 133 joints and in pixels."""
    return [[_people(pose, frame) for frame in range(pose.num_frames)] for pose in clips]


def _people(pose: PoseSequence, frame: int) -> list[tuple[Any, ...]]:
    there = [person for person in range(pose.num_persons) if pose.scores[frame, person].any()]
    points, scores = (each[frame][:, JOINTS_OF_LAYOUT] for each in (pose.keypoints * (WIDTH, HEIGHT), pose.scores))
    return [(points[p], scores[p], crop_px(pose.boxes[frame, p])) for p in there]


def crop_px(box: NDArray[Any]) -> float:
    """Pixels of the frame that one pixel of a person's crop is; crops are a quarter larger than boxes."""
    sides = (box[2:] - box[:2]) * (WIDTH, HEIGHT) * 1.25
    return float(max(sides[0] / CROP_WIDTH, sides[1] / CROP_HEIGHT))


def compare(ones: People, others: People) -> dict[str, float | None]:
    """How far joints lie apart, in pixels of the frame, of persons that both found."""
    away, bins, missed = [], [], 0
    for one, other in ((a, b) for x, y in zip(ones, others, strict=True) for a, b in zip(x, y, strict=True)):
        for points, *_ in one:
            near = min(other, key=lambda who, p=points: np.median(np.linalg.norm(who[0] - p, axis=-1)), default=None)
            far = np.linalg.norm(near[0] - points, axis=-1) if near else np.array([np.inf])
            if near is None or np.median(far) > 5:
                missed += 1
            else:
                seen = near[1] > VISIBLE
                away.append(far[seen])
                # Two bins a pixel of the crop, on either axis.
                if len(near) > 2:
                    bins.append(np.abs(near[0] - points).max(axis=-1)[seen] * 2 / near[2])
    joints = np.concatenate(away)
    return {
        "persons": len(away),
        "persons_not_in_both": missed,
        "joints": len(joints),
        "largest_px": float(joints.max()),
        "beyond_half_px": int((joints > 0.5).sum()),
        "share_within_half_px": float((joints <= 0.5).mean()),
        "share_equal": float((joints < 0.01).mean()),
        "share_within_one_bin": float((np.concatenate(bins) < 1.01).mean()) if bins else None,
        "p99_px": float(np.quantile(joints, 0.99)),
    }
