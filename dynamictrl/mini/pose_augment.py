"""Damage done to training pictures on the training device: geometry, colour, noise, blur, block artefacts, cut-outs.

Pictures are float 0..255. Shape suffixes: N pictures, C colours, H W size, J joints.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def warp(pictures_NCHW: Tensor, matrix_N23: Tensor, height: int, width: int, fill: float) -> Tensor:
    """Samples [N, C, height, width] bilinearly; the matrices take output pixels to input pixels."""
    count, _, rows, columns = pictures_NCHW.shape
    device = pictures_NCHW.device
    y, x = torch.meshgrid(
        torch.arange(height, device=device, dtype=torch.float32),
        torch.arange(width, device=device, dtype=torch.float32),
        indexing="ij",
    )
    spots = torch.stack([x, y, torch.ones_like(x)], dim=-1).view(-1, 3)
    source = torch.einsum("kc,nrc->nkr", spots, matrix_N23).view(count, height, width, 2)
    size = torch.tensor([columns, rows], device=device, dtype=torch.float32)
    grid = (2 * source + 1) / size - 1
    return F.grid_sample(pictures_NCHW - fill, grid, padding_mode="zeros", align_corners=False) + fill


def uniform(count: int, low: float, high: float, like: Tensor) -> Tensor:
    """[count] random numbers on the device of `like`."""
    return torch.empty(count, device=like.device).uniform_(low, high)


def recolour(pictures_NCHW: Tensor) -> Tensor:
    """Brightness, contrast, saturation and colour cast, each picture its own."""
    count = len(pictures_NCHW)
    shape = (count, 1, 1, 1)
    grey = pictures_NCHW.mean(dim=1, keepdim=True)
    saturation = uniform(count, 0.3, 1.5, grey).view(shape)
    pictures = grey + saturation * (pictures_NCHW - grey)
    mean = pictures.mean(dim=(1, 2, 3), keepdim=True)
    contrast = uniform(count, 0.6, 1.4, grey).view(shape)
    pictures = mean + contrast * (pictures - mean) + uniform(count, -45, 45, grey).view(shape)
    cast = torch.empty(count, 3, 1, 1, device=grey.device).uniform_(0.85, 1.15)
    return (pictures * cast).clamp(0, 255)


def soften(pictures_NCHW: Tensor, most: float = 3.5) -> Tensor:
    """Shrinks the whole batch and enlarges it again: what a small or blurred source looks like."""
    height, width = pictures_NCHW.shape[-2:]
    factor = 1 + (most - 1) * float(torch.rand(()))
    small = F.interpolate(pictures_NCHW, size=(int(height / factor), int(width / factor)), mode="area")
    return F.interpolate(small, size=(height, width), mode="bilinear", align_corners=False)


def _cosines(device: torch.device) -> Tensor:
    k, n = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    table = torch.cos(math.pi * (2 * n + 1) * k / 16) * math.sqrt(2 / 8)
    table[0] /= math.sqrt(2)
    return table.to(device)


def compress(pictures_NCHW: Tensor) -> Tensor:
    """Coarse 8x8 cosine blocks, coarser for fine detail: what strong JPEG or H.264 leaves. Sides divide by 8."""
    count, colours, height, width = pictures_NCHW.shape
    table = _cosines(pictures_NCHW.device)
    blocks = pictures_NCHW.view(count, colours, height // 8, 8, width // 8, 8).permute(0, 1, 2, 4, 3, 5)
    waves = table @ blocks @ table.T
    order = torch.arange(8, device=table.device)
    step = uniform(count, 2, 14, table).view(-1, 1, 1, 1, 1, 1) * (1 + 0.8 * (order[:, None] + order[None]))
    blocks = table.T @ (torch.round(waves / step) * step) @ table
    return blocks.permute(0, 1, 2, 4, 3, 5).reshape(count, colours, height, width).clamp(0, 255)


def speckle(pictures_NCHW: Tensor, most: float = 14.0) -> Tensor:
    """Sensor noise of a strength of each picture's own."""
    strength = uniform(len(pictures_NCHW), 0, most, pictures_NCHW).view(-1, 1, 1, 1)
    return (pictures_NCHW + strength * torch.randn_like(pictures_NCHW)).clamp(0, 255)


def cut_out(pictures_NCHW: Tensor, share: float = 0.35) -> tuple[Tensor, Tensor]:
    """Hides a box in some pictures; also returns the boxes as x1, y1, x2, y2 [N, 4], empty where nothing is hidden."""
    count, _, height, width = pictures_NCHW.shape
    size = torch.tensor([width, height], device=pictures_NCHW.device)
    low = torch.rand(count, 2, device=pictures_NCHW.device) * size
    side = torch.empty(count, 2, device=pictures_NCHW.device).uniform_(0.06, 0.28) * size
    side = side * (torch.rand(count, 1, device=pictures_NCHW.device) < share)
    y = torch.arange(height, device=pictures_NCHW.device)[None, :, None]
    x = torch.arange(width, device=pictures_NCHW.device)[None, None]
    high = low + side
    inside = (x >= low[:, 0, None, None]) & (x < high[:, 0, None, None])
    inside = inside & (y >= low[:, 1, None, None]) & (y < high[:, 1, None, None])
    colour = torch.rand(count, 3, 1, 1, device=pictures_NCHW.device) * 255
    return torch.where(inside[:, None], colour, pictures_NCHW), torch.cat([low, high], dim=1)


def damage(pictures_NCHW: Tensor) -> Tensor:
    """One batch in six is left alone; else colour always, and softness, blocks and noise each now and then."""
    if torch.rand(()) < 1 / 6:
        return pictures_NCHW
    pictures = recolour(pictures_NCHW)
    if torch.rand(()) < 0.45:
        pictures = soften(pictures)
    if torch.rand(()) < 0.35:
        pictures = compress(pictures)
    if torch.rand(()) < 0.5:
        pictures = speckle(pictures)
    return pictures
