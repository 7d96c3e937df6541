"""Building blocks of the mini detector and the mini pose model: cheap on one CPU core."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def conv(channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    layer = nn.Conv2d(channels, out, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(out), nn.ReLU(inplace=True))


def down(channels: int, out: int) -> nn.Sequential:
    """Halves the size: a depthwise 3x3 of stride 2, then a mix of channels."""
    return nn.Sequential(conv(channels, channels, 3, 2, groups=channels), conv(channels, out, 1))


class Block(nn.Module):
    """Inverted residual: widen, look around (5x5 depthwise), narrow, add."""

    def __init__(self, channels: int, widen: int = 2, kernel: int = 5):
        super().__init__()
        wide = channels * widen
        self.path = nn.Sequential(
            conv(channels, wide, 1),
            conv(wide, wide, kernel, groups=wide),
            nn.Conv2d(wide, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.path(x)


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, keep: float) -> None:
    """Moves `average` towards `model` in place, keeping the share `keep` of itself."""
    pairs = list(zip(average.state_dict().values(), model.state_dict().values(), strict=True))
    floating = [(kept, new) for kept, new in pairs if kept.is_floating_point()]
    torch._foreach_lerp_([kept for kept, _ in floating], [new for _, new in floating], 1 - keep)
    for kept, new in pairs:
        if not kept.is_floating_point():
            kept.copy_(new)
