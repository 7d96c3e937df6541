"""Measures how the camera and the main person move, once the poses are known."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from pipelines.clip import Clip
from pipelines.stage import Stage


@dataclass(frozen=True)
class MeasureMotion(Stage):
    """Follows the scene behind the persons and the main person before it; `keep_steady` and `keep_unmarked` judge.

    Scores: `camera_seen`, `camera_speed`, `camera_travel`, `camera_shake`, `overlay`, `body_motion`, `body_travel`,
    `body_speed`, `camera_share`, explained in `dynamictrl.quality.motion`. After the pose, because without knowing
    where persons are a jump before a plain wall passes for a shaking camera. Refuses nothing.
    """

    reads: ClassVar[tuple[str, ...] | None] = ("mp4", "pose.npz")
    seconds_per_frame: ClassVar[float] = 0.008

    def process(self, clip: Clip) -> Iterable[Clip]:
        from dynamictrl.poses.pose import PoseSequence
        from dynamictrl.quality.motion import measure_motion
        from dynamictrl.quality.samples import read_samples

        pose = PoseSequence.from_npz(clip.file("pose.npz").read_bytes())
        yield clip.with_scores(**measure_motion(read_samples(clip.file("mp4")), pose))
