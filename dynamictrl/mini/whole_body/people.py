"""Figures to be set before any backdrop: marionettes with freer bodies, postures and viewpoints than the video model's.

Only the detector and the pose model are taught with these; clips are drawn by `mini/marionettes` alone.
Shape suffixes: F figures (frames of one character), J joints (133), H W canvas.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dynamictrl.mini.marionettes.character import Character, draw_character
from dynamictrl.mini.marionettes.figure import CODES, figure_parts
from dynamictrl.mini.marionettes.motion import ACTIONS, perform
from dynamictrl.mini.marionettes.score import SIDES, Motion
from dynamictrl.mini.marionettes.shapes import Array, Brush, Layer, Part, View
from dynamictrl.mini.marionettes.skeleton import Body, pose_body, turn_x, turn_z
from dynamictrl.mini.marionettes.truth import keypoints_of, score_points
from dynamictrl.mini.whole_body.held_out import joints_133

Drawn = dict[str, NDArray[Any]]

RIM_STEPS = 4
"""`rim` counts quarter pixels."""
_MARGIN = 0.02
_FREE_RANGES = {
    "arm": {
        "arm_out": (-0.2, 2.9), "arm_forward": (-0.9, 2.8), "arm_twist": (-1.7, 1.7), "elbow": (0.0, 2.4),
        "wrist_twist": (-1.2, 1.6),
    },
    "hand": {"wrist_bend": (-0.9, 0.9), "curl": (0.0, 1.45), "spread": (0.2, 1.5)},
    "leg": {"leg_forward": (-0.6, 1.9), "leg_out": (-0.1, 0.9), "knee": (0.0, 2.2), "toe_out": (-0.2, 0.9)},
}  # fmt: skip
_FREE_TRUNK = {
    "lean": (-0.4, 1.3), "lean_side": (-0.4, 0.4), "chest_pitch": (-0.3, 0.7), "chest_roll": (-0.4, 0.4),
    "twist": (-0.7, 0.7), "head_yaw": (-1.1, 1.1), "head_pitch": (-0.5, 0.6), "head_roll": (-0.4, 0.4),
}  # fmt: skip


def draw_people(rng: np.random.Generator, count: int, height: int, width: int) -> Drawn:
    """`count` pictures of one character, each filling its canvas; nothing of it is cut off.

    `paint` [F, H, W, 3] RGB; `part` [F, H, W], 0 where nobody is, else a part's code; `rim` [F, H, W], how far the
    part's edge is, in quarter pixels; `points` [F, 133, 2] canvas pixels; `scores` [F, 133]; `boxes` [F, 4] pixels.
    """
    who = vary_character(rng)
    motion = loosen(rng, perform(rng, str(rng.choice(sorted(ACTIONS))), rng.uniform(0, 30, count)))
    body = pose_body(who, motion)
    _look_from_elsewhere(rng, body, count)
    angle = rng.uniform(0, 2 * np.pi)
    light = (float(np.cos(angle)), float(np.sin(angle)))
    view = View(np.full(count, 400.0), np.zeros((count, 2)), light)
    parts = figure_parts(who, body, view, motion)
    _tailor(rng, parts)
    points, facing = keypoints_of(who, body, view, motion)
    scale_F, move_F2, boxes = _fit(parts, height, width)
    points = points * scale_F[:, None, None] + move_F2[:, None]
    _soften_outlines(parts, float(rng.choice([0.0, rng.uniform(), 1.0], p=[0.3, 0.3, 0.4])))
    paint, part = _paint(rng, parts, count, height, width)
    scores = score_points(points, facing, part, 0)
    return {
        "paint": paint,
        "part": part,
        "rim": np.stack([_rim(label) for label in part]),
        "points": joints_133(points[:, None])[:, 0].astype(np.float32),
        "scores": joints_133(scores[:, None])[:, 0].astype(np.float32),
        "boxes": boxes.astype(np.float32),
    }


def vary_character(rng: np.random.Generator) -> Character:
    """A marionette, or in two cases of three one whose proportions reach from a child's to a heavy adult's."""
    who = draw_character(rng)
    if rng.uniform() < 1 / 3:
        return who
    return replace(
        who,
        build=float(rng.uniform(0.72, 1.45)),
        shoulder=float(rng.uniform(0.092, 0.142)),
        hip=float(rng.uniform(0.050, 0.078)),
        head=float(rng.uniform(0.74, 1.24)),
        leg=float(rng.uniform(0.86, 1.12)),
        bottom="skirt" if rng.uniform() < 0.07 else who.bottom,
    )


def loosen(rng: np.random.Generator, motion: Motion) -> Motion:
    """Replaces the curves of some limbs in some frames by random angles, frame by frame."""
    count = len(motion["yaw"])
    free = {"travel", "jump"}
    motion = {name: curve for name, curve in motion.items() if name not in free}

    def scatter(names: dict[str, tuple[float, float]], prefix: str, share: float) -> None:
        chosen = rng.uniform(size=count) < share
        for name, (low, high) in names.items():
            old = motion.get(prefix + name, np.zeros(count))
            motion[prefix + name] = np.where(chosen, rng.uniform(low, high, count), old)

    for side in SIDES:
        scatter(_FREE_RANGES["arm"], f"{side}_", 0.4)
        scatter(_FREE_RANGES["hand"], f"{side}_", 0.45)
        scatter(_FREE_RANGES["leg"], f"{side}_", 0.22)
    scatter(_FREE_TRUNK, "", 0.25)
    scatter({"yaw": (-np.pi, np.pi)}, "", 0.35)
    scatter({"mouth": (0.0, 1.0), "smile": (-1.0, 1.0)}, "", 0.3)
    return motion


def _look_from_elsewhere(rng: np.random.Generator, body: Body, count: int) -> None:
    """Turns the figure as a raised, lowered or tilted camera would; one in twelve lies or stands on its head."""
    tilt = rng.normal(0, 0.16, count)
    roll = np.where(rng.uniform(size=count) < 1 / 12, rng.uniform(-np.pi, np.pi, count), rng.normal(0, 0.07, count))
    turn = turn_z(roll) @ turn_x(tilt)
    middle = np.array([0.0, 0.5, 0.0])

    def turned(points: Array) -> Array:
        return np.einsum("fij,f...j->f...i", turn, points - middle) + middle

    body.joints = {name: turned(where) for name, where in body.joints.items()}
    body.fingers = {side: turned(where) for side, where in body.fingers.items()}
    body.turns = {name: turn @ old for name, old in body.turns.items()}


def _tailor(rng: np.random.Generator, parts: list[Part]) -> None:
    """Skirts from short to floor-long and from narrow to wide."""
    size = np.array([rng.uniform(0.95, 1.7), rng.uniform(0.7, 2.1)])
    for layer in (layer for part in parts if part.name == "skirt" for layer in part.layers):
        waist = np.stack([layer.points[..., 0].mean(axis=1), layer.points[..., 1].min(axis=1)], axis=-1)[:, None]
        layer.points = waist + (layer.points - waist) * size


def _fit(parts: list[Part], height: int, width: int) -> tuple[Array, Array, Array]:
    """Scales and moves all layers so that each figure fills its canvas: scale [F], move [F, 2], boxes [F, 4]."""
    layers = [layer for part in parts for layer in part.layers]
    low, high = _extent([layer for layer in layers if layer.solid])
    canvas = np.array([width, height])
    scale_F = ((1 - 2 * _MARGIN) * canvas / np.maximum(high - low, 1e-3)).min(axis=1)
    move_F2 = canvas / 2 - scale_F[:, None] * (low + high) / 2
    for layer in layers:
        extra = (1,) * (layer.points.ndim - 2)
        layer.points = layer.points * scale_F.reshape(-1, *extra, 1) + move_F2.reshape(-1, *extra, 2)
        layer.width_F = None if layer.width_F is None else layer.width_F * scale_F
    ends = [corner * scale_F[:, None] + move_F2 for corner in (low, high)]
    return scale_F, move_F2, np.concatenate(ends, axis=1)


def _extent(layers: list[Layer]) -> tuple[Array, Array]:
    lows, highs = [], []
    for layer in layers:
        points = layer.points.reshape(len(layer.points), -1, 2)
        half = 0.0 if layer.width_F is None else layer.width_F[:, None] / 2
        lows.append(points.min(axis=1) - half)
        highs.append(points.max(axis=1) + half)
    return np.min(lows, axis=0), np.max(highs, axis=0)


def _soften_outlines(parts: list[Part], share: float) -> None:
    """Takes dark lines towards the paint that they enclose; at 1 none is left."""
    for part in parts:
        solid = [layer for layer in part.layers if layer.solid]
        for index, layer in enumerate(solid):
            fills = [other.colour for other in solid[index + 1 :] if sum(other.colour) > 1.3 * sum(layer.colour)]
            if fills:
                mixed = (round(a + share * (b - a)) for a, b in zip(layer.colour, fills[0], strict=True))
                layer.colour = tuple(mixed)  # type: ignore[assignment]


def _paint(
    rng: np.random.Generator, parts: list[Part], count: int, height: int, width: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    brush = Brush(parts, CODES, 1.0)
    # What shines through the soft edge of the paint.
    paint = np.full((count, height, width, 3), int(rng.integers(40, 140)), np.uint8)
    part = np.zeros((count, height, width), np.uint8)
    for frame in range(count):
        brush.paint(frame, paint[frame], part[frame])
    return paint, part


def _rim(part_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    inner = np.ones_like(part_HW)
    inner[1:][part_HW[1:] != part_HW[:-1]] = 0
    inner[:, 1:][part_HW[:, 1:] != part_HW[:, :-1]] = 0
    inner[part_HW == 0] = 0
    away = cv2.distanceTransform(inner, cv2.DIST_L2, 3)
    return np.clip(away * RIM_STEPS, 0, 255).astype(np.uint8)
