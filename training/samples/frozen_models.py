"""The models that training uses and never changes.

Shape suffixes: F frames, M mean and log variance, H W size.
"""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX
from numpy.typing import NDArray
from torch import Tensor

from dynamictrl import conditioning, latents
from dynamictrl.samples import encodings
from dynamictrl.samples.encodings import Encodings
from dynamictrl.samples.windows import WindowPixels


class FrozenModels:
    """The VAE and the text encoder, which training uses and never changes."""

    def __init__(
        self,
        vae: AutoencoderKLCogVideoX,
        prompts: conditioning.PromptEncoder,
        image_scale: float,
        *,
        encodes_pose: bool = True,
    ):
        """`image_scale` is `latents.image_latent_scale`'s; `encodes_pose` off leaves poses to an expert encoder."""
        self.vae = vae
        self.prompts = prompts
        self.scale = float(vae.config["scaling_factor"])
        self.image_scale = image_scale
        self.encodes_pose = encodes_pose

    def encode(self, pixels: WindowPixels) -> Encodings:
        """Encodings of one window, in host memory."""
        pose = torch.tensor(pixels.pose).permute(3, 0, 1, 2).contiguous()
        return Encodings(
            video=self.posterior(pixels.video),
            pose=self.posterior(pixels.pose) if self.encodes_pose else pose,
            reference=self.posterior(pixels.reference[None]),
            reference_pixels=torch.tensor(pixels.reference).permute(2, 0, 1).contiguous(),
            prompt=self.prompts([pixels.caption])[0].cpu(),
        )

    def posterior(self, frames_FHWC: NDArray[np.uint8]) -> Tensor:
        return encodings.posterior(self.vae, conditioning.to_pixels(frames_FHWC))[0].cpu()


def image_scale(vae: AutoencoderKLCogVideoX, rule: str) -> float:
    """The reference latent's factor by the model folder's rule."""
    return latents.image_latent_scale(vae.config, rule)  # pyright: ignore[reportArgumentType]
