"""Refuses clips with a cut that the shot splitter missed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from pipelines.clip import Clip
from pipelines.stage import Stage


@dataclass(frozen=True)
class KeepUncut(Stage):
    """Refuses clips in which picture and person change at once: `cut_inside`.

    `picture_jump` (`measure_picture`) is the largest sudden change of the picture; `pose_jump`, written here, is how
    much more the main person's joints shift at that moment than just before and after, 1 where nobody goes on. A flash
    or a light switched on leaves the person where they are; a leap leaves the picture. It looks at one moment only, and
    a dissolve over half a second has none. Defaults: people in real clips and marionettes jump the picture by up to
    0.21 (a figure that leaps before a plain wall); of 30 cuts between clips all but two of one scene had 0.44 or more.
    In 15 cuts between marionettes in the same place of the picture `pose_jump` was 0.042 or more, elsewhere 0.037 or
    less.
    """

    reads: ClassVar[tuple[str, ...] | None] = ("pose.npz", "scores")

    most_picture: float = 0.25
    """`picture_jump` from which the pose is asked; 0 to 2."""
    most_pose: float = 0.04
    """`pose_jump` that makes it a cut, in the person's heights; 0 to 1."""
    surely: float = 0.8
    """`picture_jump` that is a cut whatever the pose says; at least 2 leaves it to the pose."""

    def process(self, clip: Clip) -> Iterable[Clip]:
        from dynamictrl.poses.pose import PoseSequence
        from dynamictrl.quality.people import pose_jump
        from dynamictrl.quality.samples import RATE

        pose = PoseSequence.from_npz(clip.file("pose.npz").read_bytes())
        at = clip.scores["picture_jump_at"]
        picture, body = clip.scores["picture_jump"], pose_jump(pose, at * clip.fps, max(1.0, clip.fps / RATE) / 2)
        clip = clip.with_scores(pose_jump=body)
        if picture > self.surely or (picture > self.most_picture and body > self.most_pose):
            clip = clip.reject(
                "cut_inside", f"at {at:.2f} s the picture jumps by {picture:.2f}, the person by {body:.2f}"
            )
        yield clip
