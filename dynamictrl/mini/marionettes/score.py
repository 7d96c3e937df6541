"""What every performance of a marionette is composed from: beats, swings, drifts, and standing at ease."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Curve = NDArray[np.float64]
Motion = dict[str, Curve]

SIDES = ("left", "right")
TAU = 2 * np.pi


class Score:
    """The random choices of one performance: tempo, phase, size, and how they make curves."""

    def __init__(self, rng: np.random.Generator, times: Curve):
        self.rng = rng
        self.times = times
        self.tempo = float(rng.uniform(0.85, 1.2))
        self.phase = float(rng.uniform(0, TAU))
        self.size = float(rng.uniform(0.8, 1.15))
        self.mirrored = bool(rng.integers(2))

    def beat(self, hertz: float, shift: float = 0.0) -> Curve:
        """The angle of a steady beat, radians; `shift` is a share of one beat."""
        return TAU * (hertz * self.tempo * self.times + shift) + self.phase

    def swing(self, hertz: float, shift: float = 0.0) -> Curve:
        """-1..1, a sine."""
        return np.sin(self.beat(hertz, shift))

    def pulse(self, hertz: float, shift: float = 0.0, sharpness: float = 1.0) -> Curve:
        """0..1, at rest between smooth strokes."""
        return (0.5 - 0.5 * np.cos(self.beat(hertz, shift))) ** sharpness

    def level(self, value: float) -> Curve:
        return np.full_like(self.times, value)

    def drift(self, amount: float) -> Curve:
        """Slow, aimless movement within about +-amount."""
        hertz, phases = self.rng.uniform(0.1, 0.5, 3), self.rng.uniform(0, TAU, 3)
        waves = [np.sin(TAU * h * self.times + p) for h, p in zip(hertz, phases, strict=True)]
        return amount * np.sum(waves, axis=0) / 2

    def sides(self) -> tuple[str, str]:
        """The acting side and the other one."""
        return ("right", "left") if self.mirrored else ("left", "right")


def at_ease(score: Score) -> Motion:
    """Standing relaxed and breathing: what every action starts from."""
    rng = score.rng
    motion: Motion = {
        "head_yaw": score.drift(0.22),
        "head_pitch": score.drift(0.08),
        "head_roll": score.drift(0.07),
        "chest_roll": score.drift(0.03),
        "chest_pitch": 0.02 + 0.012 * score.swing(0.3) + score.drift(0.02),
        "smile": score.level(rng.uniform(0.2, 1.0)) + score.drift(0.2),
        "mouth": score.level(0.0),
        "blink": np.exp(-((((score.times + rng.uniform(0, 2.6)) % 2.6) - 1.3) ** 2) / 0.006),
        "gaze": score.drift(0.5),
    }
    for side in SIDES:
        motion |= {
            f"{side}_arm_out": score.level(rng.uniform(0.12, 0.28)) + score.drift(0.03),
            f"{side}_arm_forward": score.level(rng.uniform(-0.05, 0.12)) + score.drift(0.05),
            f"{side}_arm_twist": score.level(rng.uniform(-0.3, 0.1)),
            f"{side}_elbow": score.level(rng.uniform(0.2, 0.5)) + score.drift(0.06),
            f"{side}_wrist_twist": score.level(rng.uniform(0.2, 1.0)),
            f"{side}_wrist_bend": score.drift(0.15),
            f"{side}_curl": score.level(rng.uniform(0.12, 0.4)) + score.drift(0.06),
            f"{side}_spread": score.level(rng.uniform(0.5, 1.0)),
            f"{side}_leg_out": score.level(rng.uniform(0.05, 0.13)),
            f"{side}_toe_out": score.level(rng.uniform(0.1, 0.4)),
            f"{side}_leg_forward": score.level(0.03),
            f"{side}_knee": score.level(0.07),
        }
    return motion


def raise_open_hand(motion: Motion, side: str, score: Score) -> None:
    """Opens a hand wide, palm to the front."""
    motion[f"{side}_curl"] = score.level(0.06)
    motion[f"{side}_spread"] = score.level(1.4)
    motion[f"{side}_wrist_twist"] = score.level(score.rng.uniform(-0.2, 0.3))


def step_legs(motion: Motion, score: Score, hertz: float, swing: float, lift: float) -> None:
    """Legs of a walk or a march; the left leg leads by half a stride."""
    for side, shift in (("left", 0.0), ("right", 0.5)):
        motion[f"{side}_leg_forward"] = 0.08 * lift + swing * score.swing(hertz, shift)
        motion[f"{side}_knee"] = 0.12 + lift * score.pulse(hertz, shift + 0.02, 1.6)
        motion[f"{side}_leg_out"] = score.level(0.02)
        motion[f"{side}_toe_out"] = score.level(0.08)
