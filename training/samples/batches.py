"""From encoded samples to what a step sees: draws latents and noise, drops captions and images.

Shape suffixes: B batch, F latent frames, C latent channels, H W latent size, L text tokens, D text width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dynamictrl import conditioning, objective
from dynamictrl.samples import encodings
from dynamictrl.samples.encodings import Encodings
from training.samples.frozen_models import FrozenModels
from training.samples.order import Draw
from training.settings.clips import Clips


@dataclass(frozen=True)
class Batch:
    """What `objective.training_loss` takes, on the device."""

    video: Tensor
    """[B, F, C, H, W], scaled."""
    image: Tensor
    """[B, F, C, H, W], the reference in the first frame; zeros where it is dropped."""
    pose: Tensor
    """[B, F, C, H, W], scaled; pixels [B, 3, frames, height, width] in [-1, 1] for an expert pose encoder."""
    prompt: Tensor
    """[B, L, D]."""
    noise: Tensor
    """[B, F + padding, C, H, W]."""
    timesteps: Tensor
    """int64 [B]."""

    def tensors(self) -> tuple[Tensor, ...]:
        """All of them."""
        return self.video, self.image, self.pose, self.prompt, self.noise, self.timesteps


class Collator:
    """Turns encoded samples into a batch: draws latents and noise, drops captions and images."""

    def __init__(self, frozen: FrozenModels, clips: Clips, patch_size_t: int | None, device: torch.device):
        self._frozen = frozen
        self._clips = clips
        self._patch_size_t = patch_size_t
        self._device = device

    @torch.no_grad()
    def __call__(self, samples: list[tuple[Draw, Encodings]], timesteps: list[int]) -> Batch:
        """`timesteps` are the samples', in their order."""
        parts = [self._one(draw, encoded) for draw, encoded in samples]
        video, image, pose, prompt, noise = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return Batch(video, image, pose, prompt, noise, self._moved(torch.tensor(timesteps)))

    def _one(self, draw: Draw, encoded: Encodings) -> tuple[Tensor, ...]:
        # A CPU generator, drawn from in a fixed order: a seed means the same noise on every device.
        generator = torch.Generator().manual_seed(draw.noise_seed)
        video = self._posterior(encoded.video, generator) * self._frozen.scale
        pose = self._pose(encoded.pose, generator)
        reference = self._reference(draw, encoded, generator)
        image = torch.cat([reference, torch.zeros_like(video[:, 1:])], dim=1)
        prompt = self._frozen.prompts.empty if draw.drops_caption else encoded.prompt[None]
        # Of the video only the shape counts, which must not wait for the device.
        noise = objective.noise_for(torch.empty(video.shape), self._patch_size_t, generator)
        return video, image, pose, self._moved(prompt), self._moved(noise)

    def _pose(self, encoded: Tensor, generator: torch.Generator) -> Tensor:
        if self._frozen.encodes_pose:
            return self._posterior(encoded, generator) * self._frozen.scale
        return self._moved(encoded[None]).float() / 127.5 - 1

    def _reference(self, draw: Draw, encoded: Encodings, generator: torch.Generator) -> Tensor:
        moments = encoded.reference
        if self._clips.image_noise:
            pixels = encoded.reference_pixels[None].float() / 127.5 - 1
            noisy = conditioning.perturb_reference(pixels, generator)
            if not draw.drops_image:
                moments = encodings.posterior(self._frozen.vae, self._moved(noisy)[:, :, None])[0]
        reference = self._posterior(moments, generator) * self._frozen.image_scale
        return torch.zeros_like(reference) if draw.drops_image else reference

    def _posterior(self, moments: Tensor, generator: torch.Generator) -> Tensor:
        channels, frames, *size = moments.shape
        noise = torch.randn((1, frames, channels // 2, *size), generator=generator)
        return encodings.draw(self._moved(moments[None]), self._moved(noise))

    def _moved(self, tensor: Tensor) -> Tensor:
        """The tensor on the device, without waiting for it."""
        if self._device.type != "cuda" or tensor.is_cuda:
            return tensor.to(self._device)
        return tensor.pin_memory().to(self._device, non_blocking=True)
