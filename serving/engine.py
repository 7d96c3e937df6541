"""A job to a clip, in this process: knows no HTTP and no Ray. The command line, tests and workers all call this."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from diffusers.utils import logging as diffusers_logging
from numpy.typing import NDArray
from PIL import Image
from transformers.utils import logging as transformers_logging

from dynamictrl import DynamiCtrlPipeline, conditioning, driving
from dynamictrl.conventions import Compatibility
from dynamictrl.errors import ConfigError
from dynamictrl.images import read_image
from dynamictrl.pose_alignment import Alignment
from dynamictrl.video import read_video
from serving.jobs import AnimationJob
from serving.model_source import ModelSource

if TYPE_CHECKING:
    from dynamictrl.dwpose import PoseEstimator

logger = logging.getLogger(__name__)

READ_PIXELS = 1920 * 1088
"""Frames of a driving video are shrunk to this when read: more helps no pose detector and fills the memory."""

OnStep = Callable[[str, int, int], None]
"""Called with a stage ("preparing", "denoising", "decoding"), the steps done and the steps in all."""


class Stopped(Exception):
    """`should_stop` said so; nothing was rendered."""


@dataclass(frozen=True)
class Clip:
    """What a job comes to."""

    frames: NDArray[np.uint8]
    """[F, H, W, 3] RGB, as many as the job's settings ask for."""
    fps: float
    seed: int
    model_version: str
    stage_seconds: dict[str, float]


class Engine:
    """One resident model. One job at a time: the scheduler inside the pipeline holds the state of a run."""

    def __init__(
        self,
        model: ModelSource,
        pose_model: str,
        *,
        device: str = "auto",
        dtype: str = "float32",
        threads: int = 0,
        compatibility: Compatibility = "none",
        alignment: Alignment | Literal["auto"] = "auto",
    ):
        """Loads the weights; CheckpointError where they cannot be, ConfigError for a GPU that is not there.

        `compatibility` is the pipeline's; with "released" poses are drawn and aligned as published, too, unless
        `alignment` says otherwise (`driving.from_driving_video`).
        """
        if threads:
            torch.set_num_threads(threads)
        self.model = model
        self.device = _device(device)
        self._pose_model = pose_model
        self._compatibility: Compatibility = compatibility
        self._alignment: Alignment | None = None if alignment == "auto" else alignment
        self._estimator: PoseEstimator | None = None
        if not sys.stderr.isatty():
            diffusers_logging.disable_progress_bar()
            transformers_logging.disable_progress_bar()
        weights_type = getattr(torch, dtype)
        lent = {"transformer": model.transformer} if model.transformer else {}
        self.pipeline = DynamiCtrlPipeline.from_pretrained(
            model.folder, dtype=weights_type, low_cpu_mem_usage=False, **lent
        )
        self.pipeline.to(self.device)
        if self.pipeline.transformer.dtype != weights_type:
            # A transformer under its published class name is loaded by another road.
            self.pipeline.transformer.to(weights_type)
        self.pipeline.set_progress_bar_config(disable=True)

    @property
    def estimator(self) -> PoseEstimator:
        """The pose model, loaded with the first driving video: jobs with a ready pose video need none."""
        if self._estimator is None:
            from dynamictrl.dwpose import PoseEstimator

            self._estimator = PoseEstimator(self._pose_model, provider="cuda" if self.device == "cuda" else "cpu")
        return self._estimator

    def warm_up(self, width: int, height: int, num_frames: int = 5) -> None:
        """Renders one step of nothing, so that the first job pays for no kernel's start."""
        blank = np.zeros((num_frames, height, width, 3), np.uint8)
        self.pipeline(Image.fromarray(blank[0]), blank, "", num_inference_steps=1, output_type="np")

    def animate(
        self,
        job: AnimationJob,
        on_step: OnStep | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Clip:
        """Renders one clip of exactly `job.settings.num_frames` frames; the same job gives the same frames.

        Raises InputError (no person, too few frames, media that cannot be read) and Stopped, within one step of
        `should_stop` returning True.
        """
        report = on_step or (lambda *_: None)
        stop = should_stop or (lambda: False)
        steps, clock = job.settings.num_inference_steps, _Stopwatch()
        report("preparing", 0, steps)
        image = masked_image(job)
        motion = self._motion(job, image)
        clock.mark("prepare")
        _raise_if(stop)
        report("denoising", 0, steps)

        def after_step(_pipeline: object, index: int, _timestep: object, _tensors: object) -> Mapping[str, Any]:
            report("denoising", index + 1, steps)
            _raise_if(stop)
            if index + 1 == steps:
                clock.mark("denoise")
                report("decoding", steps, steps)
            return {}

        frames = self._render(job, image, motion.pose_video, after_step)
        clock.mark("decode")
        logger.info("rendered %s, %d frames: %s", job.settings.size, len(frames), clock)
        return Clip(frames, motion.fps, job.settings.seed, self.model.version, clock.seconds)

    def _motion(self, job: AnimationJob, image: Image.Image) -> driving.Driving:
        settings = job.settings
        path = job.pose_video or job.driving_video
        assert path is not None  # AnimationJob has checked it
        video = read_video(
            path,
            fps=settings.fps if settings.resample else None,
            num_frames=settings.num_frames,
            max_pixels=READ_PIXELS,
        )
        shape = {"height": settings.height, "width": settings.width, "num_frames": settings.num_frames, "fps": None}
        if job.pose_video is not None:
            return driving.from_pose_video(video, **shape)
        style = "released" if self._compatibility == "released" else "scaled"
        return driving.from_driving_video(video, image, self.estimator, style=style, alignment=self._alignment, **shape)

    def _render(
        self, job: AnimationJob, image: Image.Image, pose_video: NDArray[np.uint8], after_step: Callable[..., Any]
    ) -> NDArray[np.uint8]:
        settings = job.settings
        frames = self.pipeline(
            image,
            pose_video,
            settings.prompt,
            height=settings.height,
            width=settings.width,
            num_frames=settings.num_frames,
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            # Drawn on the CPU, so that a seed means the same clip on every device.
            generator=torch.Generator("cpu").manual_seed(settings.seed),
            output_type="np",
            callback_on_step_end=after_step,
            compatibility=self._compatibility,
        ).frames[0]
        return (np.clip(frames, 0.0, 1.0) * 255 + 0.5).astype(np.uint8)


def masked_image(job: AnimationJob) -> Image.Image:
    """The person image, upright; black where the job's mask is dark."""
    image = read_image(job.image)
    if job.mask is None:
        return image
    keep = conditioning.mask_from_picture(read_image(job.mask))
    return Image.fromarray(conditioning.mask_reference(np.asarray(image), keep))


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device is 'cuda' and torch sees no GPU here; use --device cpu, or a machine with one",
            code="no_gpu",
            param="device",
        )
    return name


def _raise_if(stop: Callable[[], bool]) -> None:
    if stop():
        raise Stopped


class _Stopwatch:
    """Seconds by stage: each stage ends where the next begins."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def mark(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now

    def __str__(self) -> str:
        return ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in self.seconds.items())
