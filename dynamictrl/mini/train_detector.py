"""Trains the mini person detector on marionettes and writes `yolox_l.onnx` with YOLOX's input and output.

    python -m dynamictrl.mini.train_detector --out DIR --minutes 3 --device cuda

The network is ours and small; only its signature is YOLOX-L's: images [1, 3, 640, 640] of 0..255 to [1, 8400, 85] raw
cells of strides 8, 16, 32. People are looked for at strides 16 and 32; the cells of stride 8 are always empty.
Shape suffixes: N pictures, P persons, K cells (2000 of strides 16 and 32).
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
from dynamictrl.mini.pose_augment import damage, uniform, warp
from dynamictrl.mini.pose_layers import Block, conv, down, follow
from dynamictrl.mini.pose_stream import stream

logger = logging.getLogger(__name__)

SIDE = 640
HELD_OUT_SEED = 990_001
_STRIDES = (16, 32)


class MiniDetector(nn.Module):
    """640x640 pictures to YOLOX cells; works on a quarter of the picture's size."""

    def __init__(self):
        super().__init__()
        self.to_40 = nn.Sequential(conv(3, 24, 3, 2), down(24, 48), Block(48), Block(48))
        self.to_20 = nn.Sequential(down(48, 96), Block(96), Block(96), Block(96))
        self.to_10 = nn.Sequential(down(96, 112), Block(112), Block(112))
        self.join_20 = nn.Sequential(conv(208, 80, 1), Block(80))
        self.join_40 = nn.Sequential(conv(128, 56, 1), Block(56))
        self.heads = nn.ModuleList([nn.Conv2d(56, 5, 1), nn.Conv2d(80, 5, 1)])
        for head in self.heads:
            nn.init.constant_(head.bias[4:], -5.0)  # type: ignore[index]

    def cells(self, pictures_N3HW: Tensor) -> Tensor:
        """x, y, log width, log height in cells, and the logit of being a person: [N, 2000, 5]."""
        small = F.avg_pool2d(pictures_N3HW / 255 - 0.5, 4)
        at_40 = self.to_40(small)
        at_20 = self.to_20(at_40)
        at_10 = self.to_10(at_20)
        at_20 = self.join_20(torch.cat([at_20, F.interpolate(at_10, scale_factor=2.0)], dim=1))
        at_40 = self.join_40(torch.cat([at_40, F.interpolate(at_20, scale_factor=2.0)], dim=1))
        found = [head(level).flatten(2) for head, level in zip(self.heads, (at_40, at_20), strict=True)]
        return torch.cat(found, dim=2).transpose(1, 2)

    def forward(self, images: Tensor) -> Tensor:
        """YOLOX's raw output [N, 8400, 85]: the person's class is sure, the 79 others are 0."""
        cells = self.cells(images)
        person = torch.cat([cells[..., :4], cells[..., 4:].sigmoid(), torch.ones_like(cells[..., :1])], dim=-1)
        # 6400 empty cells of stride 8 in front, 79 empty classes behind.
        return F.pad(person, (0, 79, 6400, 0))


def cell_grid(device: torch.device) -> tuple[Tensor, Tensor]:
    """Column and row [2000, 2] and stride [2000, 1] of the cells that look for people."""
    places, strides = [], []
    for stride in _STRIDES:
        count = SIDE // stride
        y, x = torch.meshgrid(torch.arange(count), torch.arange(count), indexing="ij")
        places.append(torch.stack([x, y], dim=-1).view(-1, 2))
        strides.append(torch.full((count * count, 1), stride))
    return torch.cat(places).float().to(device), torch.cat(strides).float().to(device)


def boxes_of(cells: Tensor, places: Tensor, strides: Tensor) -> Tensor:
    """Cells [N, K, 5] as x1, y1, x2, y2 in pixels [N, K, 4]."""
    centre = (cells[..., :2] + places) * strides
    half = cells[..., 2:4].clamp(max=6).exp() * strides / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def overlap(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of boxes [..., 4]."""
    low, high = torch.maximum(one[..., :2], other[..., :2]), torch.minimum(one[..., 2:], other[..., 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)
    areas = (one[..., 2:] - one[..., :2]).prod(dim=-1) + (other[..., 2:] - other[..., :2]).prod(dim=-1)
    return shared / (areas - shared).clamp(min=1e-6)


def assign(boxes_NP4: Tensor, places: Tensor, strides: Tensor) -> tuple[Tensor, Tensor]:
    """For each cell the box it answers for [N, K, 4], and whether it answers for any [N, K]."""
    centre = (boxes_NP4[..., :2] + boxes_NP4[..., 2:]) / 2
    longest = (boxes_NP4[..., 2:] - boxes_NP4[..., :2]).amax(dim=-1)
    spots = (places + 0.5) * strides
    away = (spots[None, None] - centre[:, :, None]).abs().amax(dim=-1) / strides[None, None, :, 0]
    # Small people are looked for at stride 16, large ones at 32, those between at both.
    level = torch.where(strides[:, 0] == 16, longest[..., None] < 288, longest[..., None] >= 160)
    taken = (away < 1.5) & level & (longest[..., None] > 6)
    nearest = torch.where(taken, away, 1e9).argmin(dim=1)
    chosen = torch.gather(boxes_NP4, 1, nearest[..., None].expand(-1, -1, 4))
    return chosen, taken.any(dim=1)


def detection_loss(cells: Tensor, boxes_NP4: Tensor, places: Tensor, strides: Tensor) -> Tensor:
    """YOLOX's parts: 1 - IoU^2 and L1 on answering cells, and the person's logit towards that IoU."""
    targets, positive = assign(boxes_NP4, places, strides)
    found = boxes_of(cells, places, strides)
    iou = overlap(found, targets)
    count = positive.sum().clamp(min=1)
    box = ((1 - iou**2) * positive).sum() / count
    centre = ((targets[..., :2] + targets[..., 2:]) / 2) / strides - places
    extent = ((targets[..., 2:] - targets[..., :2]) / strides).clamp(min=1e-3).log()
    edges = (cells[..., :4] - torch.cat([centre, extent], dim=-1)).abs().sum(dim=-1)
    wanted = torch.where(positive, iou.detach().clamp(min=0.4), torch.zeros_like(iou))
    person = F.binary_cross_entropy_with_logits(cells[..., 4], wanted, reduction="sum") / count
    return 4 * box + 0.5 * (edges * positive).sum() / count + person


def place(batch: dict[str, Any], device: torch.device, *, vary: bool) -> tuple[Tensor, Tensor]:
    """Letterboxed pictures [N, 3, 640, 640] and boxes [N, P, 4]; `vary` also scales, moves and damages them."""
    frames = batch["frames"].to(device).permute(0, 3, 1, 2).float()
    count, _, height, width = frames.shape
    ratio = torch.full((count,), min(SIDE / height, SIDE / width), device=device)
    move = torch.zeros(count, 2, device=device)
    if vary:
        free = uniform(count, 0, 1, frames) < 0.65
        scale = torch.where(
            free, torch.exp(uniform(count, math.log(0.3), math.log(1.9), frames)), torch.ones_like(ratio)
        )
        room = SIDE - scale[:, None] * ratio[:, None] * torch.tensor([width, height], device=device)
        ratio = ratio * scale
        move = torch.where(free[:, None], room * torch.rand(count, 2, device=device), move)
    inverse = torch.zeros(count, 2, 3, device=device)
    inverse[:, 0, 0] = inverse[:, 1, 1] = 1 / ratio
    # Half a pixel as cv2.resize counts it.
    inverse[:, :, 2] = (0.5 - move) / ratio[:, None] - 0.5
    pictures = warp(frames, inverse, SIDE, SIDE, 114.0)
    boxes = batch["boxes"].to(device) * ratio[:, None, None] + move.repeat(1, 2)[:, None]
    if vary:
        pictures = damage(pictures)
    return pictures, _shown(boxes)


def _shown(boxes_NP4: Tensor) -> Tensor:
    """Boxes cut at the picture's edge; those with too little left become zeros."""
    cut = boxes_NP4.clamp(0, SIDE)
    before = (boxes_NP4[..., 2:] - boxes_NP4[..., :2]).prod(dim=-1)
    after = (cut[..., 2:] - cut[..., :2]).prod(dim=-1)
    keep = (after > 0.25 * before) & ((cut[..., 2:] - cut[..., :2]).amin(dim=-1) > 6)
    return torch.where(keep[..., None], cut, torch.zeros_like(cut))


def train(args: argparse.Namespace) -> MiniDetector:
    """Trains until the minutes are used up and returns the averaged weights."""
    torch.manual_seed(args.seed)
    device = torch.device(args.device)
    model = MiniDetector().to(device)
    average = deepcopy(model)
    optimiser = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.02)
    places, strides = cell_grid(device)
    batches = stream(args.seed, args.scenes, args.workers, empty_share=0.35)
    begun, step, shown = time.monotonic(), 0, 0
    while (passed := (time.monotonic() - begun) / (60 * args.minutes)) < 1:
        rate = args.learning_rate * min(1, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * passed))
        for group in optimiser.param_groups:
            group["lr"] = max(rate, 1e-6)
        pictures, boxes = place(next(batches), device, vary=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            cells = model.cells(pictures.contiguous(memory_format=torch.channels_last))
        loss = detection_loss(cells.float(), boxes, places, strides)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        follow(average, model, min(0.998, step / (step + 20)))
        step, shown = step + 1, shown + len(pictures)
        if step % 100 == 0:
            logger.info("step %d, %.0f%% of the time, %d pictures, loss %.3f", step, 100 * passed, shown, loss.item())
    args.steps, args.pictures = step, shown
    return average


def main() -> None:
    """Reads the command line, trains, measures on held-out marionettes, writes the ONNX file and its numbers."""
    from dynamictrl.mini.pose_quality import detector_quality

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for yolox_l.onnx and detector.json")
    parser.add_argument("--minutes", type=float, default=3.0, help="training time, without set-up and measuring")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--workers", type=int, default=8, help="rendering processes")
    parser.add_argument("--scenes", type=int, default=16, help="scenes per step, six frames each")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--held-out", type=int, default=60, help="scenes to measure on")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args.out.mkdir(parents=True, exist_ok=True)
    model = train(args)
    write_onnx(
        model,
        torch.zeros(1, 3, SIDE, SIDE),
        args.out / "yolox_l.onnx",
        inputs="images",
        outputs=["output"],
        dynamic_batch=False,
        metadata={"family": "mini", "model": "mini person detector trained on marionettes; not YOLOX-L"},
    )
    quality = detector_quality(args.out / "yolox_l.onnx", HELD_OUT_SEED, args.held_out)
    record = {"command": {k: str(v) for k, v in vars(args).items()}, "quality": quality}
    (args.out / "detector.json").write_text(json.dumps(record, indent=2) + "\n")
    logger.info("detector: %s", quality)


if __name__ == "__main__":
    main()
