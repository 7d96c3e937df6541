"""Video, image and pose through one VAE: encode, decode, scale, and frame counts that come out as asked.

Two rules make any 4k + 1 frames legal on every base:
* `pad_front`: a base that patches time in twos (1.5) needs an even latent count, so the first latent is repeated in
  front of video, image and pose, in training and inference alike, and dropped before decoding.
* `decode`: CogVideoX's VAE gives an even latent count's first latent four frames instead of one. The first latent is
  repeated in front, which makes the count odd, and the four frames too many are dropped from the front.

Shape suffixes: B batch, F frames (of pixels or latents), C channels, H W size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from diffusers import AutoencoderKLCogVideoX
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

from dynamictrl.errors import ConfigError, InputError
from dynamictrl.geometry import FRAMES_PER_LATENT, latent_frames

ImageLatentRule = Literal["base", "unscaled", "scaled"]
"""How the reference image's latent is scaled where the VAE's `invert_scale_latents` is on (the 1.5 base).

`base`: divided by the scaling factor, as that base was trained and diffusers runs it; the default, in training and
inference alike. `unscaled`: as it is, the released inference. `scaled`: multiplied, the released training. With the
flag off all three multiply.
"""


Posterior = Callable[[Tensor], DiagonalGaussianDistribution]
"""From pixels BCFHW in [-1, 1] to what the VAE makes of them."""


def image_latent_scale(vae_config: Mapping[str, Any], rule: ImageLatentRule = "base") -> float:
    """The factor from the VAE's latent of the reference image to what the transformer sees."""
    if rule not in get_args(ImageLatentRule):
        raise ConfigError(f"image_latent_rule is {rule!r}; it must be one of {', '.join(get_args(ImageLatentRule))}")
    scale = float(vae_config["scaling_factor"])
    if not vae_config.get("invert_scale_latents", False) or rule == "scaled":
        return scale
    return 1.0 if rule == "unscaled" else 1 / scale


def posterior(vae: AutoencoderKLCogVideoX, pixels_BCFHW: Tensor) -> DiagonalGaussianDistribution:
    """What the VAE makes of pixels, before anything is drawn from it; in the VAE's own type."""
    return vae.encode(pixels_BCFHW.to(vae.dtype)).latent_dist  # pyright: ignore[reportAttributeAccessIssue]


def encode(
    vae: AutoencoderKLCogVideoX,
    pixels_BCFHW: Tensor,
    *,
    generator: torch.Generator | None = None,
    sample: bool = True,
    scale: float | None = None,
    posterior: Posterior | None = None,
) -> Tensor:
    """Pixels in [-1, 1] to latents BFCHW, times the VAE's scaling factor or `scale`.

    F is 1 or 4k + 1 and gives 1 or k + 1 latent frames. `sample` draws from the posterior, as in training; False takes
    its mean. Pixels and VAE are on one device (the VAE's own, unless it is offloaded). `posterior` takes the place of
    the VAE's pass, where its result may be known already.
    """
    frames = pixels_BCFHW.shape[2]
    if frames % FRAMES_PER_LATENT != 1:
        raise InputError(f"{frames} frames cannot be encoded; the count must be 4k + 1", code="bad_num_frames")
    found = posterior(pixels_BCFHW) if posterior is not None else _posterior(vae, pixels_BCFHW)
    latents_BCFHW = found.sample(generator) if sample else found.mode()
    return latents_BCFHW.transpose(1, 2) * (float(vae.config["scaling_factor"]) if scale is None else scale)


_posterior = posterior  # `encode` has a parameter of the name


def decode(vae: AutoencoderKLCogVideoX, latents_BFCHW: Tensor, num_frames: int) -> Tensor:
    """Scaled latents to float32 pixels BCFHW of exactly `num_frames` frames, about [-1, 1].

    Latents beyond those that `num_frames` needs are `pad_front`'s and are dropped from the front.
    """
    count = latent_frames(num_frames)
    if num_frames % FRAMES_PER_LATENT != 1 or latents_BFCHW.shape[1] < count:
        raise InputError(
            f"{latents_BFCHW.shape[1]} latent frames cannot be decoded to {num_frames} frames; {num_frames} must be "
            f"4k + 1 and needs {count}.",
            code="bad_num_frames",
        )
    latents_BFCHW = latents_BFCHW[:, -count:]
    if count % 2 == 0:
        latents_BFCHW = torch.cat([latents_BFCHW[:, :1], latents_BFCHW], dim=1)
    latents_BCFHW = latents_BFCHW.transpose(1, 2).to(vae.dtype) / float(vae.config["scaling_factor"])
    pixels_BCFHW = vae.decode(latents_BCFHW).sample  # pyright: ignore[reportAttributeAccessIssue]
    return pixels_BCFHW[:, :, -num_frames:].float()


def padding(count: int, patch_size_t: int | None) -> int:
    """How many latent frames `pad_front` adds to `count`."""
    return -count % (patch_size_t or 1)


def pad_front(latents_BFCHW: Tensor, patch_size_t: int | None) -> Tensor:
    """Repeats the first latent in front until the count divides by the base's temporal patch; does nothing on 1.0."""
    extra = padding(latents_BFCHW.shape[1], patch_size_t)
    if extra == 0:
        return latents_BFCHW
    return torch.cat([latents_BFCHW[:, :1]] * extra + [latents_BFCHW], dim=1)
