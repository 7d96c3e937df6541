"""Poses as the pictures the model is driven by: coloured limbs, rainbow hands and face dots on black, as DWPose draws.

Two styles of the same drawing. "released" is what the published weights were trained on: strokes of fixed width on a
canvas whose shorter side is 2160, then shrunk, so strokes vanish in small pictures. "scaled" (the default) draws
strokes in proportion to the picture, so that 192 x 128 and 1920 x 1080 look alike.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from dynamictrl.poses.pose import BODY, FACE, LEFT_HAND, RIGHT_HAND, VISIBLE, PoseSequence

Style = Literal["scaled", "released"]
Colour = tuple[int, int, int]

# OpenPose's limbs without the two from shoulders to ears, as DWPose draws them.
LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13), (1, 0),
    (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
HAND_EDGES = tuple(
    (0 if first else finger + joint - 1, finger + joint)
    for finger in (1, 5, 9, 13, 17)
    for joint, first in ((0, True), (1, False), (2, False), (3, False))
)

# One hue a joint, from blue to red: OpenPose's table with red and blue swapped, which is how the released renders look.
JOINT_COLOURS: tuple[Colour, ...] = (
    (0, 0, 255), (0, 85, 255), (0, 170, 255), (0, 255, 255), (0, 255, 170), (0, 255, 85), (0, 255, 0), (85, 255, 0),
    (170, 255, 0), (255, 255, 0), (255, 170, 0), (255, 85, 0), (255, 0, 0), (255, 0, 85), (255, 0, 170),
    (255, 0, 255), (170, 0, 255), (85, 0, 255),
)  # fmt: skip
EDGE_COLOURS: tuple[Colour, ...] = tuple(
    tuple(int(255 * channel) for channel in reversed(colorsys.hsv_to_rgb(edge / 20, 1, 1))) for edge in range(20)
)  # pyright: ignore[reportAssignmentType]
HAND_POINT: Colour = (255, 0, 0)
FACE_POINT: Colour = (255, 255, 255)

LIMB_SHADE = 0.6
"""Limbs are darker than the joints upon them."""

_FAR_OUTSIDE = 4.0
"""Frames; a joint farther away is a detector's slip that would only overflow the drawing."""


@dataclass(frozen=True)
class Strokes:
    """Widths in canvas pixels, for a canvas whose shorter side is `side`."""

    side: int
    limb: int
    """Half the width of a limb's ellipse."""
    joint: int
    hand_edge: int
    """Full width."""
    hand_point: int
    face_point: int

    def grown_to(self, side: int) -> Strokes:
        scale = max(1.0, side / self.side)
        widths = (self.limb, self.joint, self.hand_edge, self.hand_point, self.face_point)
        return Strokes(max(side, self.side), *(round(width * scale) for width in widths))


RELEASED = Strokes(side=2160, limb=4, joint=4, hand_edge=2, hand_point=4, face_point=3)
SCALED = Strokes(side=512, limb=6, joint=5, hand_edge=3, hand_point=3, face_point=2)


def draw_pose(pose: PoseSequence, height: int, width: int, *, style: Style = "scaled") -> NDArray[np.uint8]:
    """Draws every person of every frame: [F, height, width, 3] RGB.

    Colours are dimmed by the scores; limbs and joints at or below VISIBLE are left out, hands and face are not, as in
    DWPose. Nobody in a frame gives black.
    """
    if style not in ("scaled", "released"):
        raise ValueError(f"style is {style!r}; it must be 'scaled' or 'released'")
    strokes = RELEASED if style == "released" else SCALED.grown_to(min(height, width))
    pictures = np.zeros((pose.num_frames, height, width, 3), np.uint8)
    for index in range(pose.num_frames):
        keypoints, scores = _drawable(pose.keypoints[index], pose.scores[index])
        if np.any(scores > 0):
            pictures[index] = _draw_frame(keypoints, scores, height, width, strokes, style)
    return pictures


def _drawable(
    keypoints: NDArray[np.float32], scores: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    with np.errstate(invalid="ignore"):
        sound = np.isfinite(keypoints).all(-1) & np.isfinite(scores) & (np.abs(keypoints) < _FAR_OUTSIDE).all(-1)
    return np.where(sound[..., None], keypoints, 0), np.where(sound, np.clip(scores, 0, 1), 0)


def _draw_frame(
    keypoints_PJ2: NDArray[np.float32],
    scores_PJ: NDArray[np.float32],
    height: int,
    width: int,
    strokes: Strokes,
    style: Style,
) -> NDArray[np.uint8]:
    scale = strokes.side / min(height, width)
    canvas = np.zeros((int(height * scale), int(width * scale), 3), np.uint8)
    points_PJ2 = keypoints_PJ2 * np.array([canvas.shape[1], canvas.shape[0]], np.float32)
    _draw_limbs(canvas, points_PJ2[:, BODY], scores_PJ[:, BODY], strokes)
    _draw_joints(canvas, points_PJ2[:, BODY], scores_PJ[:, BODY], strokes)
    for hand in (LEFT_HAND, RIGHT_HAND):
        for points, scores in zip(points_PJ2[:, hand], scores_PJ[:, hand], strict=True):
            _draw_hand(canvas, points, scores, strokes)
    _draw_dots(canvas, points_PJ2[:, FACE], scores_PJ[:, FACE], strokes.face_point, FACE_POINT)
    if canvas.shape[:2] == (height, width):
        return canvas
    # Averaging keeps thin strokes whole; the released renders were shrunk bilinearly, which skips pixels.
    shrink = cv2.INTER_LINEAR if style == "released" else cv2.INTER_AREA
    return np.asarray(cv2.resize(canvas, (width, height), interpolation=shrink), np.uint8)


def _dimmed(colour: Colour, score: float) -> Colour:
    red, green, blue = colour
    return int(red * score), int(green * score), int(blue * score)


def _draw_limbs(
    canvas: NDArray[np.uint8], points_PJ2: NDArray[np.float32], scores_PJ: NDArray[np.float32], strokes: Strokes
) -> None:
    for limb, (start, end) in enumerate(LIMBS):
        for points, scores in zip(points_PJ2, scores_PJ, strict=True):
            if scores[start] < VISIBLE or scores[end] < VISIBLE:
                continue
            colour = _dimmed(_dimmed(JOINT_COLOURS[limb], float(scores[start] * scores[end])), LIMB_SHADE)
            middle, along = (points[start] + points[end]) / 2, points[start] - points[end]
            outline = cv2.ellipse2Poly(
                (int(middle[0]), int(middle[1])),
                (int(np.hypot(*along) / 2), strokes.limb),
                int(np.degrees(np.arctan2(along[1], along[0]))),
                0,
                360,
                1 if strokes is RELEASED else 6,
            )
            cv2.fillConvexPoly(canvas, np.asarray(outline, np.int32), colour)


def _draw_joints(
    canvas: NDArray[np.uint8], points_PJ2: NDArray[np.float32], scores_PJ: NDArray[np.float32], strokes: Strokes
) -> None:
    for joint, colour in enumerate(JOINT_COLOURS):
        for point, score in zip(points_PJ2[:, joint], scores_PJ[:, joint], strict=True):
            if score > VISIBLE:
                cv2.circle(canvas, (int(point[0]), int(point[1])), strokes.joint, _dimmed(colour, float(score)), -1)


def _draw_hand(
    canvas: NDArray[np.uint8], points_J2: NDArray[np.float32], scores_J: NDArray[np.float32], strokes: Strokes
) -> None:
    pixels, shown = points_J2.astype(int).tolist(), _inside(points_J2, scores_J)
    for edge, (start, end) in enumerate(HAND_EDGES):
        if shown[start] and shown[end]:
            colour = _dimmed(EDGE_COLOURS[edge], float(scores_J[start] * scores_J[end]))
            cv2.line(canvas, pixels[start], pixels[end], colour, strokes.hand_edge)
    _draw_dots(canvas, points_J2[None], scores_J[None], strokes.hand_point, HAND_POINT)


def _draw_dots(
    canvas: NDArray[np.uint8],
    points_PJ2: NDArray[np.float32],
    scores_PJ: NDArray[np.float32],
    radius: int,
    colour: Colour,
) -> None:
    for points, scores in zip(points_PJ2, scores_PJ, strict=True):
        for pixel, score in _shown(points, scores):
            cv2.circle(canvas, pixel, radius, _dimmed(colour, score), -1)


def _inside(points_J2: NDArray[np.float32], scores_J: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether a hand or face point is drawn: found at all, and not left of or above the picture (DWPose's rule)."""
    return (scores_J > 0) & (points_J2.astype(int) > 0).all(-1)


def _shown(points_J2: NDArray[np.float32], scores_J: NDArray[np.float32]) -> Iterator[tuple[list[int], float]]:
    index = _inside(points_J2, scores_J)
    yield from zip(points_J2[index].astype(int).tolist(), scores_J[index].tolist(), strict=True)
