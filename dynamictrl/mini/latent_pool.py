"""The pool of marionettes as latents: encoded once, then every training of a mini DiT reads them from the GPU.

Shape suffixes: N clips, V variants, B batch, F latent frames, C channels, H W size, L text tokens.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dynamictrl import conditioning, latents
from dynamictrl.mini import models
from dynamictrl.mini.ranks import Ranks
from dynamictrl.mini.stream import CLOTHES, PERSON, Pool

BACKGROUND, CLOTHES_ONLY = 4, 5
REFERENCES = 6
"""Encodings kept of each clip's reference image: two noise draws on its first frame, two frames drawn at random, its
first frame without its background, and without its clothes (multi-level control, paper section 3.3).

The published training perturbs the reference anew at each step; several kept draws stand in for that.
"""

logger = logging.getLogger(__name__)


@dataclass
class LatentPool:
    """Encoded clips; all latents are scaled and fp16."""

    video_NFCHW: Tensor
    pose_NFCHW: Tensor
    reference_NVCHW: Tensor
    tokens_NL: Tensor
    """Token ids, padded."""
    nothing_L: Tensor
    """The token ids of the empty prompt."""

    def __len__(self) -> int:
        return len(self.video_NFCHW)

    @staticmethod
    def file(folder: Path, ranks: Ranks) -> Path:
        """Where a rank's share of an encoded pool lies."""
        return folder / f"latents-{ranks.rank}-of-{ranks.count}.pt"

    def to(self, device: str) -> LatentPool:
        return LatentPool(**{name: value.to(device) for name, value in vars(self).items()})

    def save(self, path: Path) -> None:
        torch.save({name: value.cpu() for name, value in vars(self).items()}, path)

    @classmethod
    def load(cls, path: Path) -> LatentPool:
        return cls(**torch.load(path, weights_only=True))


def to_pixels(clips_BFHWC: Tensor) -> Tensor:
    """uint8 clips to [B, C, F, H, W] in [-1, 1]."""
    return clips_BFHWC.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def tokenize(tokenizer: PreTrainedTokenizerBase, captions: list[str]) -> Tensor:
    """Ids [N, TEXT_LENGTH], padded or cut."""
    return tokenizer(
        captions, padding="max_length", max_length=models.TEXT_LENGTH, truncation=True, return_tensors="pt"
    ).input_ids


@torch.no_grad()
def encode_clips(
    vae: AutoencoderKLCogVideoX, video_BFHWC: Tensor, pose_BFHWC: Tensor, masks_BHW: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Video, pose and reference latents of a batch of uint8 clips on the VAE's device; `masks_BHW`: frame 0's."""
    pixels_BCFHW = to_pixels(video_BFHWC)
    video_BFCHW = latents.encode(vae, pixels_BCFHW)
    pose_BFCHW = latents.encode(vae, to_pixels(pose_BFHWC))
    perturbed = [conditioning.perturb_reference(image) for image in _references(pixels_BCFHW, masks_BHW)]
    references = [conditioning.reference_latents(vae, image_BCHW, 1)[:, 0] for image_BCHW in perturbed]
    return video_BFCHW, pose_BFCHW, torch.stack(references, dim=1)


def _references(pixels_BCFHW: Tensor, masks_BHW: Tensor) -> list[Tensor]:
    batch, _, frames = pixels_BCFHW.shape[:3]
    first_BCHW = pixels_BCFHW[:, :, 0]
    drawn = [torch.randint(frames, (batch,)) for _ in range(2)]
    others = [pixels_BCFHW[torch.arange(batch), :, index] for index in drawn]
    person_B1HW, clothes_B1HW = (masks_BHW & PERSON > 0)[:, None], (masks_BHW & CLOTHES > 0)[:, None]
    # Black, as `conditioning.mask_reference` leaves what is not kept.
    masked = [torch.where(kept, first_BCHW, -1.0) for kept in (person_B1HW, ~clothes_B1HW)]
    return [first_BCHW, first_BCHW, *others, *masked]


def encode_pool(
    vae: AutoencoderKLCogVideoX,
    tokenizer: PreTrainedTokenizerBase,
    pool: Pool,
    *,
    batch: int,
    share: tuple[int, int] = (0, 1),
) -> LatentPool:
    """Encodes the complete clips, or of several ranks' the share (rank, ranks) of them, in the VAE's precision."""
    device, ready = vae.device, pool.ready()[share[0] :: share[1]]
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for start in range(0, len(ready), batch):
        taken = ready[start : start + batch]
        sources = (pool.video[taken], pool.pose[taken], pool.masks[taken, 0])
        clips = [torch.from_numpy(np.ascontiguousarray(source)).to(device) for source in sources]
        parts.append(tuple(x.half() for x in encode_clips(vae, *clips)))  # pyright: ignore[reportArgumentType] - three
        if start // batch % 40 == 0:
            logger.info("encoded %d of %d clips", start + len(taken), len(ready))
    video_NFCHW, pose_NFCHW, reference_NVCHW = (torch.cat(column) for column in zip(*parts, strict=True))
    return LatentPool(
        video_NFCHW,
        pose_NFCHW,
        reference_NVCHW,
        tokenize(tokenizer, [pool.caption(int(index)) for index in ready]).to(device),
        tokenize(tokenizer, [""])[0].to(device),
    )
