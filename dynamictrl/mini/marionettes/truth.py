"""Exact keypoints of marionettes in the 134-point layout, scored by what can be seen.

A point in the open scores 1; one that the figure itself or another hides scores HIDDEN (body and feet, which a pose
model infers all the same) or HIDDEN_DETAIL (face and hands); one outside the frame scores 0.
Shape suffixes: F frames, K points, J joints (134).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dynamictrl.mini.marionettes.character import Character
from dynamictrl.mini.marionettes.figure import CODES
from dynamictrl.mini.marionettes.head import ear_and_eye_points, landmarks
from dynamictrl.mini.marionettes.score import Motion
from dynamictrl.mini.marionettes.shapes import Array, Layer, Part, View
from dynamictrl.mini.marionettes.skeleton import Body
from dynamictrl.poses.pose import FACE, FEET, LEFT_HAND, NUM_KEYPOINTS, RIGHT_HAND

HIDDEN = 0.5
HIDDEN_DETAIL = 0.2

_LIMBS = ("shoulder", "elbow", "wrist")
_LEGS = ("hip", "knee", "ankle")
_FOOT = ("big_toe", "small_toe", "heel")


def _arm(side: str, *extra: str) -> tuple[str, ...]:
    names = ("upper_arm", "forearm", "sleeve", "long_sleeve", "hand")
    return (*(f"{name}_{side}" for name in names), *extra)


def _owners() -> list[tuple[str, ...]]:
    """For each of the 134 points, the parts on whose surface it lies."""
    both = [f"{name}_{side}" for name in ("thigh", "trousers") for side in ("left", "right")]
    head = ("head", "hat")
    owners: list[tuple[str, ...]] = [head, ("neck", "torso", "head")]
    for side in ("right", "left"):
        owners += [_arm(side, "torso", "neck"), _arm(side), _arm(side)]
    for side in ("right", "left"):
        leg = tuple(f"{name}_{side}" for name in ("thigh", "shin", "trousers", "shoe"))
        owners += [("hips", "torso", "skirt", *both), (*leg, "skirt"), leg]
    owners += [head, head, (*head, "hair_back"), (*head, "hair_back")]
    owners += [(f"shoe_{side}",) for side in ("left", "right") for _ in _FOOT]
    owners += [head] * 68
    owners += [_arm(side)[1:] for side in ("left", "right") for _ in range(21)]
    return owners


def _owner_table() -> NDArray[np.bool_]:
    table = np.zeros((NUM_KEYPOINTS, 32), np.bool_)
    for joint, names in enumerate(_owners()):
        table[joint, [CODES[name] for name in names]] = True
    return table


_TABLE = _owner_table()


def keypoints_of(who: Character, body: Body, view: View, motion: Motion) -> tuple[Array, NDArray[np.bool_]]:
    """All 134 points in canvas pixels [F, 134, 2], and whether each faces the viewer [F, 134]."""
    frames = len(view.scale_F)
    points, facing = np.zeros((frames, NUM_KEYPOINTS, 2)), np.ones((frames, NUM_KEYPOINTS), np.bool_)
    spots = {name: view.project(where) for name, where in body.joints.items()}
    for start, side in ((2, "right"), (5, "left")):
        points[:, start : start + 3] = np.stack([spots[f"{side}_{name}"] for name in _LIMBS], axis=1)
        points[:, start + 6 : start + 9] = np.stack([spots[f"{side}_{name}"] for name in _LEGS], axis=1)
    points[:, 1] = (points[:, 2] + points[:, 5]) / 2
    senses, sense_facing = ear_and_eye_points(who, body, view)
    points[:, [0, 14, 15, 16, 17]], facing[:, [0, 14, 15, 16, 17]] = senses, sense_facing
    points[:, FEET] = np.stack([spots[f"{side}_{name}"] for side in ("left", "right") for name in _FOOT], axis=1)
    points[:, FACE], facing[:, FACE] = landmarks(who, body, view, motion)
    for hand, side in ((LEFT_HAND, "left"), (RIGHT_HAND, "right")):
        fingers = view.project(body.fingers[side]).reshape(frames, 20, 2)
        points[:, hand] = np.concatenate([spots[f"{side}_wrist"][:, None], fingers], axis=1)
    return points, facing


def score_points(
    points_FJ2: Array, facing_FJ: NDArray[np.bool_], label_FHW: NDArray[np.uint8], person: int
) -> NDArray[np.float32]:
    """Scores [F, 134] of points in label pixels, from what the label map shows there."""
    frames, height, width = label_FHW.shape
    x, y = points_FJ2[..., 0], points_FJ2[..., 1]
    inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
    frame = np.arange(frames)[:, None]
    joint = np.arange(NUM_KEYPOINTS)[None]
    seen = np.zeros(inside.shape, np.bool_)
    for dx, dy in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)):
        column = np.clip(np.floor(x).astype(int) + dx, 0, width - 1)
        row = np.clip(np.floor(y).astype(int) + dy, 0, height - 1)
        label = label_FHW[frame, row, column]
        seen |= (label >> 5 == person) & (label > 0) & _TABLE[joint, label & 31]
    hidden = np.full(NUM_KEYPOINTS, HIDDEN_DETAIL)
    hidden[: FACE.start] = HIDDEN
    scores = np.where(seen & facing_FJ, 1.0, hidden)
    # The back of a head says where its eyes cannot be.
    scores[:, [0, 14, 15, 16, 17]] = np.where(facing_FJ, scores, HIDDEN_DETAIL)[:, [0, 14, 15, 16, 17]]
    return np.where(inside, scores, 0.0).astype(np.float32)


def boxes_of(parts: Sequence[Part], width: float, height: float) -> NDArray[np.float32]:
    """The figure's extent in shares of the frame, [F, 4], cut at the frame's edges; zeros where it is outside."""
    edges = [_edges(layer) for part in parts for layer in part.layers if layer.solid]
    low, high = np.min([edge[0] for edge in edges], axis=0), np.max([edge[1] for edge in edges], axis=0)
    boxes = np.concatenate([low, high], axis=1) / np.array([width, height, width, height])
    boxes = np.clip(boxes, 0, 1)
    outside = (boxes[:, 2] <= boxes[:, 0]) | (boxes[:, 3] <= boxes[:, 1])
    boxes[outside] = 0
    return boxes.astype(np.float32)


def _edges(layer: Layer) -> tuple[Array, Array]:
    """Lowest and highest x, y of a layer in every frame: [F, 2] each."""
    points = layer.points.reshape(len(layer.points), -1, 2)
    half = 0.0 if layer.width_F is None else layer.width_F[:, None] / 2
    return points.min(axis=1) - half, points.max(axis=1) + half
