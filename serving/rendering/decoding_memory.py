"""Whether the VAE may work on whole pictures: what that takes, and what a device has."""

from __future__ import annotations

from typing import Any

from serving.rendering.device import free_bytes

COPIES = 8
"""Tensors of the widest stage that are alive at once: input, norm, its two modulations, padding, sum."""
FRAMES = 10
"""Of pixels, that the decoder holds at a time: eight and two of the ones before."""


def whole_bytes(vae: Any, width: int, height: int) -> int:  # noqa: ANN401 - diffusers' VAE
    """Bytes at most beside the weights, to decode pictures of a size without tiles."""
    channels = 2 * vae.config["block_out_channels"][0]
    return COPIES * FRAMES * width * height * channels * vae.dtype.itemsize


def fits_whole(vae: Any, width: int, height: int, device: str) -> bool:  # noqa: ANN401
    """Whether a device has room for that now."""
    return whole_bytes(vae, width, height) <= free_bytes(device)
