"""What a marionette does: joint-angle curves over time, by the action's name.

A motion is a dict of curves [F], angles in radians, names as `marionettes_skeleton.pose_body` reads them. Curves are
sums of a few harmonics, so that every motion is smooth at any frame rate.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dynamictrl.mini.marionettes.score import SIDES, TAU, Curve, Motion, Score, at_ease, raise_open_hand, step_legs


def _wave(score: Score) -> Motion:
    motion = at_ease(score)
    acting, _ = score.sides()
    both = score.rng.uniform() < 0.25
    for side in SIDES if both else (acting,):
        motion[f"{side}_arm_out"] = score.level(score.rng.uniform(1.3, 1.9)) + 0.1 * score.swing(1.6, 0.2)
        motion[f"{side}_arm_twist"] = score.level(1.5)
        motion[f"{side}_elbow"] = 1.15 - (motion[f"{side}_arm_out"].mean() - 1.6) + 0.55 * score.size * score.swing(1.6)
        motion[f"{side}_wrist_bend"] = 0.25 * score.swing(1.6, -0.15)
        raise_open_hand(motion, side, score)
    motion["chest_roll"] = motion["chest_roll"] + 0.04 * score.swing(0.8)
    motion["smile"] = score.level(1.0)
    motion["mouth"] = 0.5 * score.pulse(0.5)
    return motion


def _walk(score: Score) -> Motion:
    motion = at_ease(score)
    hertz = 0.95
    step_legs(motion, score, hertz, 0.42 * score.size, 0.85)
    for side, shift in (("left", 0.5), ("right", 0.0)):
        motion[f"{side}_arm_forward"] = 0.45 * score.size * score.swing(hertz, shift)
        motion[f"{side}_elbow"] = 0.35 + 0.2 * score.pulse(hertz, shift + 0.25)
        motion[f"{side}_arm_out"] = score.level(0.12)
    motion["lean"] = score.level(0.04)
    motion["twist"] = 0.12 * score.swing(hertz)
    motion["travel"] = score.level(1.0)
    return motion


def _march(score: Score) -> Motion:
    motion = at_ease(score)
    hertz = 0.85
    step_legs(motion, score, hertz, 0.3, 1.3)
    for side, shift in (("left", 0.0), ("right", 0.5)):
        motion[f"{side}_leg_forward"] = 1.15 * score.size * score.pulse(hertz, shift, 1.4)
        motion[f"{side}_knee"] = 0.1 + 1.3 * score.pulse(hertz, shift, 1.4)
        motion[f"{side}_arm_forward"] = 0.8 * score.swing(hertz, shift + 0.25)
        motion[f"{side}_elbow"] = score.level(1.1)
        motion[f"{side}_curl"] = score.level(1.2)
    return motion


def _dance(score: Score) -> Motion:
    motion = at_ease(score)
    hertz = 1.0
    style = int(score.rng.integers(3))
    motion["lean_side"] = 0.09 * score.size * score.swing(hertz / 2)
    motion["chest_roll"] = -0.16 * score.size * score.swing(hertz / 2)
    motion["twist"] = 0.25 * score.swing(hertz / 2, 0.1)
    motion["head_roll"] = 0.14 * score.swing(hertz / 2, 0.1)
    motion["sway"] = 0.05 * score.swing(hertz / 2)
    motion["jump"] = 0.015 * score.pulse(hertz)
    for side, shift in (("left", 0.0), ("right", 0.5)):
        bounce = score.pulse(hertz, 0.0)
        step = score.pulse(hertz / 2, shift, 2.0)
        motion[f"{side}_knee"] = 0.25 + 0.25 * bounce + 0.6 * step
        motion[f"{side}_leg_forward"] = 0.14 + 0.14 * bounce + 0.45 * step
        motion[f"{side}_leg_out"] = 0.13 + 0.08 * step
        if style == 0:
            motion[f"{side}_arm_out"] = 1.7 + 0.7 * score.swing(hertz / 2, shift)
            motion[f"{side}_arm_twist"] = score.level(1.4)
            motion[f"{side}_elbow"] = 0.6 + 0.4 * score.swing(hertz, shift)
            raise_open_hand(motion, side, score)
        elif style == 1:
            motion[f"{side}_arm_out"] = 1.35 + 0.35 * score.swing(hertz / 2, shift + 0.1)
            motion[f"{side}_arm_twist"] = 0.9 * score.swing(hertz / 2, shift)
            motion[f"{side}_elbow"] = 0.7 + 0.5 * score.swing(hertz / 2, shift + 0.25)
            motion[f"{side}_wrist_bend"] = 0.4 * score.swing(hertz / 2, shift + 0.4)
        else:
            motion[f"{side}_arm_out"] = score.level(0.45)
            motion[f"{side}_arm_forward"] = 0.7 + 0.5 * score.swing(hertz, shift)
            motion[f"{side}_elbow"] = 1.5 + 0.3 * score.swing(hertz, shift + 0.2)
            motion[f"{side}_curl"] = score.level(1.1)
    motion["smile"] = score.level(1.0)
    motion["mouth"] = 0.8 * score.pulse(hertz / 4, 0.3)
    return motion


def _squat(score: Score) -> Motion:
    motion = at_ease(score)
    down = score.pulse(0.4, 0.0, 1.2) * score.size
    for side in SIDES:
        motion[f"{side}_leg_forward"] = 0.05 + 1.45 * down
        motion[f"{side}_knee"] = 0.1 + 1.85 * down
        motion[f"{side}_leg_out"] = 0.16 + 0.3 * down
        motion[f"{side}_toe_out"] = score.level(0.5)
        motion[f"{side}_arm_forward"] = 0.1 + 1.3 * down
        motion[f"{side}_elbow"] = score.level(0.25)
        motion[f"{side}_wrist_twist"] = score.level(0.8)
    motion["lean"] = 0.45 * down
    motion["head_pitch"] = motion["head_pitch"] - 0.3 * down
    return motion


def _jumping_jacks(score: Score) -> Motion:
    motion = at_ease(score)
    hertz = 0.9
    open_ = score.pulse(hertz)
    motion["jump"] = 0.07 * score.pulse(2 * hertz)
    for side in SIDES:
        motion[f"{side}_arm_out"] = 0.2 + 2.3 * score.size**0.5 * open_
        motion[f"{side}_arm_twist"] = score.level(1.2)
        motion[f"{side}_elbow"] = 0.25 + 0.2 * open_
        motion[f"{side}_leg_out"] = 0.05 + 0.38 * open_
        motion[f"{side}_knee"] = 0.1 + 0.2 * score.pulse(2 * hertz, 0.5)
        motion[f"{side}_leg_forward"] = 0.05 + 0.1 * score.pulse(2 * hertz, 0.5)
        raise_open_hand(motion, side, score)
    motion["mouth"] = score.level(0.4)
    return motion


def _jump(score: Score) -> Motion:
    motion = at_ease(score)
    hertz = 0.65
    crouch = score.pulse(hertz, 0.0, 2.0)
    air = score.pulse(hertz, 0.42, 3.0)
    motion["jump"] = 0.2 * score.size * air
    motion["lean"] = 0.3 * crouch
    for side in SIDES:
        motion[f"{side}_leg_forward"] = 0.05 + 0.8 * crouch + 0.3 * air
        motion[f"{side}_knee"] = 0.1 + 1.3 * crouch + 0.6 * air
        motion[f"{side}_arm_forward"] = -0.6 * crouch + 1.9 * air
        motion[f"{side}_arm_out"] = 0.2 + 0.5 * air
        motion[f"{side}_elbow"] = 0.4 + 0.4 * crouch
    motion["mouth"] = 0.7 * air
    return motion


def _turn(score: Score) -> Motion:
    motion = at_ease(score)
    direction = -1.0 if score.mirrored else 1.0
    motion["turn"] = direction * TAU * 0.22 * score.tempo * score.times + 0.15 * score.swing(0.44)
    step_legs(motion, score, 0.9, 0.12, 0.55)
    for side, shift in (("left", 0.0), ("right", 0.5)):
        motion[f"{side}_leg_out"] = score.level(0.07)
        motion[f"{side}_arm_out"] = 0.55 + 0.25 * score.swing(0.45, shift)
        motion[f"{side}_elbow"] = score.level(0.5)
    return motion


def _stretch(score: Score) -> Motion:
    motion = at_ease(score)
    up = score.pulse(0.3, 0.1, 0.8)
    side_bend = score.swing(0.3)
    for side in SIDES:
        motion[f"{side}_arm_out"] = 0.25 + 2.55 * up
        motion[f"{side}_arm_twist"] = 0.8 * up
        motion[f"{side}_elbow"] = 0.3 + 0.25 * (1 - up)
        raise_open_hand(motion, side, score)
    motion["chest_roll"] = 0.3 * score.size * side_bend
    motion["lean_side"] = -0.08 * side_bend
    motion["head_pitch"] = motion["head_pitch"] - 0.2 * up
    return motion


def _box(score: Score) -> Motion:
    motion = at_ease(score)
    hertz = 0.9
    motion["jump"] = 0.012 * score.pulse(2 * hertz)
    for side, shift, sign in (("left", 0.0, 1.0), ("right", 0.5, -1.0)):
        punch = score.pulse(hertz, shift, 3.0) * score.size
        motion[f"{side}_arm_forward"] = 0.65 + 0.95 * punch
        motion[f"{side}_arm_out"] = 0.35 - 0.2 * punch
        motion[f"{side}_arm_twist"] = score.level(-0.15)
        motion[f"{side}_elbow"] = 2.1 - 1.9 * punch
        motion[f"{side}_curl"] = score.level(1.35)
        motion[f"{side}_knee"] = 0.35 + 0.1 * score.pulse(2 * hertz)
        motion[f"{side}_leg_forward"] = score.level(0.2 + 0.14 * sign)
        motion[f"{side}_leg_out"] = score.level(0.16)
        motion["twist"] = motion.get("twist", score.level(0.0)) - sign * 0.35 * punch
    motion["smile"] = score.level(-0.2)
    return motion


def _clap(score: Score) -> Motion:
    motion = at_ease(score)
    apart = score.pulse(1.5)
    height = score.rng.uniform(0.5, 1.2)
    for side in SIDES:
        motion[f"{side}_arm_forward"] = score.level(height)
        motion[f"{side}_arm_out"] = 0.25 + 0.2 * apart
        motion[f"{side}_arm_twist"] = -0.55 + 0.35 * apart
        motion[f"{side}_elbow"] = score.level(1.15)
        motion[f"{side}_wrist_twist"] = score.level(0.0)
        motion[f"{side}_curl"] = score.level(0.08)
        motion[f"{side}_knee"] = 0.12 + 0.1 * score.pulse(1.5)
        motion[f"{side}_leg_forward"] = 0.07 + 0.05 * score.pulse(1.5)
    motion["smile"] = score.level(1.0)
    return motion


def _bow(score: Score) -> Motion:
    motion = at_ease(score)
    down = score.pulse(0.35, 0.0, 1.3) * score.size
    motion["lean"] = 0.55 * down
    motion["chest_pitch"] = 0.55 * down
    motion["head_pitch"] = 0.35 * down
    acting, _ = score.sides()
    motion[f"{acting}_arm_twist"] = -0.9 * down
    motion[f"{acting}_elbow"] = 0.3 + 1.4 * down
    for side in SIDES:
        motion[f"{side}_leg_forward"] = 0.03 + 0.5 * down
    return motion


def _kick(score: Score) -> Motion:
    motion = at_ease(score)
    acting, other = score.sides()
    kick = score.pulse(0.55, 0.0, 2.5) * score.size
    motion[f"{acting}_leg_forward"] = 0.05 + 1.25 * kick
    motion[f"{acting}_knee"] = 0.1 + 1.0 * score.pulse(0.55, 0.12, 2.5)
    motion[f"{other}_knee"] = 0.12 + 0.15 * kick
    motion[f"{other}_leg_forward"] = 0.06 + 0.08 * kick
    motion["lean"] = -0.16 * kick
    motion[f"{other}_arm_forward"] = 0.9 * kick
    motion[f"{acting}_arm_forward"] = -0.5 * kick
    for side in SIDES:
        motion[f"{side}_arm_out"] = 0.3 + 0.45 * kick
        motion[f"{side}_elbow"] = score.level(0.7)
    return motion


def _talk(score: Score) -> Motion:
    motion = at_ease(score)
    for side in SIDES:
        motion[f"{side}_arm_forward"] = 0.35 + score.drift(0.35)
        motion[f"{side}_arm_out"] = 0.3 + score.drift(0.15)
        motion[f"{side}_arm_twist"] = -0.1 + score.drift(0.35)
        motion[f"{side}_elbow"] = 1.3 + score.drift(0.6)
        motion[f"{side}_wrist_twist"] = score.drift(0.8)
        motion[f"{side}_curl"] = 0.3 + score.drift(0.3)
    motion["mouth"] = np.clip(score.pulse(2.2) * (0.6 + score.drift(0.5)), 0, 1)
    motion["head_pitch"] = motion["head_pitch"] + 0.06 * score.swing(0.9)
    return motion


ACTIONS: dict[str, tuple[str, Callable[[Score], Motion]]] = {
    "walk": ("walking", _walk),
    "wave": ("waving", _wave),
    "dance": ("dancing", _dance),
    "squat": ("doing squats", _squat),
    "jumping_jacks": ("doing jumping jacks", _jumping_jacks),
    "jump": ("jumping", _jump),
    "turn": ("turning around", _turn),
    "stretch": ("stretching", _stretch),
    "box": ("boxing", _box),
    "clap": ("clapping", _clap),
    "bow": ("bowing", _bow),
    "kick": ("kicking", _kick),
    "march": ("marching on the spot", _march),
    "talk": ("talking with both hands", _talk),
}
"""Name of an action to how a caption says it and what makes its curves."""


def perform(rng: np.random.Generator, action: str, times: Curve) -> Motion:
    """The curves of one performance at `times` [F] seconds, with the way the figure faces as `yaw`."""
    score = Score(rng, times)
    motion = ACTIONS[action][1](score)
    if action == "walk":
        facing = rng.choice([-1.0, 1.0]) * rng.uniform(0.5, 1.45)
    elif action == "turn":
        facing = rng.uniform(-np.pi, np.pi)
    else:
        facing = rng.normal(0, 0.35)
    motion["yaw"] = facing + score.drift(0.06) + motion.pop("turn", 0.0)
    return motion
