"""Where the faces of a clip are, from its poses, and a blur over them that does not come off.

A face is taken from its 68 points where they are seen, from eyes, ears and nose where not, and from neck and shoulders
where the head itself has no point, as from behind; of several the region holds all. Regions are never smaller where the
pose is less sure: they grow as scores fall. What it cannot see: persons whom the detector missed, faces in mirrors and
on prints.

Shape suffixes: F frames, P persons, J joints, H W picture size, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from dynamictrl.poses.pose import (
    FACE,
    LEFT_EAR,
    LEFT_EYE,
    LEFT_HIP,
    LEFT_SHOULDER,
    NECK,
    NOSE,
    RIGHT_EAR,
    RIGHT_EYE,
    RIGHT_HIP,
    RIGHT_SHOULDER,
    VISIBLE,
    PoseSequence,
)

Array = NDArray[np.float64]
Image = NDArray[np.uint8]

_HEAD = [NOSE, RIGHT_EYE, LEFT_EYE, RIGHT_EAR, LEFT_EAR]
_FEW_FACE_POINTS = 12
_UNSURE = 0.8
"""How much a region grows, as a share of itself, where its points' scores are 0."""
_SHOULDERS_TO_HEAD = 0.5
"""Radius of a head with its hair as a share of the distance between the shoulders, seen from the front."""
_TRUNK_TO_HEAD = 0.3
"""The same as a share of neck to hips: shoulders seen from the side are no measure."""
_ABOVE_NECK = 1.1
"""From the neck to the middle of the head, in radii."""
_NEIGHBOURS = 2
"""Frames before and after whose region's size a frame takes over where it is larger: motion blur, and late poses."""
_OUTSIDE = 0.02
"""Share of the picture by which a person's box may end short of the border and still be cut off by it."""


@dataclass(frozen=True)
class FaceRegions:
    """A circle around each face, in pixels."""

    circles_FP3: Array
    """Centre x, y and radius; radius 0 where there is nothing to hide."""
    guessed_FP: NDArray[np.bool_]
    """Filled in from frames before and after, or from neck and shoulders."""
    lost_FP: NDArray[np.bool_]
    """Somebody is there, their head in the picture for all that is known, and it cannot be located."""


def face_regions(
    pose: PoseSequence, height: int, width: int, *, longest_gap: int = 12, grow: float = 1.3
) -> FaceRegions:
    """`longest_gap` counts frames in which a person or their head is missed; a region goes on through them, and as long
    before the first and after the last frame. `grow` is what every radius is multiplied by."""
    frames, persons = pose.num_frames, pose.num_persons
    circles_FP3 = np.full((frames, persons, 3), np.nan)
    guessed_FP = np.zeros((frames, persons), bool)
    size = np.array([width, height], np.float64)
    for frame in range(frames):
        for person in range(persons):
            points_J2, scores_J = pose.keypoints[frame, person] * size, pose.scores[frame, person]
            circles_FP3[frame, person], guessed_FP[frame, person] = _circle(points_J2, scores_J, grow)
    found_FP = np.isfinite(circles_FP3[..., 2])
    for person in range(persons):
        _bridge(circles_FP3[:, person], longest_gap)
    known_FP = np.isfinite(circles_FP3[..., 2])
    head_outside_FP = pose.boxes[..., 1] <= _OUTSIDE
    lost_FP = pose.present() & ~known_FP & ~head_outside_FP
    return FaceRegions(np.nan_to_num(circles_FP3), (guessed_FP | ~found_FP) & known_FP, lost_FP)


def _circle(points_J2: Array, scores_J: NDArray[np.float32], grow: float) -> tuple[Array, bool]:
    """The circle around one head, nan where there is no sign of it; and whether only neck and shoulders were."""
    signs = [_around_face(points_J2, scores_J), _around_head(points_J2, scores_J)]
    direct = [circle for circle in signs if circle is not None]
    circles = direct or [circle for circle in [_above_neck(points_J2, scores_J)] if circle is not None]
    if not circles:
        return np.full(3, np.nan), False
    circle = circles[0] if len(circles) == 1 else _holding(*circles)
    circle[2] *= grow
    return circle, not direct


def _around_face(points_J2: Array, scores_J: NDArray[np.float32]) -> Array | None:
    seen_J = scores_J[FACE] > VISIBLE
    if seen_J.sum() < _FEW_FACE_POINTS:
        return None
    points, score = points_J2[FACE][seen_J], float(scores_J[FACE][seen_J].mean())
    low, high = points.min(axis=0), points.max(axis=0)
    middle = (low + high) / 2
    # The 68 points end at the brows: the forehead is as much again as from brow to nose.
    middle[1] -= 0.12 * (high[1] - low[1])
    radius = 0.62 * float(np.linalg.norm(high - low))
    return np.array([*middle, radius * _less_sure(score)])


def _around_head(points_J2: Array, scores_J: NDArray[np.float32]) -> Array | None:
    seen = [joint for joint in _HEAD if scores_J[joint] > VISIBLE]
    radius = _head_radius(points_J2, scores_J)
    if not seen or not radius:
        return None
    points, score = points_J2[seen], float(scores_J[seen].mean())
    spread = float(np.linalg.norm(points.max(axis=0) - points.min(axis=0)))
    return np.array([*points.mean(axis=0), max(radius, 0.7 * spread) * _less_sure(score)])


def _above_neck(points_J2: Array, scores_J: NDArray[np.float32]) -> Array | None:
    """By the trunk, whose way up is from hips to neck; straight up where no hip is seen."""
    shoulders = [joint for joint in (RIGHT_SHOULDER, LEFT_SHOULDER) if scores_J[joint] > VISIBLE]
    radius = _head_radius(points_J2, scores_J)
    if not shoulders or not radius:
        return None
    neck = points_J2[NECK] if scores_J[NECK] > VISIBLE else points_J2[shoulders].mean(axis=0)
    hips = [joint for joint in (RIGHT_HIP, LEFT_HIP) if scores_J[joint] > VISIBLE]
    up = neck - points_J2[hips].mean(axis=0) if hips else np.array([0.0, -1.0])
    up = up / max(float(np.linalg.norm(up)), 1e-6)
    return np.array([*(neck + _ABOVE_NECK * radius * up), 1.5 * radius])


def _head_radius(points_J2: Array, scores_J: NDArray[np.float32]) -> float:
    """The larger of what shoulders, trunk, eyes and ears tell of a head's size; 0 where none does."""
    seen_J = scores_J > VISIBLE

    def apart(one: int, other: int) -> float:
        both = bool(seen_J[one] and seen_J[other])
        return float(np.linalg.norm(points_J2[one] - points_J2[other])) if both else 0.0

    return max(
        _SHOULDERS_TO_HEAD * apart(RIGHT_SHOULDER, LEFT_SHOULDER),
        _SHOULDERS_TO_HEAD * 2 * max(apart(NECK, RIGHT_SHOULDER), apart(NECK, LEFT_SHOULDER)),
        _TRUNK_TO_HEAD * max(apart(NECK, RIGHT_HIP), apart(NECK, LEFT_HIP)),
        1.3 * apart(RIGHT_EAR, LEFT_EAR) / 2,
        2.2 * apart(RIGHT_EYE, LEFT_EYE),
        1.1 * max(apart(NOSE, RIGHT_EAR), apart(NOSE, LEFT_EAR)),
        0.5 * apart(NOSE, NECK),
    )


def _less_sure(score: float) -> float:
    return 1 + _UNSURE * (1 - min(max(score, 0.0), 1.0))


def _holding(one_3: Array, other_3: Array) -> Array:
    """The smallest circle that holds both."""
    away = float(np.linalg.norm(one_3[:2] - other_3[:2]))
    large, small = (one_3, other_3) if one_3[2] >= other_3[2] else (other_3, one_3)
    if away + small[2] <= large[2]:
        return large.copy()
    radius = (away + large[2] + small[2]) / 2
    middle = large[:2] + (small[:2] - large[:2]) * (radius - large[2]) / away
    return np.array([*middle, radius])


def _bridge(circles_F3: Array, longest_gap: int) -> None:
    """Fills gaps in one person's circles in place, larger the farther from what is known; evens out sizes upwards."""
    known = np.flatnonzero(np.isfinite(circles_F3[:, 2]))
    if not len(known):
        return
    for frame in range(len(circles_F3)):
        before, after = known[known <= frame], known[known >= frame]
        ends = [int(k) for k in (*before[-1:], *after[:1])]
        distance = min(abs(frame - end) for end in ends)
        inside = len(before) and len(after) and after[0] - before[-1] <= longest_gap + 1
        if distance == 0 or not (inside or distance <= longest_gap):
            continue
        if inside:
            share = (frame - ends[0]) / (ends[1] - ends[0])
            guess = (1 - share) * circles_F3[ends[0]] + share * circles_F3[ends[1]]
        else:
            guess = circles_F3[min(ends, key=lambda end: abs(frame - end))].copy()
        guess[2] *= 1 + 0.1 * distance
        circles_F3[frame] = guess
    radii_F = np.nan_to_num(circles_F3[:, 2])
    for shift in range(1, _NEIGHBOURS + 1):
        circles_F3[shift:, 2] = np.fmax(circles_F3[shift:, 2], radii_F[:-shift] * np.sign(circles_F3[shift:, 2]))
        circles_F3[:-shift, 2] = np.fmax(circles_F3[:-shift, 2], radii_F[shift:] * np.sign(circles_F3[:-shift, 2]))


def blur_faces(frames_FHWC: Image, regions: FaceRegions, *, cells: int = 5) -> tuple[Image, int]:
    """The frames with every region reduced to about `cells` x `cells` colours and smoothed; and how many face-frames.

    Inside a circle nothing finer is left; the blur fades out outside of it.
    """
    blurred_FHWC, count = frames_FHWC.copy(), 0
    for frame_HWC, circles_P3 in zip(blurred_FHWC, regions.circles_FP3, strict=True):
        for x, y, radius in circles_P3:
            count += bool(radius > 0 and _blur_circle(frame_HWC, x, y, radius, cells))
    return blurred_FHWC, count


def _blur_circle(frame_HWC: Image, x: float, y: float, radius: float, cells: int) -> bool:
    """Blurs in place; False where the circle lies outside the picture."""
    height, width = frame_HWC.shape[:2]
    reach = 1.3 * radius + 2
    left, right = max(0, int(x - reach)), min(width, int(x + reach) + 1)
    top, bottom = max(0, int(y - reach)), min(height, int(y + reach) + 1)
    if right - left < 2 or bottom - top < 2:
        return False
    part = frame_HWC[top:bottom, left:right]
    cell = max(1.0, 2 * radius / cells)
    few = (max(1, round((right - left) / cell)), max(1, round((bottom - top) / cell)))
    coarse = cv2.resize(part, few, interpolation=cv2.INTER_AREA)
    smooth = cv2.resize(coarse, (right - left, bottom - top), interpolation=cv2.INTER_LINEAR).astype(np.float32)
    rows, columns = np.mgrid[top:bottom, left:right]
    away = np.hypot(columns + 0.5 - x, rows + 0.5 - y)
    weight = np.clip((reach - away) / max(reach - radius, 1e-6), 0, 1)[..., None].astype(np.float32)
    part[:] = np.rint(weight * smooth + (1 - weight) * part).astype(np.uint8)
    return True
