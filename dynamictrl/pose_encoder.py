"""The expert pose encoder that the paper compares the shared VAE with (Table 5), and how it learns with a transformer.

The paper describes it by its predecessors: shallow convolutions, Gaussian first weights, trained with the model. This
one halves the picture three times, merges four frames into one as the VAE does (the first stands alone), and gives
latents of the VAE's shape, so that everything behind it stays the same.

Shape suffixes: B batch, F frames (of pixels or latents), C channels, H W size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from dynamictrl.errors import ConfigError, InputError
from dynamictrl.geometry import FRAMES_PER_LATENT
from dynamictrl.latents import pad_front


class PoseEncoder(ModelMixin, ConfigMixin):
    """Pose pixels to pose latents, 8 x 8 pixels and 4 frames to one; saved as `pose_encoder` in a model folder."""

    _supports_gradient_checkpointing = False

    @register_to_config
    def __init__(self, latent_channels: int = 16, widths: tuple[int, ...] = (32, 64, 128)):
        """`widths` are the channels after each halving; three, as the VAE makes 8 pixels one."""
        super().__init__()
        if len(widths) != 3 or min(widths) < 1:
            raise ConfigError(f"widths is {widths}; it must be three channel counts, one for each halving")
        # Halved from the first layer on: at full size one activation of a 37-frame clip would take gigabytes.
        self.spatial = nn.ModuleList(
            nn.Conv2d(before, after, 4, stride=2, padding=1)
            for before, after in zip((3, *widths[:-1]), widths, strict=True)
        )
        self.temporal = nn.Conv3d(widths[-1], widths[-1], (FRAMES_PER_LATENT, 1, 1), stride=(FRAMES_PER_LATENT, 1, 1))
        self.out = nn.Conv2d(widths[-1], latent_channels, 3, padding=1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, pixels_BCFHW: Tensor) -> Tensor:
        """Pixels in [-1, 1], 1 or 4k + 1 frames, to latents BFCHW of 1 or k + 1 frames."""
        batch, _, frames, height, width = pixels_BCFHW.shape
        if frames % FRAMES_PER_LATENT != 1 or height % 8 or width % 8:
            raise InputError(
                f"{frames} frames of {width}x{height} cannot be encoded; the count must be 4k + 1 and the size a "
                f"multiple of 8",
                code="bad_num_frames",
            )
        x = pixels_BCFHW.transpose(1, 2).flatten(0, 1)
        for layer in self.spatial:
            x = F.silu(layer(x))
        x = x.unflatten(0, (batch, frames)).transpose(1, 2)
        # The first frame alone makes the first latent, as in the VAE: it is repeated to a group of its own.
        x = torch.cat([x[:, :, :1]] * (FRAMES_PER_LATENT - 1) + [x], dim=2)
        x = F.silu(self.temporal(x)).transpose(1, 2)
        return self.out(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class PoseEncodedTransformer(nn.Module):
    """A transformer with its expert pose encoder, as one module that training steps and shards."""

    def __init__(self, transformer: nn.Module, pose_encoder: PoseEncoder):
        super().__init__()
        self.transformer = transformer
        self.pose_encoder = pose_encoder

    @property
    def config(self) -> Mapping[str, Any]:
        """The transformer's."""
        return self.transformer.config  # pyright: ignore[reportReturnType]

    def forward(self, *, control_hidden_states: Tensor, **inputs: Any) -> Any:  # noqa: ANN401 - the transformer's own
        """As the transformer's; `control_hidden_states` are pose pixels BCFHW in [-1, 1]."""
        pose = pad_front(self.pose_encoder(control_hidden_states), self.config["patch_size_t"])
        return self.transformer(control_hidden_states=pose, **inputs)
