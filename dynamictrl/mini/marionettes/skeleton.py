"""From joint-angle curves to joints in space: forward kinematics, feet on the ground.

Space: x to the viewer's right, y up from the floor, z towards the viewer; at yaw 0 a figure faces the viewer, so
its left is at +x. Shape suffixes: F frames.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dynamictrl.mini.marionettes.character import Character
from dynamictrl.mini.marionettes.score import SIDES, Motion

Array = NDArray[np.float64]

HEAD_RADII = (0.064, 0.082, 0.072)
"""Half width, half height, half depth of an average head."""
ANKLE_HEIGHT = 0.042
HAND_LENGTH = 0.122

_FINGERS = (
    # root along the thumb's side, root down the palm, length, spread
    (0.021, 0.056, 0.050, 0.16),
    (0.007, 0.059, 0.056, 0.04),
    (-0.007, 0.057, 0.051, -0.08),
    (-0.020, 0.052, 0.041, -0.22),
)


@dataclass
class Body:
    """Where every joint of one figure is, [F, 3] each, and how its parts are turned, [F, 3, 3] each."""

    joints: dict[str, Array] = field(default_factory=dict)
    turns: dict[str, Array] = field(default_factory=dict)
    fingers: dict[str, Array] = field(default_factory=dict)
    """By side, [F, 5, 4, 3], thumb first, from the root to the tip."""

    def shift(self, offset_F3: Array) -> None:
        """Moves the whole figure."""
        for name in self.joints:
            self.joints[name] = self.joints[name] + offset_F3
        for side in self.fingers:
            self.fingers[side] = self.fingers[side] + offset_F3[:, None, None]


def turn_x(angle_F: Array) -> Array:
    """Rotation that tips what is up forward, [F, 3, 3]."""
    return _turn(angle_F, 1, 2)


def turn_y(angle_F: Array) -> Array:
    """Rotation that turns what faces the viewer to the right, [F, 3, 3]."""
    return _turn(angle_F, 2, 0)


def turn_z(angle_F: Array) -> Array:
    """Rotation that tips what is on the right up, [F, 3, 3]."""
    return _turn(angle_F, 0, 1)


def _turn(angle_F: Array, first: int, second: int) -> Array:
    angle_F = np.asarray(angle_F, np.float64)
    turn = np.zeros((len(angle_F), 3, 3))
    turn[:, 3 - first - second, 3 - first - second] = 1
    turn[:, first, first] = turn[:, second, second] = np.cos(angle_F)
    turn[:, second, first] = np.sin(angle_F)
    turn[:, first, second] = -turn[:, second, first]
    return turn


def along(turn_F33: Array, x: float, y: float, z: float) -> Array:
    """A vector of a part's own frame, in space: [F, 3]."""
    return turn_F33 @ np.array([x, y, z])


class _Curves:
    """A motion's curves; one that an action leaves out is zero."""

    def __init__(self, motion: Motion):
        self.motion = motion
        self.zero = np.zeros_like(motion["yaw"])

    def __call__(self, name: str) -> Array:
        return self.motion.get(name, self.zero)


def pose_body(character: Character, motion: Motion) -> Body:
    """The figure in every frame, standing on the floor at x = z = 0 but for the way it walks, jumps and sways."""
    body, curve = Body(), _Curves(motion)
    _pose_trunk(body, character, curve)
    for side in SIDES:
        _pose_arm(body, side, curve)
        _pose_leg(body, character, side, curve)
    for side in SIDES:
        _pose_foot(body, side, curve)
    _stand(body, curve)
    return body


def _pose_trunk(body: Body, who: Character, curve: _Curves) -> None:
    joints, turns = body.joints, body.turns
    root = turn_y(curve("yaw")) @ turn_x(curve("lean")) @ turn_z(curve("lean_side"))
    chest = root @ turn_y(curve("twist")) @ turn_x(curve("chest_pitch")) @ turn_z(curve("chest_roll"))
    head = chest @ turn_y(curve("head_yaw")) @ turn_x(curve("head_pitch")) @ turn_z(curve("head_roll"))
    turns |= {"root": root, "chest": chest, "head": head}
    joints["pelvis"] = np.zeros((len(root), 3))
    joints["waist"] = joints["pelvis"] + along(root, 0, 0.115, 0)
    joints["collar"] = joints["waist"] + along(chest, 0, 0.165, 0)
    joints["head_foot"] = joints["collar"] + along(chest, 0, 0.036, 0.006)
    joints["head"] = joints["head_foot"] + along(head, 0, HEAD_RADII[1] * who.head * 0.86, 0.010)
    for side, sign in (("left", 1), ("right", -1)):
        shrug = 0.03 * np.clip(np.sin(curve(f"{side}_arm_out") - 0.6), 0, 1)
        shoulder = along(chest, sign * who.shoulder, -0.022, 0) + along(chest, 0, 1, 0) * shrug[:, None]
        joints[f"{side}_shoulder"] = joints["collar"] + shoulder
        joints[f"{side}_hip"] = joints["pelvis"] + along(root, sign * who.hip, -0.028, 0)


def _pose_arm(body: Body, side: str, curve: _Curves) -> None:
    sign = 1 if side == "left" else -1
    joints, turns = body.joints, body.turns
    raised = turn_x(-curve(f"{side}_arm_forward")) @ turn_z(sign * curve(f"{side}_arm_out"))
    upper = turns["chest"] @ raised @ turn_y(sign * curve(f"{side}_arm_twist"))
    fore = upper @ turn_x(-np.clip(curve(f"{side}_elbow"), 0.03, 2.5))
    hand = fore @ turn_y(-sign * curve(f"{side}_wrist_twist")) @ turn_x(curve(f"{side}_wrist_bend"))
    joints[f"{side}_elbow"] = joints[f"{side}_shoulder"] + along(upper, 0, -0.163, 0)
    joints[f"{side}_wrist"] = joints[f"{side}_elbow"] + along(fore, 0, -0.146, 0)
    turns[f"{side}_hand"] = hand
    body.fingers[side] = _pose_fingers(joints[f"{side}_wrist"], hand, sign, curve, side)


def _pose_fingers(wrist_F3: Array, hand_F33: Array, sign: int, curve: _Curves, side: str) -> Array:
    curl_F, spread_F = np.clip(curve(f"{side}_curl"), 0, 1.5), curve(f"{side}_spread")
    local = np.zeros((len(wrist_F3), 5, 4, 3))
    for index, (across, down, length, fan) in enumerate(_FINGERS, start=1):
        local[:, index, 0] = (0, -down, across)
        angle_F = curl_F * (1.0 + 0.06 * index)
        for joint, share in ((1, 0.45), (2, 0.31), (3, 0.24)):
            # Palms face inwards, so a finger curls towards -sign * x.
            bend_F = angle_F * (0.55 + 0.45 * joint)
            step = np.stack([-sign * np.sin(bend_F), -np.cos(bend_F), fan * spread_F * np.cos(bend_F)], axis=-1)
            local[:, index, joint] = local[:, index, joint - 1] + length * share * step
    local[:, 0, 0] = (-sign * 0.006, -0.020, 0.020)
    open_F = np.clip(1 - 0.55 * curl_F, 0, 1)
    for joint, share in ((1, 0.4), (2, 0.33), (3, 0.27)):
        reach = np.stack([-sign * (0.25 + 0.5 * (1 - open_F)), -0.85 + 0 * open_F, 0.15 + 0.75 * open_F], axis=-1)
        local[:, 0, joint] = local[:, 0, joint - 1] + 0.052 * share * reach
    return wrist_F3[:, None, None] + np.einsum("fij,fnkj->fnki", hand_F33, local)


def _pose_leg(body: Body, who: Character, side: str, curve: _Curves) -> None:
    sign = 1 if side == "left" else -1
    joints, turns = body.joints, body.turns
    raised = turn_x(-curve(f"{side}_leg_forward")) @ turn_z(sign * curve(f"{side}_leg_out"))
    # The knee points where the toes do, so that a wide squat looks like one.
    thigh = turns["root"] @ raised @ turn_y(0.6 * sign * curve(f"{side}_toe_out"))
    shin = thigh @ turn_x(np.clip(curve(f"{side}_knee"), 0.02, 2.4))
    joints[f"{side}_knee"] = joints[f"{side}_hip"] + along(thigh, 0, -0.232 * who.leg, 0)
    joints[f"{side}_ankle"] = joints[f"{side}_knee"] + along(shin, 0, -0.222 * who.leg, 0)
    turns[f"{side}_shin"] = shin


def _pose_foot(body: Body, side: str, curve: _Curves) -> None:
    """Flat on the floor, and at a right angle to the shin where the foot is well off the floor."""
    sign = 1 if side == "left" else -1
    joints = body.joints
    floor_F = np.minimum(joints["left_ankle"][:, 1], joints["right_ankle"][:, 1])
    shin_F33 = body.turns[f"{side}_shin"]
    heading = turn_y(curve("yaw") + sign * curve(f"{side}_toe_out"))
    forward = np.swapaxes(heading, 1, 2) @ shin_F33
    pitch_F = np.arctan2(forward[:, 2, 1], forward[:, 1, 1])
    lift_F = np.clip((joints[f"{side}_ankle"][:, 1] - floor_F - 0.005) / 0.1, 0, 1)
    hang_F = np.clip(pitch_F + 0.25, -1.0, 1.2) * lift_F * lift_F * (3 - 2 * lift_F)
    foot = heading @ turn_x(hang_F + curve(f"{side}_foot_pitch"))
    ankle = joints[f"{side}_ankle"]
    joints[f"{side}_heel"] = ankle + along(foot, 0, -ANKLE_HEIGHT, -0.032)
    joints[f"{side}_big_toe"] = ankle + along(foot, -sign * 0.012, -ANKLE_HEIGHT, 0.098)
    joints[f"{side}_small_toe"] = ankle + along(foot, sign * 0.022, -ANKLE_HEIGHT, 0.080)


def _stand(body: Body, curve: _Curves) -> None:
    """Puts the lowest foot on the floor, and carries a walker on by what the standing foot would slip."""
    soles = np.stack([body.joints[f"{side}_{part}"] for side in SIDES for part in ("heel", "big_toe")], axis=1)
    offset = np.zeros_like(body.joints["pelvis"])
    offset[:, 1] = curve("jump") - soles[..., 1].min(axis=1)
    offset[:, 0] = curve("sway")
    if np.any(curve("travel")):
        ankles = np.stack([body.joints[f"{side}_ankle"] for side in SIDES], axis=1)
        standing = ankles[..., 1].argmin(axis=1)
        slip = np.diff(ankles, axis=0)
        chosen = np.take_along_axis(slip, standing[:-1, None, None].repeat(3, axis=2), axis=1)[:, 0]
        offset[1:, 0] -= np.cumsum(chosen[:, 0])
        offset[1:, 2] -= np.cumsum(chosen[:, 2])
    body.shift(offset)
