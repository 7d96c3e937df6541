"""Hides faces before a clip is published, where that is asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from dynamictrl.errors import ConfigError
from pipelines.clip import Clip
from pipelines.stage import Stage


@dataclass(frozen=True)
class BlurFaces(Stage):
    """Writes `blurred.mp4`, which is published as the clip; off by default, since a model learns faces as it sees them.

    Every person's face of every frame, from the pose: see `dynamictrl.masks.face_blur` for where it looks and what it
    cannot see. Scores: `faces_blurred` face-frames hidden, `faces_guessed` those of them located only by shoulders or
    by the frames around. Refuses with `face_unblurred` where a person is in the picture and their head cannot be
    located: better no clip than an open face. Defaults: on marionettes every pixel of a face's 68 points lies inside
    the region, also with a third of the poses gone.
    """

    reads: ClassVar[tuple[str, ...] | None] = ("mp4", "pose.npz")
    seconds_per_frame: ClassVar[float] = 0.02

    enabled: bool = False
    """Whether faces are blurred at all."""
    grow: float = 1.3
    """Regions are this much wider than the face and hair are taken to be."""
    cells: int = 5
    """Colours across a face that are left."""
    longest_gap: float = 0.5
    """Seconds for which a face stays hidden while nobody is found."""
    crf: int = 16
    """x264 quality of the blurred clip, 0 (lossless) to 51; a little finer than the cut's: it is encoded twice."""

    def __post_init__(self):
        if self.grow < 1 or self.cells < 1 or self.longest_gap < 0:
            raise ConfigError(
                f"grow is {self.grow} (at least 1), cells {self.cells} (at least 1), longest_gap {self.longest_gap} s "
                f"(at least 0)",
                param="blur_faces",
            )

    @property
    def active(self) -> bool:
        return self.enabled

    def process(self, clip: Clip) -> Iterable[Clip]:
        from dynamictrl.masks.face_blur import blur_faces, face_regions
        from dynamictrl.media.video import read_video, write_video
        from dynamictrl.poses.pose import PoseSequence

        pose = PoseSequence.from_npz(clip.file("pose.npz").read_bytes())
        gap = round(self.longest_gap * clip.fps)
        regions = face_regions(pose, clip.height, clip.width, longest_gap=gap, grow=self.grow)
        if regions.lost_FP.any():
            frames = int(regions.lost_FP.any(axis=1).sum())
            yield clip.reject("face_unblurred", f"in {frames} frames somebody's head cannot be located")
            return
        frames_FHWC, count = blur_faces(read_video(clip.file("mp4")).frames, regions, cells=self.cells)
        write_video(clip.file("blurred.mp4"), frames_FHWC, clip.fps, crf=self.crf)
        scores = {"faces_blurred": count, "faces_guessed": int(regions.guessed_FP.sum())}
        yield clip.with_file("blurred.mp4").with_scores(**scores)
