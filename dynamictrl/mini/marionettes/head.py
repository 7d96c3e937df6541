"""A marionette's head: skull, face with its 68 landmarks, hair, hat.

The head is a unit sphere that turns in space and is then stretched to its real size on the canvas; what lies on its
surface is given as x to the figure's left, y up, both in half heads.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dynamictrl.mini.marionettes.character import CLOTH_COLOURS, Character, Colour
from dynamictrl.mini.marionettes.shapes import Array, Layer, Part, View, blob, disc, limb, outline, smooth, tint
from dynamictrl.mini.marionettes.skeleton import HEAD_RADII, Body

_EYE = (0.35, 0.03)
_MOUTH_Y = -0.54


def _jaw() -> Array:
    angle = np.pi * np.arange(17) / 16
    return np.stack([-0.94 * np.cos(angle), 0.06 - 1.0 * np.sin(angle)], axis=-1)


def _landmarks() -> Array:
    """The 68 points at rest, [68, 2]: jaw, brows, nose, eyes, mouth."""
    brow = np.array([(-0.60, 0.27), (-0.48, 0.35), (-0.36, 0.37), (-0.25, 0.35), (-0.15, 0.29)])
    nose = np.array(
        [(0, 0.02), (0, -0.08), (0, -0.18), (0, -0.27)]
        + [(-0.15, -0.31), (-0.08, -0.34), (0, -0.36), (0.08, -0.34), (0.15, -0.31)]
    )
    x, y, w, h = -_EYE[0], _EYE[1], 0.155, 0.10
    eye = np.array([(x - w, y), (x - 0.06, y + h), (x + 0.06, y + h), (x + w, y), (x + 0.06, y - h), (x - 0.06, y - h)])
    outer = [(-0.28, 0.0), (-0.17, 0.06), (-0.06, 0.09), (0, 0.075), (0.06, 0.09), (0.17, 0.06), (0.28, 0.0)]
    outer += [(0.17, -0.09), (0.07, -0.12), (0, -0.125), (-0.07, -0.12), (-0.17, -0.09)]
    inner = [
        (-0.23, 0.0),
        (-0.08, 0.02),
        (0, 0.015),
        (0.08, 0.02),
        (0.23, 0.0),
        (0.08, -0.03),
        (0, -0.035),
        (-0.08, -0.03),
    ]
    mouth = np.array(outer + inner) + (0, _MOUTH_Y)
    mirror = np.array([-1, 1])
    other_eye = (eye * mirror)[[3, 2, 1, 0, 5, 4]]
    return np.concatenate([_jaw(), brow, (brow * mirror)[::-1], nose, eye, other_eye, mouth])


LANDMARKS = _landmarks()
_HAIRLINES = {
    "short": ((0.93, 0.18), (0.80, 0.48), (0.42, 0.66), (-0.05, 0.70), (-0.45, 0.62), (-0.80, 0.46), (-0.93, 0.18)),
    "fringe": ((0.92, 0.05), (0.80, 0.40), (0.45, 0.42), (0.05, 0.46), (-0.40, 0.42), (-0.80, 0.40), (-0.92, 0.05)),
    "parted": ((0.92, 0.05), (0.82, 0.40), (0.60, 0.62), (0.28, 0.78), (-0.25, 0.58), (-0.78, 0.36), (-0.92, 0.05)),
}
_LINE_OF_STYLE = {"fringe": "fringe", "long": "parted", "ponytail": "parted", "cap": "fringe", "curly": "fringe"}


class Face:
    """Puts points of the head's surface on the canvas, for all frames."""

    def __init__(self, who: Character, body: Body, view: View):
        self.turn_F33 = body.turns["head"]
        self.centre_F3 = body.joints["head"]
        self.centre_F2 = view.project(self.centre_F3)
        size_F = view.length(who.head, self.centre_F3)
        up = self.turn_F33[:, :2, 1] * np.array([1, -1])
        self.up_F2 = up / np.maximum(np.linalg.norm(up, axis=-1, keepdims=True), 1e-6)
        self.side_F2 = np.stack([-self.up_F2[:, 1], self.up_F2[:, 0]], axis=-1)
        self.high_F = HEAD_RADII[1] * size_F
        sideways_F = np.abs(self.turn_F33[:, 0, 2])
        self.wide_F = (HEAD_RADII[0] + (HEAD_RADII[2] - HEAD_RADII[0]) * sideways_F) * size_F

    def surface(self, points_K2: Array, lift: float | Array = 0.0) -> Array:
        """Points of the face, [K, 2] or [F, K, 2], on the unit sphere: [F, K, 3]; `lift` moves them off it."""
        points = np.broadcast_to(points_K2, (len(self.turn_F33), *points_K2.shape[-2:]))
        depth = np.sqrt(np.clip(1 - (points**2).sum(axis=-1), 0.0225, 1))
        return np.concatenate([points, (depth + lift)[..., None]], axis=-1)

    def place(self, sphere_FK3: Array) -> tuple[Array, Array]:
        """Canvas pixels [F, K, 2] of sphere points, and how far each looks towards the viewer [F, K]."""
        turned = np.einsum("fij,fkj->fki", self.turn_F33, sphere_FK3)
        return self.flatten(turned[..., 0], -turned[..., 1]), turned[..., 2]

    def flatten(self, x_FK: Array, y_FK: Array) -> Array:
        """Unit-disc coordinates to canvas pixels: stretched along the head's own axis, narrow at the chin."""
        along = x_FK * self.up_F2[:, :1] + y_FK * self.up_F2[:, 1:]
        across = x_FK * self.side_F2[:, :1] + y_FK * self.side_F2[:, 1:]
        across = across * (1 - 0.24 * np.clip(-along, 0, 1.2) ** 2) * self.wide_F[:, None]
        along = along * self.high_F[:, None]
        return (
            self.centre_F2[:, None] + along[..., None] * self.up_F2[:, None] + across[..., None] * self.side_F2[:, None]
        )

    def round(self, grow: float, low: float | None = None, corners: int = 24) -> Array:
        """The head's silhouette, [F, corners, 2]; below its middle it grows towards `low` instead."""
        tilt_F = np.arctan2(self.up_F2[:, 1], self.up_F2[:, 0])
        angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
        below = np.clip(-1.6 * np.cos(angle) - 0.1, 0, 1)
        size = grow + below * ((grow if low is None else low) - grow)
        turned = tilt_F[:, None] + angle
        return self.flatten(size * np.cos(turned), size * np.sin(turned))

    def patch(self, points_K2: Array) -> tuple[Array, NDArray[np.bool_]]:
        """A closed region of the face as seen: what lies behind the edge of the head is drawn back to the edge.

        Returns [F, K, 2] and whether any of it is seen [F].
        """
        turned = np.einsum("fij,fkj->fki", self.turn_F33, self.surface(points_K2))
        pole_F = self.turn_F33[:, 2, 2]
        behind = turned[..., 2] < 0
        flat = turned[..., :2] * np.array([1, -1])
        length = np.maximum(np.linalg.norm(flat, axis=-1, keepdims=True), 1e-6)
        edge = np.where(behind[..., None], flat / length, flat)
        chord = self._nearest_seen(flat, behind)
        flat = np.where((pole_F >= -0.4)[:, None, None], edge, chord)
        seen_F = (~behind).sum(axis=1) >= 3
        return self.flatten(flat[..., 0], flat[..., 1]), seen_F

    @staticmethod
    def _nearest_seen(flat: Array, behind: Array) -> Array:
        corners = flat.shape[1]
        gap = np.abs(np.arange(corners)[:, None] - np.arange(corners)[None])
        gap = np.minimum(gap, corners - gap)
        nearest = (gap[None] + 1000 * behind[:, None, :]).argmin(axis=2)
        return np.take_along_axis(flat, nearest[..., None].repeat(2, axis=2), axis=1)


def landmarks(who: Character, body: Body, view: View, curves: dict[str, Array]) -> tuple[Array, NDArray[np.bool_]]:
    """The 68 face points [F, 68, 2] in canvas pixels with today's expression, and whether each faces the viewer."""
    face = Face(who, body, view)
    points = np.repeat(LANDMARKS[None], len(face.turn_F33), axis=0)
    points[:, 36:48, 1] = _EYE[1] + (points[:, 36:48, 1] - _EYE[1]) * (1 - 0.85 * curves["blink"])[:, None]
    smile_F, mouth_F = curves["smile"], np.clip(curves["mouth"], 0, 1)
    corner = np.abs(points[:, 48:, 0]) / 0.28
    points[:, 48:, 1] += 0.07 * smile_F[:, None] * corner**2
    points[:, 48:, 0] *= 1 + 0.12 * smile_F[:, None]
    lower = np.zeros(20)
    lower[[7, 8, 9, 10, 11, 17, 18, 19]] = 1
    points[:, 48:, 1] -= 0.2 * mouth_F[:, None] * lower
    lift = np.zeros(68)
    lift[28:31], lift[31:36] = (0.06, 0.12, 0.18), 0.08
    pixels, facing = face.place(face.surface(points, lift))
    return pixels, facing > 0.05


def ear_and_eye_points(who: Character, body: Body, view: View) -> tuple[Array, NDArray[np.bool_]]:
    """Nose, right eye, left eye, right ear, left ear in canvas pixels [F, 5, 2], and whether each faces the viewer."""
    face = Face(who, body, view)
    spots = np.array([(0.0, -0.27), (-_EYE[0], _EYE[1]), _EYE, (-0.99, 0.0), (0.99, 0.0)])
    sphere = face.surface(spots, np.array([0.18, 0.0, 0.0, -0.2, -0.2]))
    pixels, facing = face.place(sphere)
    return pixels, facing > np.array([0.0, 0.05, 0.05, -0.35, -0.35])


def head_parts(who: Character, body: Body, view: View) -> list[Part]:
    """The head over everything but what is in front of it, and the hair that hangs behind."""
    face = Face(who, body, view)
    depth_F = body.joints["head"][:, 2] + 0.052
    skin, hair = who.skin, who.hair
    shaved = who.hair_style == "shaved"
    crown = tint(skin, 0.9) if shaved else hair
    grow = {"curly": 1.24, "shaved": 1.0}.get(who.hair_style, 1.07)
    head = Part("head", depth_F)
    chin = 1.0 if shaved else 0.9
    head.layers += [
        Layer(face.round(1.065), outline(skin)),
        Layer(face.round(1.0), tint(skin, 0.8)),
        Layer(face.round(grow + 0.065, chin), outline(crown)),
        *_ears(face, skin, beside=True),
        Layer(face.round(grow, chin - 0.03), tint(crown, 0.86)),
        Layer(_gleam(face, view, grow), tint(crown, 1.1), solid=False),
    ]
    line = _HAIRLINES[_LINE_OF_STYLE.get(who.hair_style, "short")]
    region, seen_F = face.patch(np.concatenate([_jaw() * (1.0, 1.0), np.array(line)]))
    chin, _ = face.patch(0.93 * np.concatenate([_jaw(), np.array(line)]) + (0, 0.01))
    head.layers += [
        Layer(region, tint(skin, 0.86), shown_F=seen_F),
        Layer(chin + 0.03 * face.high_F[:, None, None] * np.array(view.light), skin, shown_F=seen_F, solid=False),
    ]
    if who.hair_style not in ("long", "curly"):
        head.layers += _ears(face, skin, beside=False)
    parts = [head]
    parts += _hair_behind(who, body, view, face)
    if who.hair_style == "cap":
        parts += _cap(who, view, face, depth_F)
    return parts


def _gleam(face: Face, view: View, grow: float) -> Array:
    spots = face.round(grow * 0.8)
    centre = spots.mean(axis=1, keepdims=True)
    return centre + 0.8 * (spots - centre) + 0.24 * face.wide_F[:, None, None] * np.array(view.light)


def _ears(face: Face, skin: Colour, *, beside: bool) -> list[Layer]:
    """Ears that stick out `beside` the head, or those that lie on the side which is turned to the viewer."""
    layers = []
    for x in (-1.0, 1.0):
        sphere = np.broadcast_to(np.array([[x * 1.0, -0.06, -0.1]]), (len(face.turn_F33), 1, 3))
        spot, facing = face.place(sphere)
        ring = disc(spot[:, 0], 0.24 * face.wide_F, 10, 1.25)
        inner = disc(spot[:, 0], 0.18 * face.wide_F, 10, 1.25)
        shown = (facing[:, 0] > -0.75) & (facing[:, 0] <= 0.3) if beside else facing[:, 0] > 0.3
        layers += [Layer(ring, outline(skin), shown_F=shown), Layer(inner, tint(skin, 0.9), shown_F=shown)]
    return layers


def expression_layers(who: Character, body: Body, view: View, curves: dict[str, Array]) -> list[Layer]:
    """Eyes, brows, nose, mouth and cheeks, to be added to the head."""
    face = Face(who, body, view)
    points, _ = landmarks(who, body, view, curves)
    layers = _cheeks(who, face)
    for start, x in ((36, -_EYE[0]), (42, _EYE[0])):
        layers += _eye(face, points[:, start : start + 6], x, curves)
    shown_F = face.turn_F33[:, 2, 2] > 0.12
    hair = tint(who.skin, 0.5) if who.hair_style == "shaved" else tint(who.hair, 0.85)
    _, brow_z = face.place(face.surface(np.array([(-0.4, 0.33), (0.4, 0.33)])))
    for index, start in enumerate((17, 22)):
        brow = points[:, None, start : start + 5]
        layers.append(Layer(brow, hair, 0.10 * face.wide_F, brow_z[:, index] > 0.22, solid=False))
    nose = np.concatenate([points[:, 31:32], points[:, 33:34], points[:, 35:36]], axis=1)[:, None]
    tip = disc(points[:, 30], 0.13 * face.wide_F, 10)
    layers.append(Layer(tip, tint(who.skin, 0.93), shown_F=shown_F, solid=True))
    layers.append(Layer(nose, tint(who.skin, 0.66), 0.07 * face.wide_F, shown_F, solid=False))
    lips = tuple(int(0.62 * c + 0.38 * r) for c, r in zip(who.skin, (176, 52, 62), strict=True))
    layers.append(Layer(points[:, 48:60], lips, shown_F=shown_F, solid=False))  # type: ignore[arg-type]
    wide_open = shown_F & (curves["mouth"] > 0.12)
    layers.append(Layer(points[:, 60:68], (96, 28, 36), shown_F=wide_open, solid=False))
    return layers


def _cheeks(who: Character, face: Face) -> list[Layer]:
    blush = tuple(int(0.84 * c + 0.16 * r) for c, r in zip(who.skin, (232, 84, 84), strict=True))
    spots, facing = face.place(face.surface(np.array([(-0.52, -0.28), (0.52, -0.28)])))
    return [
        Layer(disc(spots[:, k], 0.19 * face.wide_F, 10, 0.8), blush, shown_F=facing[:, k] > 0.3, solid=False)  # type: ignore[arg-type]
        for k in (0, 1)
    ]


def _eye(face: Face, rim_F62: Array, x: float, curves: dict[str, Array]) -> list[Layer]:
    spot = np.stack([x + 0.05 * curves["gaze"], np.full_like(curves["gaze"], _EYE[1])], axis=-1)[:, None]
    pupil, facing = face.place(face.surface(spot))
    shown = facing[:, 0] > 0.18
    awake = shown & (curves["blink"] < 0.5)
    rim = smooth(rim_F62, 1)
    centre = rim.mean(axis=1, keepdims=True)
    big = centre + 1.25 * (rim - centre)
    glint = pupil[:, 0] + np.array([-0.05, -0.06]) * face.wide_F[:, None]
    return [
        Layer(big, (70, 48, 44), shown_F=shown, solid=False),
        Layer(rim, (252, 252, 250), shown_F=awake, solid=False),
        Layer(disc(pupil[:, 0], 0.115 * face.wide_F, 10, 1.15), (62, 44, 38), shown_F=awake, solid=False),
        Layer(disc(glint, 0.042 * face.wide_F, 6), (255, 255, 255), shown_F=awake, solid=False),
    ]


def _hair_behind(who: Character, body: Body, view: View, face: Face) -> list[Part]:
    turn, centre = body.turns["head"], body.joints["head"]
    chest = body.turns["chest"]
    size = who.head

    def spot(x: float, y: float, z: float) -> Array:
        return centre + turn @ np.array([x, y, z]) * size

    if who.hair_style == "long":
        low = body.joints["collar"] + chest @ np.array([0.0, -0.035, -0.055])
        layers = limb(view, spot(0, 0.0, -0.022), low, (0.068 * size, 0.056 * size), who.hair)
        return [Part("hair_back", np.minimum(centre[:, 2] + turn[:, 2, 2] * -0.06, low[:, 2]), layers)]
    if who.hair_style == "ponytail":
        root, mid = spot(0, 0.045, -0.080), spot(0, -0.01, -0.125)
        low = mid * 0.6 + 0.4 * (body.joints["collar"] + chest @ np.array([0.0, 0.0, -0.10]))
        layers = [*limb(view, root, mid, (0.02, 0.032), who.hair), *limb(view, mid, low, (0.032, 0.014), who.hair)]
        return [Part("hair_back", mid[:, 2] + 0.055, layers)]
    if who.hair_style == "bun":
        place = spot(0, 0.082, -0.045)
        return [Part("hair_back", place[:, 2] + 0.05, limb(view, place, place, (0.036, 0.036), who.hair))]
    return []


def _cap(who: Character, view: View, face: Face, depth_F: Array) -> list[Part]:
    """A dome over the upper half of the head, and a visor where the face looks."""
    colour = CLOTH_COLOURS[who.hat_colour]
    angle = np.broadcast_to(np.linspace(0, np.pi, 12), (len(depth_F), 12))
    # The dome is the head's upper half in its own frame, so it needs no turning but the head's tilt.
    dome = (
        face.centre_F2[:, None]
        + (1.13 * np.cos(angle) * face.wide_F[:, None])[..., None] * face.side_F2[:, None]
        + ((0.30 + 0.84 * np.sin(angle)) * face.high_F[:, None])[..., None] * face.up_F2[:, None]
    )
    visor2 = np.array([(-0.72, 0.36), (-0.4, 0.44), (0.0, 0.47), (0.4, 0.44), (0.72, 0.36)])
    rim, _ = face.place(face.surface(visor2))
    out, facing = face.place(face.surface(visor2 * (0.9, 0.8), np.array([0.25, 0.6, 0.7, 0.6, 0.25])))
    visor = smooth(np.concatenate([rim, out[:, ::-1]], axis=1), 1)
    shown = facing[:, 2] > -0.2
    layers = blob(view, dome, colour, lit=(0.84, 0.84))
    brim = blob(view, visor, tint(colour, 0.86))
    for layer in brim:
        layer.shown_F = shown
    return [Part("hat", depth_F + 1e-3, layers + brim)]
