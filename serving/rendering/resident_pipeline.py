"""The pipeline as an engine runs it: encodings found again, stages timed, stopped between any two pieces of work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

from dynamictrl import DynamiCtrlPipeline
from dynamictrl.conventions import Released
from serving.rendering.content_cache import ContentCache, content_key
from serving.rendering.stopwatch import Stopwatch

if TYPE_CHECKING:
    from serving.rendering.team import Team


class ResidentPipeline(DynamiCtrlPipeline):
    """Computes what `DynamiCtrlPipeline` does, to the bit, whatever was known already."""

    cache: ContentCache = ContentCache(0)
    team: Team | None = None
    """The processes that share this one's denoising."""
    order: Mapping[str, Any] = {}
    """What a follower must know of the running job beside its tensors: model, LoRAs, shortcuts."""
    clock: Stopwatch = Stopwatch()
    """Of the running job."""
    check_stop: Callable[[], None]
    """Raises where the running job shall stop."""

    def watch(self) -> None:
        """From now on the VAE asks `check_stop` before each piece that it encodes or decodes."""
        self.check_stop = _go_on
        for network in (self.vae.encoder, self.vae.decoder):
            network.register_forward_pre_hook(lambda *_: self.check_stop())

    def embed_text(self, text: str) -> Tensor:
        key = content_key(text, self.transformer.config["max_text_seq_length"], self.transformer.dtype)
        found = self.cache.get("prompts", key, lambda: super(ResidentPipeline, self).embed_text(text).cpu(), _size)
        return found.to(self._execution_device)

    def posterior(self, pixels_BCFHW: Tensor) -> DiagonalGaussianDistribution:
        # Pixels come from whole levels, so these name them; tiles make other latents.
        levels = ((pixels_BCFHW + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
        released = self.released and pixels_BCFHW.shape[2] == 1
        key = content_key(levels, self.vae.dtype, self.vae.use_tiling, self.vae.use_slicing, released)
        kind = "reference_latents" if pixels_BCFHW.shape[2] == 1 else "pose_latents"

        def make() -> Tensor:
            return super(ResidentPipeline, self).posterior(pixels_BCFHW).parameters.cpu()

        return DiagonalGaussianDistribution(self.cache.get(kind, key, make, _size).to(pixels_BCFHW.device))

    released = False
    """Whether the running call prepares its pixels in the released way (their last bit differs)."""

    def encode_prompt(self, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401 - as the pipeline's
        embeds = super().encode_prompt(*args, **kwargs)
        self._mark("text")
        self.check_stop()
        return embeds

    def prepare_latents(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as the pipeline's
        self.released = isinstance(args[-1], Released)
        prepared = super().prepare_latents(*args, **kwargs)
        self._mark("encode")
        self.check_stop()
        return prepared

    def _denoise(self, plan: Any, way: Any, *args: Any) -> Tensor:  # noqa: ANN401 - as the pipeline's
        if self.team is None:
            latents = super()._denoise(plan, way, *args)
        else:
            latents = self._denoise_together(plan, way, *args)
        self._mark("denoise")
        return latents

    def _denoise_together(self, plan: Any, way: Any, *args: Any) -> Tensor:  # noqa: ANN401
        assert self.team is not None
        latents, image_latents, pose_latents, embeds, steps, scale, dynamic, generator, callback, *rest = args
        tensors = {"latents": latents, "image_latents": image_latents, "prompt_embeds": embeds}
        tensors |= {f"pose_{number}": pose for number, pose in enumerate(pose_latents)}
        told = {
            **self.order,
            "plan": asdict(plan),
            "compatibility": "released" if isinstance(way, Released) else "none",
            "scheduler": [type(self.scheduler).__name__, dict(self.scheduler.config)],
            "steps": steps,
            "scale": scale,
            "dynamic": dynamic,
        }
        with self.team.denoising(told, tensors, generator, callback) as together:
            front = (latents, image_latents, pose_latents, embeds, steps, scale, dynamic, generator)
            return super()._denoise(plan, way, *front, together, *rest)

    def _finish(self, *args: Any) -> Any:  # noqa: ANN401 - as the pipeline's
        frames = super()._finish(*args)
        self._mark("decode")
        return frames

    def _mark(self, stage: str) -> None:
        if self._execution_device.type == "cuda":
            torch.cuda.synchronize()
        self.clock.mark(stage)


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _go_on() -> None:
    pass
