"""Training pictures for the detector: none to three people of all sizes in frames of all shapes, letterboxed.

Pictures have half the detector's side. Shape suffixes: N pictures, P persons (3), C colours, H W size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dynamictrl.mini.whole_body.augment import chance, damage, uniform
from dynamictrl.mini.whole_body.compose import Shown, Wardrobe, backdrops, shadows, show, things
from dynamictrl.mini.whole_body.stream import Bank

SIDE = 320
SHRINK = 2
"""What is left of the network's shrinking at this size."""
_PERSONS = 3
_COUNTS = (0.3, 0.38, 0.24, 0.08)
"""Shares of pictures with nobody, one, two and three people."""
_FILL = 114.0


def pictures_of(
    bank: Bank, wardrobe: Wardrobe, count: int, shares: tuple[float, ...] = _COUNTS
) -> tuple[Tensor, Tensor, Tensor]:
    """New pictures 0..255 [N, 3, 320, 320], and boxes to find and to ignore [N, P, 4] in pixels of 640."""
    device = bank.device
    odds = torch.tensor(shares, device=device)
    persons_N = torch.multinomial(odds, count, replacement=True)
    frame_N2 = _frames(count, odds)
    pictures = backdrops(bank, count, SIDE, SIDE)
    for share in (0.4, 0.3, 0.2):
        pictures = things(bank, count, SIDE, SIDE, share, 0.8).over(pictures)
    covers, boxes, areas = [], [], []
    share_N = torch.exp(uniform(count, math.log(0.075), math.log(1.7), odds))
    for person in range(_PERSONS):
        if person:
            alike = torch.exp(uniform(count, -0.25, 0.25, odds))
            anew = torch.exp(uniform(count, math.log(0.075), math.log(1.7), odds))
            share_N = torch.where(chance(count, 0.7, odds) > 0, share_N * alike, anew).clamp(0.06, 1.9)
        there = (persons_N > person).float()
        shown, box, area = _person(bank, wardrobe, frame_N2, share_N)
        shown = Shown(shown.colour, shown.cover * there.view(-1, 1, 1, 1))
        middle, high = (box[:, 0] + box[:, 2]) / 2, (box[:, 3] - box[:, 1]) * there
        pictures = shadows(pictures, torch.stack([middle, box[:, 3] - 0.02 * high], dim=-1), high, 0.5)
        pictures = shown.over(pictures)
        covers = [cover * (1 - shown.cover) for cover in covers] + [shown.cover]
        boxes.append(box * there[:, None])
        areas.append(area)
    for share, most in ((0.2, 0.3), (0.15, 1.0)):
        thing = things(bank, count, SIDE, SIDE, share, most)
        pictures = thing.over(pictures)
        covers = [cover * (1 - thing.cover) for cover in covers]
    y = torch.arange(SIDE, device=device).view(1, 1, -1, 1)
    x = torch.arange(SIDE, device=device).view(1, 1, 1, -1)
    inside = (x < frame_N2[:, 0].view(-1, 1, 1, 1)) & (y < frame_N2[:, 1].view(-1, 1, 1, 1))
    pictures = torch.where(inside, damage(pictures), _FILL)
    found, ignored = _sorted_out(torch.stack(boxes, 1), torch.cat(covers, 1) * inside, torch.stack(areas, 1), frame_N2)
    return pictures, 2 * found, 2 * ignored


def _frames(count: int, like: Tensor) -> Tensor:
    """Width and height of the frame in each square [N, 2]; the longer side fills it."""
    aspect = torch.exp(uniform(count, -0.75, 0.75, like))
    return (SIDE * torch.stack([aspect.clamp(max=1), (1 / aspect).clamp(max=1)], dim=-1)).round()


def _person(bank: Bank, wardrobe: Wardrobe, frame_N2: Tensor, share_N: Tensor) -> tuple[Shown, Tensor, Tensor]:
    """Someone at a random spot, `share` of the frame high: the picture, the box in pixels, the area in pixels."""
    count = len(frame_N2)
    index_N = bank.pick(count)
    box = bank.kept["boxes"][index_N]
    size = box[:, 2:] - box[:, :2]
    # Along the longer side, so that who lies down is not larger than who stands.
    scale = share_N * frame_N2[:, 1] / size.amax(dim=-1)
    wide, high = (size * scale[:, None]).unbind(-1)
    x = frame_N2[:, 0] * torch.rand(count, device=box.device)
    top = torch.rand(count, device=box.device) * (frame_N2[:, 1] - high).clamp(min=0)
    # Who does not fit is cut off below more often than above.
    past = (high - frame_N2[:, 1]).clamp(min=0)
    top = top + frame_N2[:, 1] * uniform(count, -0.08, 0.25, box) * (past > 0) - 0.35 * past * chance(count, 0.3, box)
    lowered = 0.6 * high * torch.rand(count, device=box.device) * chance(count, 0.2, box)
    centre = torch.stack([x, top + lowered + high / 2], dim=-1)
    mirror = 1 - 2 * chance(count, 0.5, box)
    back = torch.stack([mirror, torch.ones_like(mirror)], dim=-1) / scale[:, None]
    middle = (box[:, :2] + box[:, 2:]) / 2
    # Pixel centres are whole numbers for `warp`, box edges count from the pixel's edge.
    shift = middle - back * (centre - 0.5) - 0.5
    shown = show(bank, wardrobe, index_N, torch.cat([torch.diag_embed(back), shift[..., None]], dim=-1), SIDE, SIDE)
    half = torch.stack([wide, high], dim=-1) / 2
    area = (bank.kept["part"][index_N] > 0).sum(dim=(1, 2)) * scale**2
    return shown, torch.cat([centre - half, centre + half], dim=-1), area


def _sorted_out(boxes: Tensor, covers: Tensor, areas: Tensor, frame_N2: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes cut at the frame: those of people who can be seen, and those of people of whom little shows."""
    cut = torch.minimum(boxes.clamp(min=0), frame_N2.repeat(1, 2)[:, None])
    shown = covers.sum(dim=(2, 3)) / areas.clamp(min=1)
    small = (cut[..., 2:] - cut[..., :2]).amin(dim=-1) < 4
    there = (boxes[..., 2] > boxes[..., 0]) & (cut[..., 2:] > cut[..., :2]).all(-1)
    found = there & ~small & (shown > 0.22)
    return cut * found[..., None], cut * (there & ~found)[..., None]
