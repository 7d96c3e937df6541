"""The mini whole-body pose model: DWPose's signature on a small network of our own, and its loss.

Crops [N, 3, 384, 288] with ImageNet's normalisation to SimCC [N, 133, 576] and [N, 133, 768], two bins per pixel, whose
peak is the score. Shape suffixes: N crops, J joints (133), B bins.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamictrl.mini.whole_body.layers import Block, conv, down

WIDTH, HEIGHT, JOINTS = 288, 384, 133
SPLIT = 2
_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
_SIGMA = 3.0
"""Width of a target peak, bins."""


class MiniPose(nn.Module):
    """288x384 crops to SimCC: features at stride 16 with context from stride 32, one token per joint, attention."""

    def __init__(self, token: int = 224):
        super().__init__()
        self.stem = nn.Sequential(conv(3, 32, 7, 4), Block(32, kernel=3))
        self.to_48 = nn.Sequential(down(32, 64), Block(64), Block(64))
        self.to_24 = nn.Sequential(down(64, 112), Block(112), Block(112), Block(112))
        self.to_12 = nn.Sequential(down(112, 192), Block(192), Block(192), Block(192))
        self.join = nn.Sequential(conv(192 + 112, 144, 1), Block(144), Block(144))
        self.joints = nn.Conv2d(144, JOINTS, 1)
        self.token = nn.Sequential(nn.Linear(24 * 18, token), nn.LayerNorm(token), nn.ReLU())
        self.attend = JointAttention(token)
        self.mix = nn.Sequential(nn.LayerNorm(token), nn.Linear(token, token), nn.ReLU())
        self.x = nn.Linear(token, WIDTH * SPLIT)
        self.y = nn.Linear(token, HEIGHT * SPLIT)
        self.sure = nn.Linear(token, 1)

    def logits(self, crops: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits over x bins [N, J, 576], over y bins [N, J, 768], and of being seen [N, J]."""
        at_24 = self.to_24(self.to_48(self.stem(crops)))
        at_12 = F.interpolate(self.to_12(at_24), scale_factor=2.0)
        maps = self.joints(self.join(torch.cat([at_24, at_12], dim=1)))
        tokens = self.attend(self.token(maps.flatten(2)))
        tokens = tokens + self.mix(tokens)
        return self.x(tokens), self.y(tokens), self.sure(tokens)[..., 0]

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """SimCC: a peak's height is the model's belief that the joint is seen, its place is where."""
        x, y, sure = self.logits(crops)
        height = sure.sigmoid()[..., None]
        return (x - x.amax(dim=-1, keepdim=True)).exp() * height, (y - y.amax(dim=-1, keepdim=True)).exp() * height


class JointAttention(nn.Module):
    """Joints ask each other where they are; each knows its own name."""

    def __init__(self, token: int, width: int = 96):
        super().__init__()
        self.names = nn.Parameter(torch.randn(JOINTS, token) * 0.02)
        self.norm = nn.LayerNorm(token)
        self.ask = nn.Linear(token, 2 * width + token, bias=False)
        self.tell = nn.Linear(token, token)
        self.width = width

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.ask(self.norm(tokens + self.names)).split(
            [self.width, self.width, self.norm.normalized_shape[0]], dim=-1
        )
        weight = (query @ key.transpose(1, 2) * self.width**-0.5).softmax(dim=-1)
        return tokens + self.tell(weight @ value)


def pose_loss(model: MiniPose, crops: Tensor, points: Tensor, scores: Tensor) -> Tensor:
    """Cross entropy against a soft peak on both axes for joints in the crop, and on the score for all."""
    with torch.autocast(crops.device.type, torch.bfloat16, enabled=crops.device.type == "cuda"):
        x, y, sure = model.logits(crops)
    inside = (points >= 0).all(-1) & (points[..., 0] < WIDTH) & (points[..., 1] < HEIGHT) & (scores > 0)
    # A hidden joint is placed too, since pictures of people are full of them, but counts less.
    weight = inside * (0.25 + 0.75 * (scores > 0.9))
    axes = _axis_loss(x.float(), points[..., 0]) + _axis_loss(y.float(), points[..., 1])
    placed = (axes * weight).sum() / weight.sum().clamp(min=1)
    wanted = torch.where(inside, scores.clamp(max=0.97), torch.zeros_like(scores))
    return placed + 2 * F.binary_cross_entropy_with_logits(sure.float(), wanted)


def _axis_loss(logits: Tensor, place: Tensor) -> Tensor:
    bins = torch.arange(logits.shape[-1], device=logits.device)
    target = torch.exp(-0.5 * ((bins - (place * SPLIT)[..., None]) / _SIGMA) ** 2)
    target = target / target.sum(dim=-1, keepdim=True).clamp(min=1e-6)
    return -(target * logits.log_softmax(dim=-1)).sum(dim=-1)


def normalise(crops: Tensor) -> Tensor:
    """0..255 to ImageNet's normalisation."""
    mean, std = (torch.tensor(v, device=crops.device).view(1, 3, 1, 1) for v in (_MEAN, _STD))
    return (crops - mean) / std
