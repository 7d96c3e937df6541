"""Prepares a loaded pipeline's parts once, as an `Acceleration` says."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from torch import nn

from dynamictrl.acceleration import Acceleration, attention_kernels, float8_linear
from dynamictrl.acceleration.attention_kernels import Choice
from dynamictrl.acceleration.compilation import compile_blocks
from dynamictrl.geometry import latent_frames
from dynamictrl.latents import padding

if TYPE_CHECKING:
    from diffusers import AutoencoderKLCogVideoX

logger = logging.getLogger(__name__)

TORCHS = ("cudnn", "flash", "efficient")
"""Kernels of torch's that are timed."""


def accelerate(
    transformer: nn.Module,
    how: Acceleration,
    *,
    shape: tuple[int, int, int] | None = None,
    guided: bool = True,
    ranks: int = 1,
) -> None:
    """In place, on its device and in its type; before the first call, as compiled graphs take the attention in.

    `shape` is the width, height and frame count at which attention kernels are timed: the clips' most usual one.
    `ranks` share a clip's heads (sequence parallelism). Raises ConfigError where the GPU cannot do what is asked.
    """
    if how.float8:
        float8_linear.prepare(transformer)
    _choose_attention(transformer, how.attention, shape, 2 if guided else 1, ranks)
    if how.compile_blocks:
        compile_blocks(transformer)


def accelerate_vae(vae: AutoencoderKLCogVideoX, how: Acceleration) -> None:
    """In place: the numbers stay, up to rounding."""
    if how.fast_vae:
        from dynamictrl.acceleration.fast_vae import hasten_vae

        hasten_vae(vae)


def _choose_attention(
    transformer: nn.Module, kernel: str, shape: tuple[int, int, int] | None, batch: int, ranks: int
) -> None:
    weight = next(transformer.parameters())
    if kernel == "default" or (kernel == "auto" and (weight.device.type != "cuda" or shape is None)):
        return
    config: Any = transformer.config
    best = other = None
    if shape is not None and weight.device.type == "cuda":
        heads = -(-config["num_attention_heads"] // ranks)
        size = (batch, heads, tokens(shape, config), config["attention_head_dim"])
        tried = (*TORCHS, *attention_kernels.OWN) if kernel == "auto" else (kernel,)
        best = attention_kernels.choose(size, weight.device, weight.dtype, tried, backward=False)
        if best is not None and kernel == "auto" and best.kernel in attention_kernels.OWN:
            other = attention_kernels.choose(size, weight.device, weight.dtype, TORCHS, backward=False)
    if best is not None and other is not None:
        count = attention_kernels.use_own_where_bounded(transformer, best, other)
        logger.info("attention of %d blocks by %s, of %d by %s", count, best, config["num_layers"] - count, other)
    elif best is not None or kernel != "auto":
        attention_kernels.use(transformer, best or Choice(kernel, heads_first=False))


def tokens(shape: tuple[int, int, int], config: Any) -> int:  # noqa: ANN401 - a diffusers config
    """Text and video tokens of a clip of this width, height and frame count."""
    width, height, num_frames = shape
    frames, patch = latent_frames(num_frames), config["patch_size_t"] or 1
    side = 8 * config["patch_size"]
    return (frames + padding(frames, patch)) // patch * (width // side) * (height // side) + config[
        "max_text_seq_length"
    ]
