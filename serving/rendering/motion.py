"""From a job's driving or pose video to the pose video that is rendered, whatever of it was made before."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dynamictrl.media.video import Video
from dynamictrl.poses import driving
from dynamictrl.poses.pose import PoseSequence
from dynamictrl.poses.pose_alignment import Alignment
from serving.jobs.job import AnimationJob
from serving.media.decoding import Decoder
from serving.rendering.content_cache import ContentCache, content_key

READ_PIXELS = 1920 * 1088
"""Frames of a driving video are shrunk to this when read: more helps no pose detector and fills the memory."""


@dataclass(frozen=True)
class _Drawn:
    """A pose video, packed: it is black for the most part."""

    packed: bytes
    shape: tuple[int, ...]
    fps: float

    def unpack(self) -> driving.Driving:
        frames = np.frombuffer(bytearray(zlib.decompress(self.packed)), np.uint8)
        return driving.Driving(frames.reshape(self.shape), self.fps)


class Motions:
    """Poses depend on the motion, the person they are moved onto, and how both are looked at: so they are kept by that.

    Two things are kept: the pose video of a motion on a person, and, for a known motion on another person (or a known
    person in another motion), what the pose model found in the very frames that it looked at.
    """

    def __init__(
        self,
        decoder: Decoder,
        cache: ContentCache,
        pose_model: str,
        compatibility: str,
        alignment: Alignment | Literal["auto"],
    ):
        self.alignment: Alignment | Literal["auto"] = alignment
        self._decoder, self._cache, self._pose_model = decoder, cache, pose_model
        self._style: Literal["released", "scaled"] = "released" if compatibility == "released" else "scaled"

    def of(self, job: AnimationJob, image: Image.Image, estimator: Callable[[], Any]) -> driving.Driving:
        """The motion of a job on its person; `image` is the person's, masked. Raises what `driving` does."""
        settings = job.settings
        rate = settings.fps if settings.resample else None
        asked = (settings.width, settings.height, settings.start_frame, settings.num_frames, rate)
        if job.pose_video is not None:
            key = content_key("pose", job.pose_video, asked)
        else:
            how = (self._style, self.alignment, self._pose_model)
            key = content_key("driving", job.driving_video, np.asarray(image), asked, how)

        def make() -> _Drawn:
            made = self._make(job, image, estimator)
            packed = zlib.compress(np.ascontiguousarray(made.pose_video).data, 1)
            return _Drawn(packed, made.pose_video.shape, made.fps)

        return self._cache.get("poses", key, make, lambda drawn: len(drawn.packed)).unpack()

    def _make(self, job: AnimationJob, image: Image.Image, estimator: Callable[[], Any]) -> driving.Driving:
        settings = job.settings
        path = job.pose_video or job.driving_video
        assert path is not None  # AnimationJob has checked it
        video = self._decoder.frames(
            path,
            "pose_video" if job.pose_video is not None else "driving_video",
            fps=settings.fps if settings.resample else None,
            num_frames=settings.start_frame + settings.num_frames,
            max_pixels=READ_PIXELS,
        )
        if settings.start_frame:
            video = Video(video.frames[settings.start_frame :], video.fps, video.timestamps[settings.start_frame :])
        shape = {"height": settings.height, "width": settings.width, "num_frames": settings.num_frames, "fps": None}
        if job.pose_video is not None:
            return driving.from_pose_video(video, **shape)
        alignment: Alignment | None = None if self.alignment == "auto" else self.alignment
        found = self._remembering(estimator)
        return driving.from_driving_video(video, image, found, style=self._style, alignment=alignment, **shape)

    def _remembering(self, estimator: Callable[[], Any]) -> driving.EstimatePose:
        def estimate(frames: NDArray[np.uint8]) -> PoseSequence:
            key = content_key(self._pose_model, frames)
            return self._cache.get("detections", key, lambda: estimator()(frames), _size)

        return estimate


def _size(poses: PoseSequence) -> int:
    return poses.keypoints.nbytes + poses.scores.nbytes + poses.boxes.nbytes
