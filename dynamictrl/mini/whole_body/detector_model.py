"""The mini person detector: YOLOX's signature on a small network of our own, and its loss.

Images [1, 3, 640, 640] of 0..255 to [1, 8400, 85] raw cells of strides 8, 16, 32. People are looked for at strides 16
and 32; the cells of stride 8 are always empty. Shape suffixes: N pictures, P persons, K cells (2000 of strides 16, 32).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamictrl.mini.whole_body.layers import Block, conv, down

SIDE = 640
SHRINK = 4
"""The network looks at the picture this much smaller."""
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

    def cells(self, pictures_N3HW: Tensor, shrink: int = SHRINK) -> Tensor:
        """x, y, log width, log height in cells, and the logit of being a person: [N, 2000, 5].

        `shrink` is less for pictures that are smaller than 640 already.
        """
        small = F.avg_pool2d(pictures_N3HW / 255 - 0.5, shrink)
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

    @torch.no_grad()
    def lower(self, logit: float) -> None:
        """Makes every score more cautious by this much, as a logit."""
        for head in self.heads:
            head.bias[4] -= logit  # type: ignore[index]


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


def detection_loss(cells: Tensor, boxes_NP4: Tensor, ignored_NP4: Tensor, places: Tensor, strides: Tensor) -> Tensor:
    """YOLOX's parts: 1 - IoU^2 and L1 on answering cells, and the person's logit towards that IoU.

    Cells in `ignored` boxes (people of whom hardly anything shows) may say what they like.
    """
    targets, positive = assign(boxes_NP4, places, strides)
    found = boxes_of(cells, places, strides)
    iou = overlap(found, targets)
    count = positive.sum().clamp(min=1)
    box = ((1 - iou**2) * positive).sum() / count
    centre = ((targets[..., :2] + targets[..., 2:]) / 2) / strides - places
    extent = ((targets[..., 2:] - targets[..., :2]) / strides).clamp(min=1e-3).log()
    edges = (cells[..., :4] - torch.cat([centre, extent], dim=-1)).abs().sum(dim=-1)
    wanted = torch.where(positive, iou.detach().clamp(min=0.4), torch.zeros_like(iou))
    spots = ((places + 0.5) * strides)[None, None]
    free = (spots > ignored_NP4[:, :, None, :2]).all(-1) & (spots < ignored_NP4[:, :, None, 2:]).all(-1)
    counted = positive | ~free.any(dim=1)
    person = F.binary_cross_entropy_with_logits(cells[..., 4], wanted, reduction="none")
    return 4 * box + 0.5 * (edges * positive).sum() / count + (person * counted).sum() / count
