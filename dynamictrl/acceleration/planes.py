"""What a causal video VAE is made of, on frames that lie channels last with a border of one pixel: plain torch.

A border lets every tap of a 3x3 kernel be the same frames moved by a fixed number of rows, so a convolution is 27 (or
9) matrix products that add up: no frame is unfolded, padded or put behind its predecessors by a copy of its own.
`triton_planes` has the same operations as GPU kernels.

Shape suffixes: F frames, P Q height and width with the border, H W without it, C O channels, K time taps, h w z a
                latent's size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class Planes:
    """The operations. A border's content means nothing, except in what `convolve` reads: there it is zero."""

    least = 1
    """Channels that a convolution has at least; fewer are filled up with zeros."""

    def convolve(self, history_FPQC: Tensor, weight_OKhwC: Tensor, bias_O: Tensor, beside: Tensor | None) -> Tensor:
        """Planes [F - K + 1, P, Q, O]: each frame from itself and the K - 1 before it, and `beside` added."""
        made = F.conv3d(history_FPQC.permute(3, 0, 1, 2), weight_OKhwC.permute(0, 4, 1, 2, 3), bias_O)
        planes = with_border(made.permute(1, 2, 3, 0))
        return planes if beside is None else planes + beside

    def statistics(self, planes_FPQC: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
        """Mean and reciprocal deviation of each channel's group over all frames, float32 [C]."""
        inside = without_border(planes_FPQC).float().unflatten(-1, (groups, -1))
        mean, variance = inside.mean((0, 1, 2, 4)), inside.var((0, 1, 2, 4), correction=0)
        each = planes_FPQC.shape[-1] // groups
        return mean.repeat_interleave(each), torch.rsqrt(variance + eps).repeat_interleave(each)

    def normalise(
        self,
        planes_FPQC: Tensor,
        scale_C: Tensor,
        shift_C: Tensor,
        latents: tuple[Tensor, Tensor] | None,
        out_FPQC: Tensor,
    ) -> None:
        """SiLU of scaled and shifted planes into `out`, its border zero.

        `latents` are the spatial norm's scale and shift [z, h, w, C]; every pixel takes its own latent's.
        """
        inside = without_border(planes_FPQC).float() * scale_C + shift_C
        if latents is not None:
            scale, shift = (_enlarged(x.float(), inside.shape[:3]) for x in latents)
            inside = inside * scale + shift
        out_FPQC.copy_(with_border(F.silu(inside)))

    def enlarge(self, planes_FPQC: Tensor) -> Tensor:
        """Twice the height and width, each pixel four times; the border zero."""
        inside = without_border(planes_FPQC)
        return with_border(inside.repeat_interleave(2, 1).repeat_interleave(2, 2))


def with_border(frames_FHWC: Tensor) -> Tensor:
    """Planes of frames, the border zero."""
    return F.pad(frames_FHWC, (0, 0, 1, 1, 1, 1))


def without_border(planes_FPQC: Tensor) -> Tensor:
    """The frames inside, a view."""
    return planes_FPQC[:, 1:-1, 1:-1]


def latent_of(frame: int, frames: int, latents: int) -> int:
    """Whose latent's a frame is: an odd count's first frame has the first latent for itself."""
    if frames > 1 and frames % 2 == 1:
        return 0 if frame == 0 else 1 + (frame - 1) * (latents - 1) // (frames - 1)
    return frame * latents // frames


def _enlarged(latents_zhwC: Tensor, size: torch.Size) -> Tensor:
    frames, height, width = size
    z, h, w, _ = latents_zhwC.shape
    device = latents_zhwC.device
    times = torch.tensor([latent_of(frame, frames, z) for frame in range(frames)], device=device)
    rows = torch.arange(height, device=device) * h // height
    columns = torch.arange(width, device=device) * w // width
    return latents_zhwC[times][:, rows][:, :, columns]
