"""Refuses clips in which nobody moves, or in which most of the motion is the camera's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pipelines.clip import Clip
from pipelines.limits import LimitStage, Rule, judge


@dataclass(frozen=True)
class KeepSteady(LimitStage):
    """Refuses still people (`no_motion`), shaking cameras (`camera_shake`), and clips that the camera's motion rules
    (`camera_motion`).

    Scores of `measure_motion`, which says what it cannot see. A person is still who neither moves limbs against the
    trunk nor goes anywhere in the scene. Defaults: the calmest marionettes (standing, breathing, looking about) have
    `body_motion` 0.022, walking ones seen by a camera that goes along `camera_speed` 0.14 and `camera_share` 0.28, the
    calmest before a swaying camera 0.41; hand-held real clips 0.03 to 0.09 with `camera_shake` 0.01 to 0.03.
    """

    least_motion: float = 0.015
    """Heights of the person that the most moving limbs swing (standard deviation)."""
    least_travel: float = 0.1
    """Heights of the person; who goes at least as far moves, even without moving a limb."""
    fastest_camera: float = 0.5
    """Shares of the picture's shorter side per second."""
    most_shake: float = 0.25
    """Shares of the shorter side per second, by which the camera's speed changes from one twelfth of a second to the
    next."""
    most_camera: float = 0.75
    """The camera's part of all motion, 0 to 1, where it moves at all (0.05 shares of the shorter side per second)."""

    @property
    def rules(self) -> tuple[Rule, ...]:
        speed = "of the picture per second that the camera moves"
        return (
            Rule(
                "camera_shake",
                "camera_shake",
                "of the picture per second of trembling",
                most=self.most_shake,
                share=True,
            ),
            Rule("camera_speed", "camera_motion", speed, most=self.fastest_camera, share=True),
        )

    def process(self, clip: Clip) -> Iterable[Clip]:
        clip, s = judge(clip, self.rules, self.name), clip.scores
        if clip.rejected:
            pass
        elif s["body_motion"] < self.least_motion and s["body_travel"] < self.least_travel:
            moved = f"limbs swing {s['body_motion']:.3f}, the body goes {s['body_travel']:.3f}, in the person's heights"
            clip = clip.reject("no_motion", f"{moved}; at least {self.least_motion:g} or {self.least_travel:g}")
        elif s["camera_speed"] > _MOVING and s["camera_share"] > self.most_camera:
            share = f"{s['camera_share']:.0%} of the motion is the camera's"
            clip = clip.reject("camera_motion", f"{share}; at most {self.most_camera:.0%}")
        yield clip


_MOVING = 0.05
"""Camera speed below which its share of the motion says nothing."""
