"""A job to a clip, in this process: knows no HTTP and no Ray. The command line, tests and workers all call this."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from diffusers.utils import logging as diffusers_logging
from numpy.typing import NDArray
from PIL import Image
from transformers.utils import logging as transformers_logging

from dynamictrl import conditioning
from dynamictrl.acceleration import Acceleration
from dynamictrl.conventions import Compatibility
from dynamictrl.errors import InputError
from dynamictrl.poses.pose_alignment import Alignment
from serving.jobs.job import AnimationJob
from serving.media.decoding import Decoder, OwnFiles
from serving.rendering import decoding_memory, tiers
from serving.rendering import device as device_of
from serving.rendering.content_cache import ContentCache, content_key
from serving.rendering.memory_plan import check_memory, plan_memory
from serving.rendering.model_source import ModelSource
from serving.rendering.motion import Motions
from serving.rendering.resident_pipeline import ResidentPipeline
from serving.rendering.residents import Residents
from serving.rendering.speed import Size, Speed
from serving.rendering.stopwatch import Stopwatch
from serving.rendering.team import EngineLost, Groups, Team

if TYPE_CHECKING:
    from dynamictrl.poses.dwpose import PoseEstimator

logger = logging.getLogger(__name__)

CACHE_BYTES = 2 * 2**30
"""Of poses, latents and prompts that are kept for later jobs."""

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
    """Of prepare (media and poses), text, encode, denoise, decode."""
    made_with: dict[str, Any] = field(default_factory=dict)
    """All beside the job that shaped the frames, for JSON: with it and the job's files the clip can be made again."""
    gpus: int = 1

    @property
    def gpu_seconds(self) -> float:
        """Seconds for which the engine's devices were the job's, times their number."""
        return self.gpus * sum(self.stage_seconds.values())


class Engine:
    """Resident models. One job at a time: the scheduler inside the pipeline holds the state of a run."""

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
        decoder: Decoder | None = None,
        models: Sequence[ModelSource] = (),
        loras: Mapping[str, Path] | None = None,
        acceleration: Acceleration | None = None,
        parallel: int = 1,
        usual_size: Size | None = None,
        cache_bytes: int = CACHE_BYTES,
    ):
        """Loads the weights; CheckpointError where they cannot be, ConfigError for a GPU or memory that is not there.

        `compatibility` is the pipeline's; with "released" poses are drawn and aligned as published, too, unless
        `alignment` says otherwise (`driving.from_driving_video`). `decoder` opens the media; strangers' need a guarded
        one. `models` and `loras` are served beside `model`, by their names. `parallel` processes (on the GPUs that this
        one sees) denoise each clip together: call `close` when done with them. `usual_size` is the width, height and
        frames at which attention kernels are timed.
        """
        if threads:
            torch.set_num_threads(threads)
        self.device = device_of.pick(device, parallel)
        self.cache = ContentCache(cache_bytes)
        self._pose_model, self._dtype = pose_model, dtype
        self._compatibility: Compatibility = compatibility
        self._decoder = decoder or OwnFiles()
        self._motions = Motions(self._decoder, self.cache, pose_model, compatibility, alignment)
        self._estimator: PoseEstimator | None = None
        if not sys.stderr.isatty():
            diffusers_logging.disable_progress_bar()
            transformers_logging.disable_progress_bar()
        sources, files = [model, *models], dict(loras or {})
        wanted = acceleration or Acceleration()
        self._plan(sources, files, float8=wanted.float8)
        self._team: Team | None = None
        groups: Groups | None = None
        if parallel > 1:
            setting = {
                "dtype": dtype,
                "threads": threads,
                "acceleration": asdict(wanted),
                "size": usual_size,
                "models": [source.to_dict() for source in sources],
                "loras": [[name, str(file)] for name, file in files.items()],
            }
            self._team = Team(parallel, self.device, setting)
            groups = self._team.join()
        self.speed = Speed(wanted, self.device, size=usual_size, tokens=groups.tokens if groups else None)
        try:
            self._load(sources, files)
        except BaseException:
            self.close()
            raise
        if groups is not None:
            groups.apply(self.pipeline)

    def _plan(self, sources: Sequence[ModelSource], files: Mapping[str, Path], *, float8: bool) -> None:
        free = device_of.free_bytes(self.device)
        plan = plan_memory(sources, list(files.values()), dtype=self._dtype, free_bytes=free, float8=float8)
        logger.info("%s", plan)
        check_memory(plan, self.device)

    def _load(self, sources: Sequence[ModelSource], files: Mapping[str, Path]) -> None:
        first, *others = sources
        weights_type = getattr(torch, self._dtype)
        lent: Mapping[str, Any] = {"transformer": first.transformer} if first.transformer else {}
        self.pipeline: ResidentPipeline = ResidentPipeline.from_pretrained(
            first.folder, dtype=weights_type, low_cpu_mem_usage=False, **lent
        )
        self.pipeline.to(self.device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.pipeline.cache, self.pipeline.team = self.cache, self._team
        self.speed.prepare_vae(self.pipeline.vae)
        self.pipeline.watch()
        self.residents = Residents(self.pipeline, first, self._prepare)
        for source in others:
            self.residents.add(source, weights_type)
        for name, file in files.items():
            self.residents.add_lora(name, file)

    def _prepare(self, transformer: Any) -> None:  # noqa: ANN401 - the transformer
        # A transformer under its published class name is loaded by another road, in its own type. torch's own `to`:
        # diffusers' warns of layers that must stay in float32, also where there are none.
        torch.nn.Module.to(transformer, self.device, getattr(torch, self._dtype))
        self.speed.prepare(transformer)

    @property
    def model(self) -> ModelSource:
        """The model that renders jobs which name none."""
        return self.residents.source(self.residents.default)

    @property
    def is_healthy(self) -> bool:
        """False once a part of the engine is gone: it must be replaced."""
        return self._team is None or self._team.is_whole

    def add_model(self, source: ModelSource) -> None:
        """Loads another model beside those that are served, between two jobs."""
        free = device_of.free_bytes(self.device)
        plan = plan_memory(
            [source], [], dtype=self._dtype, free_bytes=free, float8=self.speed.held.float8, shared=False
        )
        check_memory(plan, self.device)
        if self._team is not None:
            self._team.tell({"do": "add", "model": source.to_dict()})
        self.residents.add(source, getattr(torch, self._dtype))

    def remove_model(self, name: str) -> None:
        """Forgets a model; ConfigError for the default one."""
        self.residents.remove(name)
        if self._team is not None:
            self._team.tell({"do": "remove", "name": name})
        self._free()

    def close(self) -> None:
        """Ends the processes that render with this one."""
        if self._team is not None:
            self._team.close()

    @property
    def estimator(self) -> PoseEstimator:
        """The pose model, loaded with the first driving video: jobs with a ready pose video need none."""
        if self._estimator is None:
            from dynamictrl.poses.dwpose import PoseEstimator

            self._estimator = PoseEstimator(self._pose_model, provider="cuda" if self.device == "cuda" else "cpu")
        return self._estimator

    def animate(
        self,
        job: AnimationJob,
        on_step: OnStep | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Clip:
        """Renders one clip of exactly `job.settings.num_frames` frames; the same job gives the same frames.

        Raises InputError (no person, too few frames, media that cannot be read, a model or LoRA that is not served, a
        clip too large for the device's memory), EngineLost, and Stopped, within one step of `should_stop` returning
        True, or one piece of the VAE's work.
        """
        report = on_step or (lambda *_: None)
        stop = should_stop or (lambda: False)
        for tiled in (False, True):
            try:
                return self._animate(job, report, stop, tiled=tiled)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as problem:
                if not device_of.is_out_of_memory(problem):
                    raise
                logger.warning("out of memory%s: %s", " in tiles too" if tiled else "; once more, in tiles", problem)
            # Outside of the except block, where the failed attempt's frames are no longer alive.
            self._free()
        raise InputError(
            f"a clip of {job.settings.size} and {job.settings.num_frames} frames does not fit into this service's "
            "memory; ask for fewer pixels or frames",
            code="out_of_memory",
            param="size",
        )

    def _animate(self, job: AnimationJob, report: OnStep, stop: Callable[[], bool], *, tiled: bool) -> Clip:
        settings, clock, pipeline = job.settings, Stopwatch(), self.pipeline
        name, tier = job.model or self.residents.default, tiers.tier(settings.quality)
        report("preparing", 0, settings.num_inference_steps)
        pipeline.clock, pipeline.check_stop = clock, lambda: _raise_if(stop)
        pipeline.order = {"model": name, "loras": list(settings.loras), "shortcuts": tiers.said(tier)}
        try:
            with self.residents.in_use(name, settings.loras) as source:
                image = masked_image(job, self._decoder)
                motion = self._motions.of(job, image, lambda: self.estimator)
                clock.mark("prepare")
                _raise_if(stop)
                tiled = self._choose_tiles(job, tiled)
                frames = self._render(job, image, motion.pose_video, report)
        finally:
            pipeline.clock, pipeline.check_stop = Stopwatch(), lambda: None
        clock.mark("decode")
        logger.info("rendered %s, %d frames with %s: %s", settings.size, len(frames), name, clock)
        made_with = self._made_with(source, job, tiled)
        gpus = self._team.size if self._team else 1
        return Clip(frames, motion.fps, settings.seed, source.version, clock.seconds, made_with, gpus)

    def _choose_tiles(self, job: AnimationJob, tiled: bool) -> bool:
        vae, settings = self.pipeline.vae, job.settings
        fits = job.vae == "whole" or decoding_memory.fits_whole(vae, settings.width, settings.height, self.device)
        tiled = tiled or job.vae == "tiled" or not fits
        vae.enable_tiling() if tiled else vae.disable_tiling()
        return tiled

    def _render(
        self, job: AnimationJob, image: Image.Image, pose_video: NDArray[np.uint8], report: OnStep
    ) -> NDArray[np.uint8]:
        settings, steps = job.settings, job.settings.num_inference_steps
        report("denoising", 0, steps)

        def after_step(_pipeline: object, index: int, _timestep: object, _tensors: object) -> Mapping[str, Any]:
            report("denoising", index + 1, steps)
            self.pipeline.check_stop()
            if index + 1 == steps:
                report("decoding", steps, steps)
            return {}

        frames = self.pipeline(
            image,
            pose_video,
            settings.prompt,
            height=settings.height,
            width=settings.width,
            num_frames=settings.num_frames,
            num_inference_steps=steps,
            guidance_scale=settings.guidance_scale,
            # Drawn on the CPU, so that a seed means the same clip on every device.
            generator=torch.Generator("cpu").manual_seed(settings.seed),
            output_type="np",
            callback_on_step_end=after_step,
            compatibility=self._compatibility,
            shortcuts=self.speed.shortcuts(tiers.said(tiers.tier(settings.quality))),
        ).frames[0]
        return (np.clip(frames, 0.0, 1.0) * 255 + 0.5).astype(np.uint8)

    def _made_with(self, source: ModelSource, job: AnimationJob, tiled: bool) -> dict[str, Any]:
        """Everything that shapes frames and is no part of the job's own settings."""
        return {
            "model": source.name,
            "model_version": source.version,
            "loras": [[name, weight, self.lora_hash(name)] for name, weight in job.settings.loras],
            "pose_model": self._pose_model if job.driving_video is not None else None,
            "alignment": self._motions.alignment if job.driving_video is not None else None,
            "compatibility": self._compatibility,
            "shortcuts": asdict(self.speed.shortcuts(tiers.said(tiers.tier(job.settings.quality)))),
            "steps_computed": [cache.computed for cache in self.pipeline.step_caches] or None,
            "acceleration": self.speed.said(),
            "dtype": self._dtype,
            "parallel": self._team.size if self._team else 1,
            "vae": "tiled" if tiled else "whole",
            "device": device_of.model_name(self.device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }

    def lora_hash(self, name: str) -> str:
        """Which weights a LoRA's name stands for."""
        return content_key(self.residents.lora_files[name])[:16]

    def _free(self) -> None:
        self.cache.clear()
        gc.collect()
        if self.device == "cuda":
            with suppress(RuntimeError):
                torch.cuda.empty_cache()


def masked_image(job: AnimationJob, decoder: Decoder) -> Image.Image:
    """The person image, upright; black where the job's mask is dark."""
    image = decoder.picture(job.image, "input_reference")
    if job.mask is None:
        return image
    keep = conditioning.mask_from_picture(decoder.picture(job.mask, "mask"))
    return Image.fromarray(conditioning.mask_reference(np.asarray(image), keep))


def _raise_if(stop: Callable[[], bool]) -> None:
    if stop():
        raise Stopped


__all__ = ["Clip", "Engine", "EngineLost", "OnStep", "Stopped", "masked_image"]
