"""Trains the mini whole-body pose model on marionettes and writes `dw-ll_ucoco_384.onnx` with DWPose's signature.

    python -m dynamictrl.mini.train_pose --out DIR --minutes 6 --device cuda

The network is ours and small; only its signature is DWPose's: crops [N, 3, 384, 288] with ImageNet's normalisation to
SimCC [N, 133, 576] and [N, 133, 768], two bins per pixel, whose peak is the score.
Shape suffixes: N crops, J joints (133), B bins.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamictrl.mini.onnx_files import write_onnx
from dynamictrl.mini.pose_augment import cut_out, damage, uniform, warp
from dynamictrl.mini.pose_layers import Block, conv, down, follow
from dynamictrl.mini.pose_stream import stream

logger = logging.getLogger(__name__)

WIDTH, HEIGHT, JOINTS = 288, 384, 133
SPLIT = 2
HELD_OUT_SEED = 990_002
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


def crops_of(batch: dict[str, Any], device: torch.device, *, vary: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Every person of a batch as the runner would crop it: pictures 0..255, joints in crop pixels, scores.

    `vary` also moves, scales and turns the crop, and damages the picture.
    """
    boxes = batch["boxes"]
    which, person = torch.nonzero((boxes[..., 2:] - boxes[..., :2]).amin(dim=-1) > 8, as_tuple=True)
    frames = batch["frames"][which].to(device).permute(0, 3, 1, 2).float()
    boxes = boxes[which, person].to(device)
    points, scores = batch["keypoints"][which, person].to(device), batch["scores"][which, person].to(device)
    inverse, forward = _crop_matrices(boxes, vary)
    crops = warp(frames, inverse, HEIGHT, WIDTH, 0.0)
    # Truth counts pixel centres at halves, OpenCV and DWPose at whole numbers.
    points = torch.einsum("nij,nkj->nki", forward[:, :, :2], points - 0.5) + forward[:, None, :, 2]
    if vary:
        crops, hidden = cut_out(damage(crops))
        under = (points >= hidden[:, None, :2]).all(-1) & (points < hidden[:, None, 2:]).all(-1)
        dimmed = torch.full_like(scores, 0.2)
        dimmed[:, :23] = 0.5
        scores = torch.where(under, torch.minimum(scores, dimmed), scores)
    return crops, points, scores


def _crop_matrices(boxes: Tensor, vary: bool) -> tuple[Tensor, Tensor]:
    """Crop pixels to frame pixels and back, [N, 2, 3] each, for boxes [N, 4]."""
    count = len(boxes)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    size = (boxes[:, 2:] - boxes[:, :2]) * 1.25
    height = torch.maximum(size[:, 1], size[:, 0] * HEIGHT / WIDTH)
    angle = torch.zeros_like(height)
    if vary:
        jitter = torch.empty(count, 2, device=boxes.device).uniform_(-0.08, 0.08)
        centre = centre + jitter * height[:, None] * torch.tensor([WIDTH / HEIGHT, 1.0], device=boxes.device)
        height = height * torch.exp(uniform(count, -0.22, 0.25, boxes))
        angle = uniform(count, -0.45, 0.45, boxes) * (uniform(count, 0, 1, boxes) < 0.4)
    scale = height / HEIGHT
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=-1).view(-1, 2, 2)
    middle = torch.tensor([WIDTH / 2, HEIGHT / 2], device=boxes.device)
    inverse = torch.cat([scale[:, None, None] * turn, (centre - scale[:, None] * (turn @ middle))[..., None]], dim=-1)
    back = turn.transpose(1, 2) / scale[:, None, None]
    forward = torch.cat([back, (middle - (back @ centre[..., None])[..., 0])[..., None]], dim=-1)
    return inverse, forward


def normalise(crops: Tensor) -> Tensor:
    """0..255 to ImageNet's normalisation."""
    mean, std = (torch.tensor(v, device=crops.device).view(1, 3, 1, 1) for v in (_MEAN, _STD))
    return (crops - mean) / std


def train(args: argparse.Namespace) -> MiniPose:
    """Trains until the minutes are used up and returns the averaged weights."""
    torch.manual_seed(args.seed)
    device = torch.device(args.device)
    model = MiniPose().to(device)
    average = deepcopy(model)
    optimiser = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.03)
    batches = stream(args.seed, args.scenes, args.workers)
    begun, step, shown = time.monotonic(), 0, 0
    while (passed := (time.monotonic() - begun) / (60 * args.minutes)) < 1:
        rate = args.learning_rate * min(1, (step + 1) / 200) * (0.5 + 0.5 * math.cos(math.pi * passed))
        for group in optimiser.param_groups:
            group["lr"] = max(rate, 1e-6)
        batch = next(batches)
        for _ in range(args.reuse):
            crops, points, scores = crops_of(batch, device, vary=True)
            crops = normalise(crops).contiguous(memory_format=torch.channels_last)
            loss = pose_loss(model, crops, points, scores)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimiser.step()
            follow(average, model, min(0.998, step / (step + 20)))
            step, shown = step + 1, shown + len(crops)
            if step % 100 == 0:
                logger.info("step %d, %.0f%% of the time, %d crops, loss %.3f", step, 100 * passed, shown, loss.item())
    args.steps, args.crops = step, shown
    return average


def main() -> None:
    """Reads the command line, trains, measures on held-out marionettes, writes the ONNX file and its numbers."""
    from dynamictrl.mini.pose_quality import pose_quality

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for dw-ll_ucoco_384.onnx and pose.json")
    parser.add_argument("--minutes", type=float, default=6.0, help="training time, without set-up and measuring")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--workers", type=int, default=14, help="rendering processes")
    parser.add_argument("--scenes", type=int, default=24, help="scenes per batch, six frames each")
    parser.add_argument("--reuse", type=int, default=2, help="differently damaged copies of each batch")
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=2.5e-3)
    parser.add_argument("--held-out", type=int, default=60, help="scenes to measure on")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args.out.mkdir(parents=True, exist_ok=True)
    model = train(args)
    write_onnx(
        model,
        torch.zeros(1, 3, HEIGHT, WIDTH),
        args.out / "dw-ll_ucoco_384.onnx",
        inputs="input",
        outputs=["simcc_x", "simcc_y"],
        dynamic_batch=True,
        metadata={"family": "mini", "model": "mini whole-body pose model trained on marionettes; not DWPose"},
    )
    quality = pose_quality(args.out / "dw-ll_ucoco_384.onnx", HELD_OUT_SEED, args.held_out)
    record = {"command": {k: str(v) for k, v in vars(args).items()}, "quality": quality}
    (args.out / "pose.json").write_text(json.dumps(record, indent=2) + "\n")
    logger.info("pose: %s", quality)


if __name__ == "__main__":
    main()
