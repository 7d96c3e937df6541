"""A marionette's trunk, limbs, hands, feet and clothes as painted parts.

Shape suffixes: F frames, K corners.
"""

from __future__ import annotations

import numpy as np

from dynamictrl.mini.marionettes.character import CLOTH_COLOURS, Character, Colour
from dynamictrl.mini.marionettes.head import expression_layers, head_parts
from dynamictrl.mini.marionettes.score import SIDES, Motion
from dynamictrl.mini.marionettes.shapes import Array, Layer, Part, View, blob, disc, limb, outline, smooth, tint
from dynamictrl.mini.marionettes.skeleton import Body

PART_NAMES = (
    "thigh_left", "thigh_right", "shin_left", "shin_right", "shoe_left", "shoe_right",
    "trousers_left", "trousers_right", "hips", "torso", "neck",
    "upper_arm_left", "upper_arm_right", "forearm_left", "forearm_right",
    "sleeve_left", "sleeve_right", "long_sleeve_left", "long_sleeve_right",
    "hand_left", "hand_right", "head", "hair_back", "hat", "skirt",
)  # fmt: skip
CODES = {name: index + 1 for index, name in enumerate(PART_NAMES)}
"""What the label map holds for each part of the first person."""

CLOTHES = frozenset(
    name
    for name in PART_NAMES
    if name.startswith(("shoe", "trousers", "sleeve", "long_sleeve")) or name in ("hips", "torso", "skirt", "hat")
)


def between(a: Array, b: Array, share: float) -> Array:
    return a + share * (b - a)


def figure_parts(who: Character, body: Body, view: View, motion: Motion) -> list[Part]:
    """Everything that one figure is painted with."""
    head = head_parts(who, body, view)
    head[0].layers += expression_layers(who, body, view, motion)
    parts = [*_trunk(who, body, view), *head]
    for side in SIDES:
        parts += _leg(who, body, view, side)
        parts += _arm(who, body, view, side)
    return parts


def _section(body: Body, view: View, centre_F3: Array, turn: str, half: tuple[float, float]) -> Array:
    """Left and right edge of the trunk at one height, on the canvas: [F, 2, 2]."""
    turn_F33 = body.turns[turn]
    spine = view.project(centre_F3 + turn_F33[:, :, 1] * 0.05) - view.project(centre_F3)
    spine /= np.maximum(np.linalg.norm(spine, axis=-1, keepdims=True), 1e-6)
    across = np.stack([-spine[:, 1], spine[:, 0]], axis=-1)
    wide_F = np.hypot(half[0] * turn_F33[:, 0, 0], half[1] * turn_F33[:, 0, 2])
    reach = (wide_F * view.scale_F * view.near(centre_F3))[:, None] * across
    centre = view.project(centre_F3)
    return np.stack([centre - reach, centre + reach], axis=1)


def _trunk(who: Character, body: Body, view: View) -> list[Part]:
    j, build = body.joints, who.build
    up = body.turns["chest"][:, :, 1]
    shoulder = who.shoulder
    hem = -0.045 if who.top in ("jumper", "t-shirt") else -0.02
    sections = [
        (j["pelvis"] + body.turns["root"][:, :, 1] * hem, "root", (who.hip + 0.042 * build, 0.062 * build)),
        (j["pelvis"] + body.turns["root"][:, :, 1] * 0.03, "root", (who.hip + 0.030 * build, 0.058 * build)),
        (j["waist"], "chest", (0.078 * build, 0.055 * build)),
        (between(j["waist"], j["collar"], 0.55), "chest", (shoulder - 0.012, 0.066 * build)),
        (j["collar"] - 0.012 * up, "chest", (shoulder + 0.014, 0.056 * build)),
        (j["collar"] + 0.010 * up, "chest", (0.055, 0.042)),
    ]
    edges = [_section(body, view, *section) for section in sections]
    left = np.stack([edge[:, 0] for edge in edges], axis=1)
    right = np.stack([edge[:, 1] for edge in edges], axis=1)
    shape = smooth(np.concatenate([left, right[:, ::-1]], axis=1))
    colour = CLOTH_COLOURS[who.top_colour]
    torso = Part(
        "torso", j["waist"][:, 2] * 0.3 + j["collar"][:, 2] * 0.7 + 0.04, blob(view, shape, colour, lit=(0.86, 0.97))
    )
    torso.layers += _pattern(who, body, view, left, right)
    neck_r = 0.034 * build**0.5
    neck = Part(
        "neck", j["collar"][:, 2] + 0.015, limb(view, j["collar"], j["head"], (neck_r, neck_r), tint(who.skin, 0.9))
    )
    torso.layers += _neckline(who, body, view, neck_r)
    return [neck, torso, *_hips(who, body, view)]


def _neckline(who: Character, body: Body, view: View, radius: float) -> list[Layer]:
    """Skin under the chin, seen only from the front."""
    up, ahead = body.turns["chest"][:, :, 1], body.turns["chest"][:, :, 2]
    spot = body.joints["collar"] + 0.012 * up + 0.02 * ahead
    drop = body.joints["collar"] - 0.022 * up + 0.05 * ahead
    front_F = ahead[:, 2] > 0.25
    return [
        Layer(layer.points, layer.colour, shown_F=front_F, solid=False, convex=True)
        for layer in limb(view, spot, drop, (radius * 0.95, radius * 0.5), tint(who.skin, 0.94), line=0.003)[:2]
    ]


def _pattern(who: Character, body: Body, view: View, left: Array, right: Array) -> list[Layer]:
    """Stripes, a badge or a button row on the chest."""
    ahead_F = body.turns["chest"][:, 2, 2]
    if who.pattern == "striped":
        layers = []
        for low, high in ((0.9, 1.5), (2.1, 2.55), (3.05, 3.5)):
            corners = [_between_rows(left, low), _between_rows(left, high)]
            corners += [_between_rows(right, high), _between_rows(right, low)]
            stripe = np.stack(corners, axis=1)
            centre = stripe.mean(axis=1, keepdims=True)
            layers.append(Layer(centre + 0.97 * (stripe - centre), tint(who.accent, 0.94), solid=False))
        return layers
    j, ahead = body.joints, body.turns["chest"][:, :, 2]
    if who.pattern == "badge":
        spot = between(j["waist"], j["collar"], 0.55) + 0.05 * ahead
        ring = disc(view.project(spot), view.length(0.034, spot))
        inner = disc(view.project(spot), view.length(0.020, spot))
        shown = ahead_F > 0.3
        return [
            Layer(ring, who.accent, shown_F=shown, solid=False),
            Layer(inner, tint(who.accent, 1.45), shown_F=shown, solid=False),
        ]
    if who.pattern == "collar":
        top, low = j["collar"] + 0.045 * ahead, j["pelvis"] + 0.055 * body.turns["root"][:, :, 2]
        row = np.stack([view.project(between(low, top, s)) for s in (0.08, 0.5, 0.92)], axis=1)[:, None]
        dark = outline(CLOTH_COLOURS[who.top_colour])
        return [Layer(row, dark, 0.006 * view.scale_F, ahead_F > 0.2, solid=False)]
    return []


def _between_rows(rows: Array, place: float) -> Array:
    low = int(place)
    return rows[:, low] + (place - low) * (rows[:, low + 1] - rows[:, low])


def _hips(who: Character, body: Body, view: View) -> list[Part]:
    j, build = body.joints, who.build
    colour = CLOTH_COLOURS[who.bottom_colour]
    radius = 0.056 * build
    inner = [between(j[f"{side}_hip"], j["pelvis"], 0.25) for side in SIDES]
    # The seat's line lies behind the thighs and its cloth before them, so that trousers have no seam there.
    seat = limb(view, inner[0], inner[1], (radius, radius), colour)
    behind_F = np.minimum(j["left_hip"][:, 2], j["right_hip"][:, 2]) - 0.03
    belly = limb(view, j["pelvis"], j["pelvis"] + 0.05 * body.turns["root"][:, :, 1], (radius, radius), colour, line=0)
    parts = [
        Part("hips", behind_F, seat),
        Part("hips", j["pelvis"][:, 2] + 0.034, seat[2:3] + belly[:2]),
    ]
    if who.bottom == "skirt":
        parts.append(_skirt(who, body, view, colour))
    return parts


def _skirt(who: Character, body: Body, view: View, colour: Colour) -> Part:
    j, build = body.joints, who.build
    hem = [between(j[f"{side}_hip"], j[f"{side}_knee"], 0.82) for side in SIDES]
    spots = np.stack([view.project(h) for h in hem], axis=1)
    order = spots[..., 0].argsort(axis=1)[..., None].repeat(2, axis=2)
    spots = np.take_along_axis(spots, order, axis=1)
    flare = (0.088 * build * view.scale_F)[:, None] * np.array([1.0, 0.0])
    waist = _section(
        body, view, j["pelvis"] + 0.055 * body.turns["root"][:, :, 1], "root", (who.hip + 0.036 * build, 0.06 * build)
    )
    waist = np.take_along_axis(waist, waist[..., 0].argsort(axis=1)[..., None].repeat(2, axis=2), axis=1)
    low = np.stack([spots[:, 1] + flare, spots.mean(axis=1), spots[:, 0] - flare], axis=1)
    low[:, 1, 1] = low[:, :, 1].max(axis=1) + 0.008 * view.scale_F
    shape = np.concatenate([waist, low], axis=1)
    # Corner cutting shrinks a shape; corners said twice stay where they are.
    shape = smooth(np.repeat(shape, 2, axis=1))
    thighs = [(j[f"{side}_hip"][:, 2] + j[f"{side}_knee"][:, 2]) / 2 for side in SIDES]
    depth_F = np.maximum(np.maximum(thighs[0], thighs[1]) + 4e-3, j["pelvis"][:, 2] + 0.036)
    return Part("skirt", depth_F, blob(view, shape, colour, lit=(0.86, 0.97)))


def _leg(who: Character, body: Body, view: View, side: str) -> list[Part]:
    j, build = body.joints, who.build
    hip, knee, ankle = j[f"{side}_hip"], j[f"{side}_knee"], j[f"{side}_ankle"]
    cloth = CLOTH_COLOURS[who.bottom_colour]
    covered = who.bottom == "trousers"
    upper = cloth if covered else who.skin
    wide = 1.06 if covered else 1.0
    radii = (0.055 * build * wide, 0.043 * build * wide, 0.026 * build * (1.25 if covered else 1.0))
    thigh = limb(view, between(hip, knee, 0.06), knee, radii[:2], upper)
    shin = limb(view, knee, ankle, radii[1:], upper)
    shin = _joined(view, shin, knee, hip, radii[1], upper)
    thigh_F, shin_F = (hip[:, 2] + knee[:, 2]) / 2, (knee[:, 2] + ankle[:, 2]) / 2
    shin_F = np.where(shin_F > thigh_F - 0.05, np.maximum(shin_F, thigh_F + 1e-3), shin_F)
    names = ("trousers", "trousers") if covered else ("thigh", "shin")
    parts = [
        Part(f"{names[0]}_{side}", thigh_F, thigh),
        Part(f"{names[1]}_{side}", shin_F, shin),
        _shoe(who, body, view, side),
    ]
    if who.bottom == "shorts":
        end = between(hip, knee, 0.62)
        parts.append(
            Part(f"trousers_{side}", thigh_F + 2e-3, limb(view, hip, end, (0.060 * build, 0.057 * build), cloth))
        )
    return parts


def _shoe(who: Character, body: Body, view: View, side: str) -> Part:
    j = body.joints
    colour = CLOTH_COLOURS[who.shoe_colour]
    ankle, heel, big, small = (j[f"{side}_{name}"] for name in ("ankle", "heel", "big_toe", "small_toe"))
    lift = np.array([0.0, 0.022, 0.0])
    toe = (big + small) / 2
    front = between(heel, toe, 0.84)
    sole = limb(
        view, heel + lift * 0.55, front + lift * 0.55, (0.021, 0.019), tint(colour, 0.55 if sum(colour) > 500 else 1.4)
    )
    upper = limb(view, between(heel, front, 0.1) + lift, front + lift, (0.026, 0.021), colour, line=0)
    instep = limb(
        view, between(heel, ankle, 0.75), between(front, ankle, 0.35) + lift * 0.3, (0.024, 0.020), colour, line=0
    )
    return Part(f"shoe_{side}", (ankle[:, 2] + toe[:, 2]) / 2 - 0.02, sole[:2] + instep[:1] + upper)


def _joined(view: View, lower: list[Layer], joint: Array, root: Array, radius: float, colour: Colour) -> list[Layer]:
    """A lower limb whose line does not cut across the upper limb: the upper one is painted over it at the joint."""
    shade, *lit = limb(view, between(joint, root, 0.2), joint, (radius * 1.06, radius), colour, line=0)
    return [*lower[:2], shade, *lit, *lower[2:]]


def _arm(who: Character, body: Body, view: View, side: str) -> list[Part]:
    j, build = body.joints, who.build
    shoulder, elbow, wrist = j[f"{side}_shoulder"], j[f"{side}_elbow"], j[f"{side}_wrist"]
    cloth = CLOTH_COLOURS[who.top_colour]
    long = who.sleeve == "long"
    colour, wide = (cloth, 1.12) if long else (who.skin, 1.0)
    radii = (0.037 * build * wide, 0.029 * build * wide, 0.021 * build * (1.2 if long else 1.0))
    upper_F, fore_F = (shoulder[:, 2] + elbow[:, 2]) / 2 + 0.055, (elbow[:, 2] + wrist[:, 2]) / 2 + 0.059
    # A forearm overlaps its upper arm from the front unless it is clearly behind.
    fore_F = np.where(fore_F > upper_F - 0.02, np.maximum(fore_F, upper_F + 1e-3), fore_F)
    upper = limb(view, shoulder, elbow, radii[:2], colour)
    fore = limb(view, elbow, wrist, radii[1:], colour)
    fore = _joined(view, fore, elbow, shoulder, radii[1], colour)
    names = ("long_sleeve", "long_sleeve") if long else ("upper_arm", "forearm")
    parts = [
        Part(f"{names[0]}_{side}", upper_F, upper),
        Part(f"{names[1]}_{side}", fore_F, fore),
        _hand(who, body, view, side, fore_F - 1e-3),
    ]
    blend = _shoulder_blend(view, j["collar"], shoulder, radii[0], cloth)
    if long:
        parts[0].layers += blend
    if who.sleeve == "short":
        end = between(shoulder, elbow, 0.55)
        sleeve = limb(view, shoulder, end, (0.042 * build, 0.041 * build), cloth) + blend
        parts.append(Part(f"sleeve_{side}", upper_F + 5e-4, sleeve))
    return parts


def _shoulder_blend(view: View, collar: Array, shoulder: Array, radius: float, cloth: Colour) -> list[Layer]:
    """Cloth over the line between a sleeve and the chest, so that the shirt is one piece."""
    inner = between(shoulder, collar, 0.42) - np.array([0.0, 0.012, 0.0])
    return limb(view, inner, between(shoulder, inner, 0.1), (radius * 0.7, radius * 0.88), cloth, line=0)[1:2]


def _hand(who: Character, body: Body, view: View, side: str, depth_F: Array) -> Part:
    fingers = body.fingers[side]
    wrist = body.joints[f"{side}_wrist"]
    thick = 0.0155 * view.scale_F * view.near(wrist)
    edge = thick + 0.006 * view.scale_F
    roots = fingers[:, 1:, 0]
    palm3 = np.concatenate(
        [between(wrist[:, None], roots[:, :1], 0.1), roots, between(wrist[:, None], roots[:, 3:], 0.1)], axis=1
    )
    palm = view.project(palm3)
    heel = view.project(wrist)
    lines = view.project(fingers)
    thumb = np.stack([between(heel, lines[:, 0, 0], 0.4), *(lines[:, 0, k] for k in range(4))], axis=1)[:, None]
    strokes = lines[:, 1:]
    ring = np.concatenate([palm, palm[:, :1]], axis=1)[:, None]
    dark, skin = tint(outline(who.skin), 1.05), who.skin
    centre = between(heel, palm[:, 2:4].mean(axis=1), 0.9)
    return Part(
        f"hand_{side}",
        np.maximum(depth_F, fingers[:, :, 2, 2].mean(axis=1) + 0.055),
        [
            Layer(ring, dark, edge),
            Layer(thumb, dark, edge),
            Layer(strokes, dark, edge),
            Layer(palm, tint(skin, 0.95)),
            Layer(ring, tint(skin, 0.95), thick),
            Layer(strokes, skin, thick),
            Layer(thumb, tint(skin, 1.06), thick),
            Layer(disc(centre, 0.35 * thick), tint(skin, 1.1), solid=False),
        ],
    )
