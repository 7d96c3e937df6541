"""What a marionette is drawn from: polygons over a whole clip, in painting order.

Geometry is computed for all frames at once; only the painting itself goes frame by frame.
Shape suffixes: F frames, K corners of a polygon, L lines.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from dynamictrl.mini.marionettes.character import Colour
from dynamictrl.mini.marionettes.character import tint_colour as tint

Array = NDArray[np.float64]

PERSPECTIVE = 0.22
"""How much larger a thing looks one body height nearer to the viewer."""
_SHIFT = 3
_CAP = np.linspace(0.0, 1.0, 7)


@dataclass
class View:
    """How space becomes canvas pixels, frame by frame."""

    scale_F: Array
    """Pixels of one body height."""
    origin_F2: Array
    """Where the spot x = y = z = 0 is, in pixels."""
    light: tuple[float, float]
    """Direction towards the light, x right and y down, of length 1."""

    def near(self, points: Array) -> Array:
        """[F, ...], the magnification at points [F, ..., 3]."""
        return 1 + PERSPECTIVE * np.clip(points[..., 2], -1.0, 1.0)

    def project(self, points: Array) -> Array:
        """Points [F, ..., 3] as pixels [F, ..., 2]."""
        extra = (1,) * (points.ndim - 2)
        scale = self.scale_F.reshape(-1, *extra) * self.near(points)
        origin = self.origin_F2.reshape(-1, *extra, 2)
        # Seen from half a body height above the floor.
        flat = np.stack([points[..., 0] * scale, -(points[..., 1] - 0.5) * scale], axis=-1)
        flat[..., 1] -= 0.5 * self.scale_F.reshape(-1, *extra)
        return origin + flat

    def length(self, value: float, points_F3: Array) -> Array:
        """A length of body heights at points [F, 3] in pixels: [F]."""
        return value * self.scale_F * self.near(points_F3)


@dataclass
class Layer:
    """One stroke of paint in every frame: a filled polygon [F, K, 2], or lines [F, L, K, 2] of some width."""

    points: Array
    colour: Colour
    width_F: Array | None = None
    shown_F: NDArray[np.bool_] | None = None
    solid: bool = True
    """Part of the figure's silhouette, as opposed to a marking on it."""
    convex: bool = False


@dataclass
class Part:
    """Layers that are painted together, at one depth."""

    name: str
    depth_F: Array
    layers: list[Layer] = field(default_factory=list)


def outline(colour: Colour) -> Colour:
    """A dark line in the colour's own family; softer than black."""
    return (int(colour[0] * 0.38 + 8), int(colour[1] * 0.36 + 6), int(colour[2] * 0.40 + 12))


def capsule(a_F2: Array, b_F2: Array, ra_F: Array, rb_F: Array) -> Array:
    """The outline of a limb with round ends: [F, 14, 2], always convex."""
    way = b_F2 - a_F2
    length_F = np.maximum(np.hypot(way[:, 0], way[:, 1]), 1e-6)
    angle_F = np.arctan2(way[:, 1], way[:, 0])
    open_F = np.arccos(np.clip((ra_F - rb_F) / length_F, -1, 1))
    head = angle_F[:, None] - open_F[:, None] + 2 * open_F[:, None] * _CAP
    tail = angle_F[:, None] + open_F[:, None] + 2 * (np.pi - open_F[:, None]) * _CAP
    far = b_F2[:, None] + rb_F[:, None, None] * np.stack([np.cos(head), np.sin(head)], axis=-1)
    near = a_F2[:, None] + ra_F[:, None, None] * np.stack([np.cos(tail), np.sin(tail)], axis=-1)
    return np.concatenate([far, near], axis=1)


def disc(centre_F2: Array, radius_F: Array, corners: int = 14, squash: float = 1.0) -> Array:
    """A circle, or an upright ellipse: [F, corners, 2]."""
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    ring = np.stack([np.cos(angle), squash * np.sin(angle)], axis=-1)
    return centre_F2[:, None] + radius_F[:, None, None] * ring


def smooth(points: Array, rounds: int = 2) -> Array:
    """Corner cutting (Chaikin) on closed polygons [F, K, 2]: [F, K * 2**rounds, 2]."""
    for _ in range(rounds):
        following = np.roll(points, -1, axis=1)
        cut = np.stack([0.75 * points + 0.25 * following, 0.25 * points + 0.75 * following], axis=2)
        points = cut.reshape(points.shape[0], -1, 2)
    return points


def limb(
    view: View, a_F3: Array, b_F3: Array, radii: tuple[float, float], colour: Colour, *, line: float = 0.0045
) -> list[Layer]:
    """A rounded limb between two points in space: dark line, shaded side, lit side, gleam."""
    a_F2, b_F2 = view.project(a_F3), view.project(b_F3)
    ra_F, rb_F = view.length(radii[0], a_F3), view.length(radii[1], b_F3)
    edge_F = line * view.scale_F
    light = np.array(view.light)

    def shell(share: float, offset: float) -> Array:
        move_a, move_b = offset * ra_F[:, None] * light, offset * rb_F[:, None] * light
        return capsule(a_F2 + move_a, b_F2 + move_b, share * ra_F, share * rb_F)

    layers = [
        Layer(shell(1.0, 0.0), tint(colour, 0.76), convex=True),
        Layer(shell(0.78, 0.2), colour, solid=False, convex=True),
        Layer(shell(0.36, 0.46), tint(colour, 1.14), solid=False, convex=True),
    ]
    if line:
        layers.insert(0, Layer(capsule(a_F2, b_F2, ra_F + edge_F, rb_F + edge_F), outline(colour), convex=True))
    return layers


def blob(
    view: View, points_FK2: Array, colour: Colour, *, line: float = 0.0045, lit: tuple[float, float] = (0.8, 0.8)
) -> list[Layer]:
    """A free shape with the same line and light as a limb; `lit` is how much of its width and height is lit."""
    centre = points_FK2.mean(axis=1, keepdims=True)
    edge = points_FK2 - centre
    spread = np.abs(edge).mean(axis=1, keepdims=True)
    size = np.maximum(np.linalg.norm(edge, axis=-1, keepdims=True), 1e-6)
    grown = points_FK2 + edge / size * (line * view.scale_F)[:, None, None]
    move = 0.8 * (1 - np.array(lit)) * spread * np.array(view.light)
    return [
        Layer(grown, outline(colour)),
        Layer(points_FK2, tint(colour, 0.78)),
        Layer(centre + np.array(lit) * edge + move, colour, solid=False),
    ]


class Brush:
    """Paints parts on a canvas, and their names on a label map; both are changed in place."""

    def __init__(self, parts: list[Part], codes: dict[str, int], label_scale: float):
        """`label_scale` is label pixels per canvas pixel."""
        self.parts = parts
        self.codes = codes
        fixed = float(1 << _SHIFT)
        # A pixel's centre is at half a pixel for us and at a whole number for OpenCV.
        self._canvas = [[((y.points - 0.5) * fixed).astype(np.int32) for y in part.layers] for part in parts]
        self._label = [
            [((y.points * label_scale - 0.5) * fixed).astype(np.int32) if y.solid else None for y in part.layers]
            for part in parts
        ]
        self._order = np.argsort(np.stack([part.depth_F for part in parts]), axis=0, kind="stable")
        self._label_scale = label_scale

    def paint(self, frame: int, canvas: NDArray[np.uint8], label: NDArray[np.uint8]) -> None:
        """One frame, from the farthest part to the nearest."""
        for index in self._order[:, frame]:
            part, code = self.parts[index], self.codes[self.parts[index].name]
            for layer, points, marks in zip(part.layers, self._canvas[index], self._label[index], strict=True):
                if layer.shown_F is not None and not layer.shown_F[frame]:
                    continue
                _stroke(canvas, layer, points[frame], layer.colour, frame, 1.0, cv2.LINE_AA)
                if marks is not None:
                    _stroke(label, layer, marks[frame], (code, code, code), frame, self._label_scale, cv2.LINE_8)


def _stroke(
    canvas: NDArray[np.uint8],
    layer: Layer,
    points: NDArray[np.int32],
    colour: Colour,
    frame: int,
    scale: float,
    kind: int,
) -> None:
    if layer.width_F is not None:
        width = max(1, round(float(layer.width_F[frame]) * scale))
        cv2.polylines(canvas, list(points), False, colour, width, kind, _SHIFT)
    elif layer.convex:
        cv2.fillConvexPoly(canvas, points, colour, kind, _SHIFT)
    else:
        cv2.fillPoly(canvas, [points], colour, kind, _SHIFT)
