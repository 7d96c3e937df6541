"""A cheaper but equal forward of CogVideoX's spatially conditioned norm, for training the mini VAE.

The published one enlarges the latents to the picture's size (nearest neighbour) and then applies two 1x1x1
convolutions; these commute, so here the convolutions see the small latents, and the enlarging is a broadcast, whose
gradient is a plain sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXSpatialNorm3D
from torch import Tensor


def _modulate(f: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    """f * factor + offset, where f is a whole multiple of their size in time, height and width."""
    batch, channels, frames, height, width = factor.shape
    times, rows, columns = (f.shape[i] // factor.shape[i] for i in (2, 3, 4))
    small = (batch, channels, frames, 1, height, 1, width, 1)
    tiled = f.reshape(batch, channels, frames, times, height, rows, width, columns)
    return (tiled * factor.reshape(small) + offset.reshape(small)).reshape(f.shape)


def _forward(
    self: CogVideoXSpatialNorm3D, f: Tensor, zq: Tensor, conv_cache: dict[str, Tensor] | None = None
) -> tuple[Tensor, dict[str, Tensor | None]]:
    factor, _ = self.conv_y(zq)
    offset, _ = self.conv_b(zq)
    f = self.norm_layer(f)
    if f.shape[2] > 1 and f.shape[2] % 2 == 1:
        parts = [
            _modulate(f[:, :, part], factor[:, :, part], offset[:, :, part]) for part in (slice(0, 1), slice(1, None))
        ]
        return torch.cat(parts, dim=2), {"conv_y": None, "conv_b": None}
    return _modulate(f, factor, offset), {"conv_y": None, "conv_b": None}


@contextmanager
def fast_spatial_norm() -> Iterator[None]:
    """Within it, every CogVideoX decoder uses the cheaper forward."""
    original = CogVideoXSpatialNorm3D.forward
    CogVideoXSpatialNorm3D.forward = _forward  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        CogVideoXSpatialNorm3D.forward = original
