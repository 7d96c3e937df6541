"""From uint8 frames on the training device to the patches that the saved preparation makes of them.

Shape suffixes: B clips, F frames, C channels, H W pixels, T pairs of frames, P patches of a pair, X values of a patch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from dynamictrl.mini.captioner.models import MERGE, PATCH, PATCH_FRAMES


def chosen_frames(count: int, shown: int) -> Tensor:
    """The places of the frames that `Qwen2VLCaptioner` shows of `count`."""
    return torch.from_numpy(np.linspace(0, count - 1, min(count, shown)).round().astype(np.int64))


@cache
def _normalisation(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Kept on the device, since a CUDA graph must not copy from the host."""
    mean, std = torch.tensor(OPENAI_CLIP_MEAN), torch.tensor(OPENAI_CLIP_STD)
    return (1 / (255 * std)).to(device, dtype), (mean / std).to(device, dtype)


def patches(pixels_BFHWC: Tensor) -> Tensor:
    """Frames in 0..255 to normalised patches [B, T, P, X], in the order of transformers' `Qwen2VLVideoProcessor`."""
    scale, shift = _normalisation(pixels_BFHWC.device, pixels_BFHWC.dtype)
    x = pixels_BFHWC * scale - shift
    batch, frames, height, width, _ = x.shape
    rows, columns = height // PATCH, width // PATCH
    x = x.reshape(
        batch, frames // PATCH_FRAMES, PATCH_FRAMES, rows // MERGE, MERGE, PATCH, columns // MERGE, MERGE, PATCH, 3
    )
    x = x.permute(0, 1, 3, 6, 4, 7, 9, 2, 5, 8)
    return x.reshape(batch, frames // PATCH_FRAMES, rows * columns, 3 * PATCH_FRAMES * PATCH**2)


def random_places(batch: int, frames: int, total: int, device: torch.device) -> Tensor:
    """Which of `total` frames each clip shows, [B, F]: spread as at inference, closer, or wider.

    A longer clip's frames lie further apart than a training clip is long; there the clip goes forth and back.
    """
    end = total - 1
    wide = torch.rand(batch, 1, device=device)
    kind = torch.rand(batch, 1, device=device)
    span = torch.where(
        kind < 0.5, end + 0 * wide, torch.where(kind < 0.75, end * (0.6 + 0.4 * wide), end * (1 + 1.4 * wide))
    )
    start = torch.rand(batch, 1, device=device) * (end - span).clamp(min=0) + (kind >= 0.75) * wide * end
    place = start + span * torch.linspace(0, 1, frames, device=device)
    place = place % (2 * end)
    return torch.where(place > end, 2 * end - place, place).round().long()


@dataclass(frozen=True)
class Views:
    """Which pixels of which clips a batch sees."""

    clip_B: Tensor
    place_BF: Tensor
    row_BH: Tensor
    column_BW: Tensor
    mirrored_B: Tensor

    def of(self, video_NFHWC: Tensor) -> Tensor:
        """The frames [B, F, H, W, 3] in 0..255 with light and grain varied."""
        return _damaged(video_NFHWC[_index(self.clip_B, self.place_BF, self.row_BH, self.column_BW)])

    def regions(self, regions_NFHW: Tensor, people_N: Tensor) -> Tensor:
        """What the middle of each patch of each pair's first frame shows, [B, T, P], from every second pixel."""
        rows, columns = (x[:, PATCH // 2 :: PATCH] // 2 for x in (self.row_BH, self.column_BW))
        x = regions_NFHW[_index(self.clip_B, self.place_BF[:, ::PATCH_FRAMES], rows, columns)].long()
        # People are counted from the left, in the mirror too.
        swapped = (self.mirrored_B & (people_N[self.clip_B] == 2))[:, None, None, None]
        x = torch.where(swapped & (x > 0), (x + 1) % 4 + 1, x)
        blocks = x.unflatten(3, (-1, MERGE)).unflatten(2, (-1, MERGE))
        return blocks.transpose(3, 4).flatten(2)


def _index(clip_B: Tensor, place_BF: Tensor, row_BH: Tensor, column_BW: Tensor) -> tuple[Tensor, ...]:
    return clip_B[:, None, None, None], place_BF[:, :, None, None], row_BH[:, None, :, None], column_BW[:, None, None]


def random_views(video_NFHWC: Tensor, clip_B: Tensor, shown: int, reach: int = 6) -> Views:
    """Random frames of the clips, shifted by up to `reach` pixels, half of them mirrored."""
    device, batch = video_NFHWC.device, len(clip_B)
    total, height, width = video_NFHWC.shape[1:4]
    mirrored_B = torch.rand(batch, device=device) < 0.5
    shift = torch.randint(-reach, reach + 1, (2, batch, 1), device=device)
    row = (torch.arange(height, device=device) + shift[0]).clamp(0, height - 1)
    column = (torch.arange(width, device=device) + shift[1]).clamp(0, width - 1)
    column = torch.where(mirrored_B[:, None], width - 1 - column, column)
    return Views(clip_B, random_places(batch, shown, total, device), row, column, mirrored_B)


def _damaged(x_BFHWC: Tensor) -> Tensor:
    """Light and tint a little off, grain, and half of the clips with the coarse colours of 4:2:0 video."""
    device, batch = x_BFHWC.device, len(x_BFHWC)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    one = (batch, 1, 1, 1, 1)
    gain = (
        1
        + 0.06 * (2 * torch.rand(one, device=device) - 1)
        + 0.02 * (2 * torch.rand(batch, 1, 1, 1, 3, device=device) - 1)
    )
    lift = 6 * (2 * torch.rand(one, device=device) - 1)
    x = x_BFHWC.to(dtype) * gain.to(dtype) + lift.to(dtype)
    grain = torch.randn(x.shape, device=device, dtype=dtype)
    x = x + grain * (4 * torch.rand(one, device=device)).to(dtype)
    # Only brightness keeps its full resolution: the colour of a 2 x 2 block is its mean.
    blocks = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
    colour = blocks.mean(dim=(3, 5), keepdim=True)
    coarse = (colour + (blocks - colour).mean(dim=-1, keepdim=True)).flatten(4, 5).flatten(2, 3)
    plain = torch.rand(one, device=device) < 0.5
    return torch.where(plain, x, coarse).clamp(0, 255)
