"""Training crops for the pose model: one person in the middle, cut out as the runner would, and what may go wrong.

Shape suffixes: N crops, J joints (133), C colours, H W size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dynamictrl.mini.whole_body.augment import chance, damage, enlargement, uniform
from dynamictrl.mini.whole_body.compose import Shown, Wardrobe, backdrops, shadows, show, things
from dynamictrl.mini.whole_body.pose_model import HEIGHT, WIDTH
from dynamictrl.mini.whole_body.stream import Bank

_BODY_AND_FEET = 23
_NOBODY = 0.07
"""Share of crops without anyone."""
_HIDDEN, _HIDDEN_DETAIL = 0.5, 0.2
"""As `marionettes/truth.py` scores what cannot be seen."""


def crops_of(bank: Bank, wardrobe: Wardrobe, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """New crops 0..255 [N, 3, 384, 288], joints in crop pixels [N, J, 2], scores [N, J]."""
    index_N = bank.pick(count)
    points, scores = bank.kept["points"][index_N], bank.kept["scores"][index_N]
    stretch, boxes, points = _stretched(bank, index_N, points)
    frames = _frames(boxes)
    inverse, forward = crop_matrices(_shared(boxes, frames))
    person = show(bank, wardrobe, index_N, _through(stretch, inverse), HEIGHT, WIDTH)
    crops = things(bank, count, HEIGHT, WIDTH, 0.4, 0.9).over(backdrops(bank, count, HEIGHT, WIDTH))
    floor = torch.stack([(boxes[:, 0] + boxes[:, 2]) / 2, boxes[:, 3] - 0.02 * (boxes[:, 3] - boxes[:, 1])], dim=-1)
    feet = torch.einsum("nij,nj->ni", forward[:, :, :2], floor) + forward[:, :, 2]
    crops = shadows(crops, feet, (boxes[:, 3] - boxes[:, 1]) / enlargement(inverse), 0.5)
    other, behind = _other_person(bank, wardrobe, boxes, inverse)
    # A detector errs, so some crops show nobody, and no joint of theirs is to be seen.
    there = 1 - chance(count, _NOBODY, boxes).view(-1, 1, 1, 1)
    crops = torch.lerp(crops, other.colour, other.cover * behind * there)
    crops = torch.lerp(crops, person.colour, person.cover * there)
    before = other.cover * (1 - behind) * there
    crops = torch.lerp(crops, other.colour, before)
    for share, most in ((0.3, 0.5), (0.2, 1.6)):
        thing = things(bank, count, HEIGHT, WIDTH, share, most)
        crops, before = thing.over(crops), torch.maximum(before, thing.cover)
    seen = torch.einsum("nij,nkj->nki", forward[:, :, :2], points - 0.5) + forward[:, None, :, 2]
    scores = _hide(scores, before, seen)
    outside = (points < frames[:, None, :2]).any(-1) | (points > frames[:, None, 2:]).any(-1)
    return _cut(damage(crops), frames, inverse), seen, scores * ~outside * there.view(-1, 1)


def _stretched(bank: Bank, index_N: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Makes people wider or narrower: factor [N], boxes [N, 4] and points in the stretched canvas's pixels."""
    stretch = torch.exp(uniform(len(index_N), -0.2, 0.2, points))
    wide = torch.stack([stretch, torch.ones_like(stretch)], dim=-1)
    return stretch, bank.kept["boxes"][index_N] * wide.repeat(1, 2), points * wide[:, None]


def _through(stretch: Tensor, inverse: Tensor) -> Tensor:
    """Crop pixels to the unstretched canvas's; whole numbers are pixel centres on both sides."""
    undo = torch.stack([1 / stretch, torch.ones_like(stretch)], dim=-1)
    matrix = inverse * undo[..., None]
    shift = 0.5 * undo - 0.5
    return torch.cat([matrix[:, :, :2], (matrix[:, :, 2] + shift)[..., None]], dim=-1)


def _frames(boxes: Tensor) -> Tensor:
    """Where the video's frame ends around each person [N, 4]; in two of five it cuts the person off."""
    count = len(boxes)
    size = boxes[:, 2:] - boxes[:, :2]
    room = torch.empty(count, 4, device=boxes.device).uniform_(0.02, 0.9) * size.repeat(1, 2)
    room = torch.where(torch.rand(count, 4, device=boxes.device) < 0.5, room * 4, room)
    sign = torch.tensor([-1, -1, 1, 1], device=boxes.device)
    frames = boxes + sign * room
    kept = torch.where(chance(count, 0.5, boxes) > 0, uniform(count, 0.3, 0.6, boxes), uniform(count, 0.6, 0.98, boxes))
    bottom = boxes[:, 1] + kept * size[:, 1]
    frames[:, 3] = torch.where(torch.rand(count, device=boxes.device) < 0.3, bottom, frames[:, 3])
    nibble = torch.empty(count, 4, device=boxes.device).uniform_(0.02, 0.35) * size.repeat(1, 2)
    nibbled = torch.rand(count, 4, device=boxes.device) < torch.tensor([0.06, 0.04, 0.06, 0.0], device=boxes.device)
    return torch.where(nibbled, boxes - sign * nibble, frames)


def _shared(boxes: Tensor, frames: Tensor) -> Tensor:
    return torch.cat([torch.maximum(boxes[:, :2], frames[:, :2]), torch.minimum(boxes[:, 2:], frames[:, 2:])], dim=1)


def crop_matrices(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Crop pixels to frame pixels and back, [N, 2, 3] each, for boxes [N, 4] found a little wrongly and turned."""
    count = len(boxes)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    size = (boxes[:, 2:] - boxes[:, :2]) * 1.25
    height = torch.maximum(size[:, 1], size[:, 0] * HEIGHT / WIDTH)
    jitter = torch.empty(count, 2, device=boxes.device).uniform_(-0.11, 0.11)
    centre = centre + jitter * height[:, None] * torch.tensor([WIDTH / HEIGHT, 1.0], device=boxes.device)
    height = height * torch.exp(uniform(count, -0.25, 0.34, boxes))
    angle = uniform(count, -0.5, 0.5, boxes) * chance(count, 0.45, boxes)
    scale = height / HEIGHT
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=-1).view(-1, 2, 2)
    middle = torch.tensor([WIDTH / 2, HEIGHT / 2], device=boxes.device)
    inverse = torch.cat([scale[:, None, None] * turn, (centre - scale[:, None] * (turn @ middle))[..., None]], dim=-1)
    back = turn.transpose(1, 2) / scale[:, None, None]
    forward = torch.cat([back, (middle - (back @ centre[..., None])[..., 0])[..., None]], dim=-1)
    return inverse, forward


def _other_person(bank: Bank, wardrobe: Wardrobe, boxes: Tensor, inverse: Tensor) -> tuple[Shown, Tensor]:
    """Somebody else beside a third of the people, and whether behind them [N, 1, 1, 1]."""
    count = len(boxes)
    index_N = bank.pick(count)
    size = boxes[:, 2:] - boxes[:, :2]
    other = bank.kept["boxes"][index_N]
    side = 2 * chance(count, 0.5, boxes) - 1
    away = torch.stack([side * uniform(count, 0.35, 1.1, boxes), uniform(count, -0.2, 0.2, boxes)], dim=-1)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 + away * size
    scale = (other[:, 3] - other[:, 1]) / size[:, 1] * torch.exp(uniform(count, -0.3, 0.3, boxes))
    matrix = inverse * scale.view(-1, 1, 1)
    middle = (other[:, :2] + other[:, 2:]) / 2
    matrix[:, :, 2] += middle - scale[:, None] * centre
    shown = show(bank, wardrobe, index_N, matrix, HEIGHT, WIDTH)
    there = chance(count, 0.35, boxes).view(-1, 1, 1, 1)
    return Shown(shown.colour, shown.cover * there), chance(count, 0.55, boxes).view(-1, 1, 1, 1)


def _hide(scores: Tensor, before: Tensor, points: Tensor) -> Tensor:
    """Scores of joints that something in front covers are lowered."""
    size = torch.tensor([WIDTH, HEIGHT], device=points.device)
    spots = ((2 * points + 1) / size - 1)[:, None]
    covered = F.grid_sample(before, spots, align_corners=False)[:, 0, 0] > 0.5
    dimmed = torch.full_like(scores, _HIDDEN_DETAIL)
    dimmed[:, :_BODY_AND_FEET] = _HIDDEN
    return torch.where(covered, torch.minimum(scores, dimmed), scores)


def _cut(crops: Tensor, frames: Tensor, inverse: Tensor) -> Tensor:
    """Black where the crop reaches past the frame, as the runner leaves it."""
    count = len(crops)
    y, x = torch.meshgrid(
        torch.arange(HEIGHT, device=crops.device, dtype=torch.float32),
        torch.arange(WIDTH, device=crops.device, dtype=torch.float32),
        indexing="ij",
    )
    spots = torch.stack([x, y, torch.ones_like(x)], dim=-1).view(-1, 3)
    place = torch.einsum("kc,nrc->nkr", spots, inverse) + 0.5
    inside = (place >= frames[:, None, :2]).all(-1) & (place <= frames[:, None, 2:]).all(-1)
    return crops * inside.view(count, 1, HEIGHT, WIDTH)
