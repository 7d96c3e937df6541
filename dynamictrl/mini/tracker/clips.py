"""Training pictures of the mini tracker: short runs of marionette frames on the device, and prompts from their masks.

Everything after `TrackClips.grow` is drawn on the device in fixed shapes, so that a CUDA graph can hold it.

Shape suffixes: B batch, F frames, C channels, H W pixels, N points.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dynamictrl.mini.stream import PERSON, Pool

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_AT_ONCE = 3000
SMALLEST = 60
"""Model pixels that a person must cover to be prompted for."""
_BANDS = ((0.14, 0.07), (0.24, 0.07), (0.53, 0.1), (0.53, 0.1))
"""Where nose, neck and hips are in a standing person's box, and how far from there they may be, in its heights."""


@dataclass(frozen=True)
class Batch:
    """One person of each clip."""

    pixels_BFCHW: Tensor
    """As SAM 2's preparation gives them."""
    target_BFHW: Tensor
    """0 to 1, at the model's picture size."""
    points_BN2: Tensor
    labels_BN: Tensor
    """For frame 0: two corners of a box, four points."""
    time_BF: Tensor
    weight_B: Tensor
    """0 where nobody could be prompted for."""


def draw_times(random: np.random.Generator, total: int, frames: int) -> NDArray[np.int64]:
    """Frames to look at in the order of looking: a run of even steps, forward or backward.

    In two of five the first (prompted) frame lies anywhere before the others, as when a session has gone on for long.
    """
    step = min(int(random.choice([1, 1, 2, 3])), (total - 1) // max(1, frames - 1))
    start = int(random.integers(0, total - (frames - 1) * step))
    times = start + step * np.arange(frames)
    if random.random() < 0.4 and start > 0:
        times[0] = random.integers(0, start)
    return total - 1 - times if random.random() < 0.5 else times


class TrackClips:
    """A few frames of every complete clip of the pool, on the training device."""

    def __init__(self, pool: Pool, frames: int, image: int, device: str, seed: int = 0):
        self.pool, self.frames, self.image, self.device = pool, frames, image, device
        self.random = np.random.default_rng(seed)
        self.available = 0
        shape = (pool.count, frames, *pool.video.shape[2:4])
        self.video = torch.empty((*shape, 3), dtype=torch.uint8, device=device)
        self.persons = torch.empty(shape, dtype=torch.uint8, device=device)
        self.time = torch.zeros((pool.count, frames), device=device)
        self.two = torch.zeros(pool.count, device=device)
        self.count = torch.zeros((), device=device)
        """As `available`, where a CUDA graph sees it change."""

    def grow(self) -> int:
        """How many clips can be drawn from; waits for the first. Takes up some thousands at a time, seconds' work."""
        while not (complete := self.pool.complete()):
            time.sleep(1.0)
        prefix = min(complete, self.available + _AT_ONCE)
        total = self.pool.video.shape[1]
        for start in range(self.available, prefix, 64):
            index = np.arange(start, min(start + 64, prefix))
            times = np.stack([draw_times(self.random, total, self.frames) for _ in index])
            persons = self.pool.masks[index[:, None], times] & PERSON
            part = slice(int(index[0]), int(index[-1]) + 1)
            self.video[part] = torch.from_numpy(self.pool.video[index[:, None], times]).to(self.device)
            self.persons[part] = torch.from_numpy(persons).to(self.device)
            self.time[part] = torch.from_numpy(times).to(self.device, torch.float32)
            self.two[part] = torch.from_numpy(persons.max(axis=(1, 2, 3)) > 1).to(self.device, torch.float32)
        self.available = prefix
        self.count.fill_(prefix)
        return prefix

    def batch(self, size: int, frames: int) -> Batch:
        """Random clips, twice as often of two persons as they come; moved, mirrored and recoloured.

        `frames` 1 takes any frame of the clip, otherwise its first `frames`.
        """
        drawn = (torch.rand(2, size, device=self.device) * self.count).long()
        clip = torch.where(self.two[drawn[0]] > 0, drawn[0], drawn[1])
        along = torch.arange(frames, device=self.device)[None].expand(size, -1)
        if frames == 1:
            along = (torch.rand(size, 1, device=self.device) * self.frames).long()
        video = self.video[clip[:, None], along].permute(0, 1, 4, 2, 3).float() / 255
        persons = self.persons[clip[:, None], along]
        masks = torch.stack([persons == 1, persons == 2], dim=2).float()
        moved = _move(torch.cat([video, masks], dim=2), self.image)
        target, weight = _choose(moved[:, :, 3:])
        points, labels = draw_prompts(target[:, 0])
        return Batch(_recolour(moved[:, :, :3]), target, points, labels, self.time[clip[:, None], along], weight)


def normalised(video: Tensor) -> Tensor:
    """RGB in [0, 1], channels third from last, as SAM 2's preparation normalises it."""
    # Channel by channel: a constant tensor would be a copy from the host, which no CUDA graph can hold.
    return torch.stack(
        [(video[..., c, :, :] - mean) / std for c, (mean, std) in enumerate(zip(_MEAN, _STD, strict=True))], dim=-3
    )


def _uniform(shape: tuple[int, ...], low: float, high: float, device: torch.device) -> Tensor:
    return low + (high - low) * torch.rand(shape, device=device)


def _move(layers_BFCHW: Tensor, image: int) -> Tensor:
    """Each clip resized to a square, and in most cases also zoomed, shifted and mirrored."""
    size, frames, channels = layers_BFCHW.shape[:3]
    device = layers_BFCHW.device
    still = (torch.rand(size, device=device) < 0.25).float()
    zoom = _uniform((size, 1), 0.7, 1.15, device) * _uniform((size, 2), 0.92, 1.08, device)
    zoom = torch.where(still[:, None] > 0, torch.ones_like(zoom), zoom)
    shift = _uniform((size, 2), -1, 1, device) * (1.15 - zoom).clamp(min=0) * (1 - still[:, None])
    mirror = torch.where(torch.rand(size, device=device) < 0.5, -1.0, 1.0)
    affine = torch.zeros(size, 2, 3, device=device)
    affine[:, 0, 0], affine[:, 1, 1] = zoom[:, 0] * mirror, zoom[:, 1]
    affine[:, :, 2] = shift
    grid = F.affine_grid(affine, [size, 1, image, image], align_corners=False)
    moved = F.grid_sample(layers_BFCHW.flatten(1, 2), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return moved.unflatten(1, (frames, channels))


def _choose(masks_BFPHW: Tensor) -> tuple[Tensor, Tensor]:
    """One person's mask [B, F, H, W] of those large enough in frame 0, and whether there is one [B]."""
    fits = masks_BFPHW[:, 0].sum(dim=(-2, -1)) > SMALLEST
    lot = torch.rand(fits.shape, device=fits.device) + fits
    second = (lot[:, 1] > lot[:, 0]).view(-1, 1, 1, 1)
    return torch.where(second, masks_BFPHW[:, :, 1], masks_BFPHW[:, :, 0]), fits.any(dim=1).float()


def draw_prompts(mask_BHW: Tensor) -> tuple[Tensor, Tensor]:
    """A box around each mask and four points where trunk joints would be, all a little off; points, labels."""
    size, height, width = mask_BHW.shape
    device = mask_BHW.device
    inside = mask_BHW > 0.5
    rows, columns = torch.arange(height, device=device).float(), torch.arange(width, device=device).float()
    low_x, high_x = _extent(inside.any(dim=1), columns)
    low_y, high_y = _extent(inside.any(dim=2), rows)
    tall = (high_y - low_y).clamp(min=1)
    depth = F.avg_pool2d(inside[:, None].float(), 17, 1, 8)[:, 0]
    points = []
    for middle, spread in _BANDS:
        away = ((rows - low_y[:, None]) / tall[:, None] - middle) / spread
        # Where the band is empty (someone lies, or half of him is outside) the nearest part of the mask is taken.
        liking = (depth.pow(4) * inside + 1e-12).log() - 0.5 * away.square()[:, :, None].clamp(max=60)
        liking = liking - (-torch.rand_like(liking).clamp(1e-6, 1 - 1e-6).log()).log()
        best = liking.flatten(1).argmax(dim=1)
        points.append(torch.stack([best % width, best // width], dim=1).float())
    spots = torch.stack(points, dim=1)
    # A person seen only in part has fewer joints, which the tracker then repeats.
    few = torch.rand(size, 1, 1, device=device) < 0.15
    spots = torch.where(few, spots[:, :2].repeat(1, 2, 1), spots)
    extent = torch.stack([high_x - low_x, tall], dim=1)
    corners = torch.stack([torch.stack([low_x, low_y], 1), torch.stack([high_x, high_y], 1)], dim=1)
    corners = corners + 0.035 * torch.randn_like(corners) * extent[:, None]
    widened = _uniform((size, 1), -0.02, 0.08, device) * extent
    corners = corners + torch.stack([-widened, widened], dim=1)
    spots = spots + 1.5 * torch.randn_like(spots)
    all_points = torch.cat([corners, spots], dim=1).clamp(min=0)
    all_points = torch.stack([all_points[..., 0].clamp(max=width - 1), all_points[..., 1].clamp(max=height - 1)], -1)
    labels = torch.ones(size, 6, dtype=torch.int32, device=device)
    labels[:, 0], labels[:, 1] = 2, 3
    return all_points, labels


def _extent(occupied_BL: Tensor, along_L: Tensor) -> tuple[Tensor, Tensor]:
    """First and last occupied place of each row; 0 and the length where there is none."""
    last = len(along_L) - 1
    low = torch.where(occupied_BL, along_L, along_L.new_full((), last)).amin(dim=1)
    high = torch.where(occupied_BL, along_L, along_L.new_zeros(())).amax(dim=1)
    return torch.minimum(low, high), torch.maximum(low, high)


def _recolour(video_BFCHW: Tensor) -> Tensor:
    """Other light, other contrast, other tint and a little noise, the same over a clip; then normalised."""
    size, device = len(video_BFCHW), video_BFCHW.device
    strength = (torch.rand(size, 1, 1, 1, 1, device=device) < 0.6).float()
    tint = 1 + strength * _uniform((size, 1, 3, 1, 1), -0.15, 0.15, device)
    contrast = 1 + strength * _uniform((size, 1, 1, 1, 1), -0.3, 0.3, device)
    light = strength * _uniform((size, 1, 1, 1, 1), -0.12, 0.12, device)
    video = ((video_BFCHW - 0.5) * contrast + 0.5 + light) * tint
    video = video + strength * 0.02 * torch.randn_like(video)
    return normalised(video.clamp(0, 1))
