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
from dynamictrl.mini.stream import Pool

REFERENCES = 4
"""Encodings kept of each clip's reference image: two noise draws on its first frame, two frames drawn at random.

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
def encode_clips(vae: AutoencoderKLCogVideoX, video_BFHWC: Tensor, pose_BFHWC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Video, pose and reference latents of a batch of uint8 clips on the VAE's device."""
    pixels_BCFHW = to_pixels(video_BFHWC)
    video_BFCHW = latents.encode(vae, pixels_BCFHW)
    pose_BFCHW = latents.encode(vae, to_pixels(pose_BFHWC))
    batch, frames = video_BFHWC.shape[:2]
    references = []
    for variant in range(REFERENCES):
        drawn = torch.zeros(batch, dtype=torch.long) if variant < 2 else torch.randint(frames, (batch,))
        image_BCHW = pixels_BCFHW[torch.arange(batch), :, drawn]
        perturbed = conditioning.perturb_reference(image_BCHW)
        references.append(conditioning.reference_latents(vae, perturbed, 1)[:, 0])
    return video_BFCHW, pose_BFCHW, torch.stack(references, dim=1)


def encode_pool(
    vae: AutoencoderKLCogVideoX, tokenizer: PreTrainedTokenizerBase, pool: Pool, *, batch: int, mirrored: bool
) -> LatentPool:
    """Encodes every complete clip, and its mirror image too where asked (captions do not say left or right)."""
    device, ready = vae.device, pool.ready()
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for flip in (False, True) if mirrored else (False,):
        for start in range(0, len(ready), batch):
            clips = [
                torch.from_numpy(np.array(source[ready[start : start + batch]])).to(device)
                for source in (pool.video, pool.pose)
            ]
            video_BFHWC, pose_BFHWC = (clip.flip(3) if flip else clip for clip in clips)
            encoded = encode_clips(vae, video_BFHWC, pose_BFHWC)
            parts.append(tuple(x.half() for x in encoded))  # pyright: ignore[reportArgumentType] - three of them
    tokens_NL = tokenize(tokenizer, [pool.caption(int(index)) for index in ready])
    video_NFCHW, pose_NFCHW, reference_NVCHW = (torch.cat(column) for column in zip(*parts, strict=True))
    repeats = len(video_NFCHW) // len(tokens_NL)
    logger.info("encoded %d clips", len(video_NFCHW))
    return LatentPool(
        video_NFCHW,
        pose_NFCHW,
        reference_NVCHW,
        tokens_NL.repeat(repeats, 1).to(device),
        tokenize(tokenizer, [""])[0].to(device),
    )
