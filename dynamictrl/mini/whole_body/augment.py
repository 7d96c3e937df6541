"""What cameras, lights and codecs do to a picture, done on the training device.

Pictures are float 0..255. Shape suffixes: N pictures, C colours, H W size, J joints.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def warp(
    pictures_NCHW: Tensor,
    matrix_N23: Tensor,
    height: int,
    width: int,
    *,
    mode: str = "bilinear",
    padding: str = "zeros",
    bend_NHW2: Tensor | None = None,
) -> Tensor:
    """Samples [N, C, height, width]; the matrices take output pixels to input pixels, whole numbers at centres.

    `bend` moves each sample further, in input pixels.
    """
    count, _, rows, columns = pictures_NCHW.shape
    device = pictures_NCHW.device
    y, x = torch.meshgrid(
        torch.arange(height, device=device, dtype=torch.float32),
        torch.arange(width, device=device, dtype=torch.float32),
        indexing="ij",
    )
    spots = torch.stack([x, y, torch.ones_like(x)], dim=-1).view(-1, 3)
    source = torch.einsum("kc,nrc->nkr", spots, matrix_N23).view(count, height, width, 2)
    if bend_NHW2 is not None:
        source = source + bend_NHW2
    size = torch.tensor([columns, rows], device=device, dtype=torch.float32)
    grid = (2 * source + 1) / size - 1
    return F.grid_sample(pictures_NCHW, grid, mode=mode, padding_mode=padding, align_corners=False)


def enlargement(matrix_N23: Tensor) -> Tensor:
    """[N], how many input pixels an output pixel's side spans."""
    a, b, c, d = matrix_N23[:, :, :2].reshape(-1, 4).unbind(-1)
    return (a * d - b * c).abs().sqrt()


def uniform(count: int, low: float, high: float, like: Tensor) -> Tensor:
    """[count] random numbers on the device of `like`."""
    return torch.empty(count, device=like.device).uniform_(low, high)


def chance(count: int, share: float, like: Tensor) -> Tensor:
    """[count] of 1 with the probability `share`, else 0."""
    return (torch.rand(count, device=like.device) < share).float()


def relight(pictures_NCHW: Tensor) -> Tensor:
    """A light from one side, and darker corners."""
    count, _, height, width = pictures_NCHW.shape
    y = torch.linspace(-1, 1, height, device=pictures_NCHW.device)[None, :, None]
    x = torch.linspace(-1, 1, width, device=pictures_NCHW.device)[None, None]
    angle, depth = uniform(count, 0, 2 * math.pi, y).view(-1, 1, 1), uniform(count, 0, 0.5, y).view(-1, 1, 1)
    corner = (uniform(count, 0, 0.35, y) * chance(count, 0.4, y)).view(-1, 1, 1)
    light = 1 + depth * (angle.cos() * x + angle.sin() * y) - corner * (x**2 + y**2)
    return (pictures_NCHW * light[:, None]).clamp(0, 255)


def recolour(pictures_NCHW: Tensor) -> Tensor:
    """Brightness, contrast, gamma, saturation and colour cast, each picture its own; one in eight is grey."""
    count = len(pictures_NCHW)
    shape = (count, 1, 1, 1)
    grey = pictures_NCHW.mean(dim=1, keepdim=True)
    saturation = uniform(count, 0.15, 1.5, grey) * (1 - chance(count, 0.125, grey))
    pictures = grey + saturation.view(shape) * (pictures_NCHW - grey)
    mean = pictures.mean(dim=(1, 2, 3), keepdim=True)
    contrast = uniform(count, 0.45, 1.4, grey).view(shape)
    pictures = mean + contrast * (pictures - mean) + uniform(count, -50, 50, grey).view(shape)
    cast = torch.empty(count, 3, 1, 1, device=grey.device).uniform_(0.82, 1.18)
    gamma = torch.exp(uniform(count, -0.45, 0.45, grey)).view(shape)
    return 255 * ((pictures * cast).clamp(1, 255) / 255) ** gamma


def soften(pictures_NCHW: Tensor, most: float = 4.0) -> Tensor:
    """Shrinks the whole batch and enlarges it again: what a small or blurred source looks like."""
    height, width = pictures_NCHW.shape[-2:]
    factor = 1 + (most - 1) * float(torch.rand(())) ** 1.5
    small = F.interpolate(pictures_NCHW, size=(int(height / factor), int(width / factor)), mode="area")
    return F.interpolate(small, size=(height, width), mode="bilinear", align_corners=False)


def streak(pictures_NCHW: Tensor, most: int = 13) -> Tensor:
    """Motion blur along one random direction for the whole batch."""
    side = 2 * int(torch.randint(1, most // 2 + 1, ())) + 1
    steps = torch.linspace(-(side // 2), side // 2, 4 * side)
    angle = float(torch.rand(())) * math.pi
    kernel = torch.zeros(side, side)
    row, column = (steps * math.sin(angle)).round().long(), (steps * math.cos(angle)).round().long()
    kernel.index_put_((row + side // 2, column + side // 2), torch.ones(len(steps)), accumulate=True)
    kernel = (kernel / kernel.sum()).to(pictures_NCHW).expand(3, 1, -1, -1)
    padded = F.pad(pictures_NCHW, (side // 2,) * 4, mode="replicate")
    return F.conv2d(padded, kernel, groups=3)


def sharpen(pictures_NCHW: Tensor) -> Tensor:
    """Overshoots edges, as cameras and players do."""
    blurred = F.avg_pool2d(F.pad(pictures_NCHW, (1, 1, 1, 1), mode="replicate"), 3, 1)
    amount = uniform(len(pictures_NCHW), 0.2, 1.2, blurred).view(-1, 1, 1, 1)
    return (pictures_NCHW + amount * (pictures_NCHW - blurred)).clamp(0, 255)


def _cosines(device: torch.device) -> Tensor:
    k, n = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    table = torch.cos(math.pi * (2 * n + 1) * k / 16) * math.sqrt(2 / 8)
    table[0] /= math.sqrt(2)
    return table.to(device)


def compress(pictures_NCHW: Tensor) -> Tensor:
    """Coarse 8x8 cosine blocks, coarser for fine detail: what strong JPEG or H.264 leaves. Sides divide by 8."""
    count, colours, height, width = pictures_NCHW.shape
    table = _cosines(pictures_NCHW.device)
    blocks = pictures_NCHW.reshape(count, colours, height // 8, 8, width // 8, 8).permute(0, 1, 2, 4, 3, 5)
    waves = table @ blocks @ table.T
    order = torch.arange(8, device=table.device)
    step = uniform(count, 2, 16, table).view(-1, 1, 1, 1, 1, 1) * (1 + 0.8 * (order[:, None] + order[None]))
    blocks = table.T @ (torch.round(waves / step) * step) @ table
    return blocks.permute(0, 1, 2, 4, 3, 5).reshape(count, colours, height, width).clamp(0, 255)


def speckle(pictures_NCHW: Tensor, most: float = 16.0) -> Tensor:
    """Sensor noise of a strength of each picture's own."""
    strength = uniform(len(pictures_NCHW), 0, most, pictures_NCHW).view(-1, 1, 1, 1)
    return (pictures_NCHW + strength * torch.randn_like(pictures_NCHW)).clamp(0, 255)


def damage(pictures_NCHW: Tensor, groups: int = 8) -> Tensor:
    """Gives each of `groups` parts of the batch its own mishaps; one part in six is left alone.

    Sides must divide by 8.
    """
    return torch.cat([_mishap(part) for part in pictures_NCHW.chunk(groups)])


def _mishap(pictures: Tensor) -> Tensor:
    if torch.rand(()) < 1 / 6:
        return pictures
    pictures = relight(pictures) if torch.rand(()) < 0.5 else pictures
    pictures = recolour(pictures)
    # In the order in which light, lens, sensor and codec meet a picture.
    for share, harm in ((0.2, streak), (0.4, soften), (0.15, sharpen), (0.4, speckle), (0.35, compress)):
        if torch.rand(()) < share:
            pictures = harm(pictures)
    return pictures
