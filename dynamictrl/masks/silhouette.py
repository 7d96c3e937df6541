"""A person's outline as far as a skeleton tells it: capsules along the bones, hulls for head, trunk, hands and feet.

Widths are shares of the trunk's length, so they fit children, adults and close-ups alike.

Shape suffixes: P persons, J joints, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from dynamictrl.poses.pose import (
    FACE,
    LEFT_ANKLE,
    LEFT_ELBOW,
    LEFT_HAND,
    LEFT_HIP,
    LEFT_KNEE,
    LEFT_SHOULDER,
    LEFT_WRIST,
    NECK,
    NOSE,
    RIGHT_ANKLE,
    RIGHT_ELBOW,
    RIGHT_HAND,
    RIGHT_HIP,
    RIGHT_KNEE,
    RIGHT_SHOULDER,
    RIGHT_WRIST,
    VISIBLE,
)

# Two joints and half the width at each, in trunk lengths: what is likely; times SURE what lies within for sure, times
# POSSIBLE what may. Fitted to marionettes, where thin sure parts leave most to the colours.
BONES = (
    (RIGHT_SHOULDER, RIGHT_ELBOW, 0.13), (RIGHT_ELBOW, RIGHT_WRIST, 0.10), (LEFT_SHOULDER, LEFT_ELBOW, 0.13),
    (LEFT_ELBOW, LEFT_WRIST, 0.10), (RIGHT_HIP, RIGHT_KNEE, 0.18), (RIGHT_KNEE, RIGHT_ANKLE, 0.13),
    (LEFT_HIP, LEFT_KNEE, 0.18), (LEFT_KNEE, LEFT_ANKLE, 0.13), (NECK, NOSE, 0.14),
)  # fmt: skip
CUT_LIMBS = (
    (NECK, RIGHT_SHOULDER, RIGHT_ELBOW, 0.6, 0.13), (RIGHT_SHOULDER, RIGHT_ELBOW, RIGHT_WRIST, 0.5, 0.10),
    (NECK, LEFT_SHOULDER, LEFT_ELBOW, 0.6, 0.13), (LEFT_SHOULDER, LEFT_ELBOW, LEFT_WRIST, 0.5, 0.10),
    (RIGHT_SHOULDER, RIGHT_HIP, RIGHT_KNEE, 0.8, 0.18), (RIGHT_HIP, RIGHT_KNEE, RIGHT_ANKLE, 0.8, 0.13),
    (LEFT_SHOULDER, LEFT_HIP, LEFT_KNEE, 0.8, 0.18), (LEFT_HIP, LEFT_KNEE, LEFT_ANKLE, 0.8, 0.13),
)  # fmt: skip
"""The joint before, the last joint seen, the joint cut off; length and half the width in trunk lengths."""
TRUNK = (RIGHT_SHOULDER, LEFT_SHOULDER, LEFT_HIP, RIGHT_HIP)
TRUNK_MARGIN = 0.07
HEAD_JOINTS = (NOSE, 14, 15, 16, 17)
HEAD_MARGIN = 0.08
CROWN = 0.3
"""How far the top of the head is likely to be above the brows, in chin-to-brow lengths."""
_CHIN, _BROWS = 8, tuple(range(17, 27))
"""Landmarks of the face's 68."""
HAND_MARGIN = 0.04
FOOT_MARGIN = 0.05
RIGHT_FOOT, LEFT_FOOT = slice(21, 24), slice(18, 21)

SURE, LIKELY, POSSIBLE = 0.25, 1.0, 1.8


@dataclass(frozen=True)
class Silhouettes:
    """Three nested outlines of all persons of one frame, each [H, W]."""

    sure: NDArray[np.bool_]
    likely: NDArray[np.bool_]
    possible: NDArray[np.bool_]


def silhouettes(
    keypoints_PJ2: NDArray[np.float32], scores_PJ: NDArray[np.float32], height: int, width: int
) -> Silhouettes:
    """Outlines from x, y in [0, 1] of the frame and scores; all empty where nobody is seen."""
    layers = [np.zeros((height, width), np.uint8) for _ in range(3)]
    for points, scores in zip(keypoints_PJ2, scores_PJ, strict=True):
        for layer, widening in zip(layers, (SURE, LIKELY, POSSIBLE), strict=True):
            draw_person(layer, points, scores, 1, widening)
    sure, likely, possible = (layer > 0 for layer in layers)
    return Silhouettes(sure, likely, possible)


def nearest_person(
    keypoints_PJ2: NDArray[np.float32], scores_PJ: NDArray[np.float32], height: int, width: int
) -> NDArray[np.uint8]:
    """[H, W], the number (from 1) of the person whose drawn limbs are nearest; 0 everywhere where nobody is."""
    nearest, distance = np.zeros((height, width), np.uint8), np.full((height, width), np.inf, np.float32)
    for index, (points, scores) in enumerate(zip(keypoints_PJ2, scores_PJ, strict=True)):
        layer = np.zeros((height, width), np.uint8)
        draw_person(layer, points, scores, 1, 0.7)
        if layer.any():
            away = np.asarray(cv2.distanceTransform(1 - layer, cv2.DIST_L2, 3), np.float32)
            nearer = away < distance
            nearest[nearer], distance[nearer] = index + 1, away[nearer]
    return nearest


def trunk_length(points_J2: NDArray[np.float32], scores_J: NDArray[np.float32]) -> float:
    """Neck to hips in pixels, or what the shoulders, the face or a limb let one guess of it; 0 where nothing does."""
    seen = scores_J > VISIBLE
    guesses = []
    for start, end, share in (
        (NECK, RIGHT_HIP, 1.03), (NECK, LEFT_HIP, 1.03), (RIGHT_SHOULDER, LEFT_SHOULDER, 0.68),
        (RIGHT_KNEE, RIGHT_ANKLE, 0.8), (LEFT_KNEE, LEFT_ANKLE, 0.8), (RIGHT_ELBOW, RIGHT_WRIST, 0.5),
        (LEFT_ELBOW, LEFT_WRIST, 0.5), (NECK, NOSE, 0.45),
    ):  # fmt: skip
        if seen[start] and seen[end]:
            guesses.append(float(np.linalg.norm(points_J2[start] - points_J2[end])) / share)
    # A side view shortens shoulders, a bow shortens the trunk: the longest of the first three, if any.
    return max(guesses[:3], default=0.0)


def draw_person(
    layer: NDArray[np.uint8],
    points_J2: NDArray[np.float32],
    scores_J: NDArray[np.float32],
    value: int,
    widening: float,
) -> None:
    """Fills one person's outline into [H, W], every width times `widening`."""
    height, width = layer.shape
    pixels_J2 = points_J2 * np.array([width, height], np.float32)
    seen = (scores_J > VISIBLE) & np.isfinite(points_J2).all(-1) & (np.abs(points_J2) < 4).all(-1)
    unit = trunk_length(pixels_J2, np.where(seen, scores_J, 0)) * widening
    if unit == 0:
        return
    for start, end, share in BONES:
        if seen[start] and seen[end]:
            _capsule(layer, pixels_J2[start], pixels_J2[end], share * unit, value)
    if widening >= LIKELY:
        for start, end, share in _cut_limbs(pixels_J2, seen, unit / widening, width, height):
            _capsule(layer, start, end, share * unit, value)
    _hull(layer, pixels_J2[list(TRUNK)][seen[list(TRUNK)]], TRUNK_MARGIN * unit, value)
    head = np.concatenate([pixels_J2[FACE][seen[FACE]], pixels_J2[list(HEAD_JOINTS)][seen[list(HEAD_JOINTS)]]])
    _hull(layer, np.concatenate([head, _crown(pixels_J2, seen, widening)]), HEAD_MARGIN * unit, value)
    for part, margin in (
        (LEFT_HAND, HAND_MARGIN),
        (RIGHT_HAND, HAND_MARGIN),
        (LEFT_FOOT, FOOT_MARGIN),
        (RIGHT_FOOT, FOOT_MARGIN),
    ):
        _hull(layer, pixels_J2[part][seen[part]], margin * unit, value)


def _cut_limbs(
    pixels_J2: NDArray[np.float32], seen: NDArray[np.bool_], trunk: float, width: int, height: int
) -> list[tuple[NDArray[np.float32], NDArray[np.float32], float]]:
    """Bones whose far end the frame cuts off, as a guess: they go on as the bone before them does."""
    cut = []
    for before, start, end, length, share in CUT_LIMBS:
        if not seen[start] or seen[end] or not seen[before]:
            continue
        along = pixels_J2[start] - pixels_J2[before]
        guess = pixels_J2[start] + along * (length * trunk / max(float(np.linalg.norm(along)), 1.0))
        if not (0 <= guess[0] < width and 0 <= guess[1] < height):
            cut.append((pixels_J2[start], guess, share))
    return cut


def _crown(pixels_J2: NDArray[np.float32], seen: NDArray[np.bool_], widening: float) -> NDArray[np.float32]:
    """Three points on top of the head, none without a face: landmarks end at the brows, hair and hat do not."""
    chin, brows = FACE.start + _CHIN, FACE.start + np.array(_BROWS)
    if not (seen[chin] and seen[brows].any()):
        return np.zeros((0, 2), np.float32)
    up = (pixels_J2[brows][seen[brows]].mean(axis=0) - pixels_J2[chin]) * CROWN * widening
    across = np.array([-up[1], up[0]], np.float32)
    top = pixels_J2[brows][seen[brows]].mean(axis=0) + up
    return np.stack([top, top + 0.5 * across - 0.25 * up, top - 0.5 * across - 0.25 * up])


def _capsule(
    layer: NDArray[np.uint8], start: NDArray[np.float32], end: NDArray[np.float32], radius: float, value: int
) -> None:
    ends = np.round(np.stack([start, end])).astype(int).tolist()
    cv2.line(layer, ends[0], ends[1], value, max(1, round(2 * radius)))


def _hull(layer: NDArray[np.uint8], points_N2: NDArray[np.float32], margin: float, value: int) -> None:
    if len(points_N2) < 2:
        return
    hull = np.asarray(cv2.convexHull(np.round(points_N2).astype(np.int32)))
    cv2.fillConvexPoly(layer, hull, value)
    cv2.polylines(layer, [hull], True, value, max(1, round(2 * margin)))
