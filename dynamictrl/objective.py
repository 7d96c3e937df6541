"""What training minimises: noise, target, loss, as pure functions.

CogVideoX predicts the velocity v = a n - s x (Salimans and Ho 2022, appendix D) of x_t = a x + s n, where
a^2 = abar_t and s^2 = 1 - abar_t. Its published trainers compare x predicted from v with weight 1 / (1 - abar_t); since
x_predicted - x = -s (v_predicted - v), that is the plain mean square of v, which is what stands here.

Shape suffixes: B batch, F latent frames, C channels, H W latent size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import SchedulerMixin
from torch import Tensor, nn

from dynamictrl.errors import ConfigError
from dynamictrl.latents import pad_front, padding
from dynamictrl.pose_encoder import PoseEncodedTransformer
from dynamictrl.positions import rotary_positions

OFS = 2.0
"""The constant that 1.5 bases are given with every timestep."""


@dataclass(frozen=True)
class Schedule:
    """The forward process as float64 tables over the timesteps 0 to 999.

    In bfloat16 the first timesteps would get no noise at all: s^2 is below the type's resolution next to 1.
    """

    signal: Tensor
    """a = sqrt(abar_t), float64 [timesteps]."""
    noise: Tensor
    """s = sqrt(1 - abar_t), float64 [timesteps]."""

    @classmethod
    def from_scheduler(cls, scheduler: SchedulerMixin) -> Schedule:
        """The tables of a diffusers scheduler; ConfigError if it is not one for v-prediction."""
        prediction = scheduler.config["prediction_type"]  # pyright: ignore[reportAttributeAccessIssue]
        if prediction != "v_prediction":
            raise ConfigError(f"the scheduler predicts {prediction!r}; CogVideoX's bases need 'v_prediction'")
        abar = scheduler.alphas_cumprod.double()  # pyright: ignore[reportAttributeAccessIssue]
        return cls(abar.sqrt(), (1 - abar).sqrt())

    @property
    def num_timesteps(self) -> int:
        return len(self.signal)

    def at(self, timesteps_B: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """a and s of each sample, shaped to multiply `like`, in float32 (float64 for float64)."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        shape = (-1, *[1] * (like.ndim - 1))
        picked = (
            table.to(timesteps_B.device)[timesteps_B].to(dtype).view(shape) for table in (self.signal, self.noise)
        )
        signal, noise = picked
        return signal, noise


def add_noise(schedule: Schedule, clean: Tensor, noise: Tensor, timesteps_B: Tensor) -> Tensor:
    """x_t = a x + s n, in float32 whatever the inputs' precision."""
    signal, sigma = schedule.at(timesteps_B, clean)
    return signal * clean + sigma * noise


def velocity(schedule: Schedule, clean: Tensor, noise: Tensor, timesteps_B: Tensor) -> Tensor:
    """v = a n - s x, the target, in float32 whatever the inputs' precision."""
    signal, sigma = schedule.at(timesteps_B, clean)
    return signal * noise - sigma * clean


def velocity_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean square per sample [B], in float32 at least."""
    dtype = torch.promote_types(target.dtype, torch.float32)
    return (predicted.to(dtype) - target.to(dtype)).square().flatten(1).mean(dim=1)


def noise_for(video_BFCHW: Tensor, patch_size_t: int | None, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal float32 noise for a clip's latents, with the frames that `pad_front` will add.

    A CPU generator serves any device, so a seed means the same noise everywhere.
    """
    batch, frames, *rest = video_BFCHW.shape
    shape = (batch, frames + padding(frames, patch_size_t), *rest)
    device = generator.device if generator is not None else video_BFCHW.device
    return torch.randn(shape, generator=generator, device=device).to(video_BFCHW.device)


def training_loss(
    transformer: nn.Module,
    schedule: Schedule,
    video_latents: Tensor,
    image_latents: Tensor,
    pose_latents: Tensor,
    prompt_embeds: Tensor,
    timesteps: Tensor,
    noise: Tensor,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The loss of each sample [B], float32.

    The three latents are BFCHW and scaled (`latents.encode`, `conditioning.reference_latents`), `prompt_embeds`
    [B, text tokens, text width], `timesteps` int64 [B], `noise` of `noise_for`'s shape. On a 1.5 base an odd count of
    latent frames is padded here. A `PoseEncodedTransformer` is given pose pixels BCFHW in place of latents. `dtype` is
    what the transformer computes in (its weights' own by default).
    """
    model = unwrap(transformer)
    config: Mapping[str, Any] = model.config  # pyright: ignore[reportAssignmentType]
    dtype = dtype or next(p for p in model.parameters() if p.is_floating_point()).dtype
    video, image = (pad_front(x, config["patch_size_t"]) for x in (video_latents, image_latents))
    encodes = isinstance(model, PoseEncodedTransformer)
    pose = pose_latents if encodes else pad_front(pose_latents, config["patch_size_t"])
    if noise.shape != video.shape:
        raise ConfigError(
            f"the noise has shape {tuple(noise.shape)} and the padded latents {tuple(video.shape)}: draw it with "
            f"objective.noise_for"
        )
    noisy = add_noise(schedule, video, noise, timesteps)
    predicted = transformer(
        hidden_states=torch.cat([noisy.to(dtype), image.to(dtype)], dim=2),
        encoder_hidden_states=prompt_embeds.to(dtype),
        timestep=timesteps,
        control_hidden_states=pose.to(dtype),
        ofs=ofs_for(config, video.device),
        image_rotary_emb=rotary_positions(config, video.shape[1], *video.shape[3:], device=video.device),
        return_dict=False,
    )[0]
    return velocity_loss(predicted, velocity(schedule, video, noise, timesteps))


def ofs_for(config: Mapping[str, Any], device: torch.device | str) -> Tensor | None:
    """The `ofs` argument of a transformer with this config."""
    return torch.full((1,), OFS, device=device) if config["ofs_embed_dim"] else None


def unwrap(module: nn.Module) -> nn.Module:
    """The model inside DDP, a DeepSpeed engine or torch.compile."""
    while True:
        inner = getattr(module, "_orig_mod", None) or getattr(module, "module", None)
        if not isinstance(inner, nn.Module):
            return module
        module = inner
