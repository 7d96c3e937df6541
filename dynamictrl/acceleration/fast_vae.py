"""CogVideoX's VAE, the same numbers faster: diffusers' modules and weights, walked on planes (`planes`).

What is saved, over diffusers' own forward pass: convolutions are matrix products on frames that lie channels last; a
norm, its activation and the border are one pass behind one that sums; the spatial norm's two convolutions are done on
the latents, whose pixels are 64 times fewer, as enlarging and a 1x1 kernel change places; frames that time doubles are
convolved once; nothing is put together in front of a causal kernel but two frames.

Shape suffixes as in `planes`; B clips.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor, nn

from dynamictrl.acceleration.planes import Planes, with_border, without_border

Cache = dict[str, Tensor]
"""By convolution, the two planes that its next frames come after."""


def hasten_vae(vae: AutoencoderKLCogVideoX) -> None:
    """From now on a VAE's encoder and decoder compute on planes; weights, keys and calls stay what they were."""
    for network, walk in ((vae.encoder, FastEncoder), (vae.decoder, FastDecoder)):
        network.forward = walk(network)


class _Network:
    """A stock network's parts, on planes. Called as the stock network is."""

    def __init__(self, stock: nn.Module):
        self._stock: Any = stock
        self._prepared: dict[int, tuple[Any, tuple[Tensor, Tensor]]] = {}
        self._planes = Planes()

    def __call__(
        self, sample: Tensor, temb: Tensor | None = None, conv_cache: list[Cache] | None = None
    ) -> tuple[Tensor, list[Cache]]:
        assert temb is None, "CogVideoX's VAE has no time embedding"
        if torch.is_grad_enabled() and (sample.requires_grad or next(self._stock.parameters()).requires_grad):
            return type(self._stock).forward(self._stock, sample, None, conv_cache)
        self._planes = _planes_for(sample, self._stock)
        caches: list[Cache] = conv_cache or [{} for _ in range(len(sample))]
        made, kept = [], []
        for clip, cache in zip(sample, caches, strict=True):
            new: Cache = {}
            frames = self.walk(clip.permute(1, 2, 3, 0).contiguous(), cache, new)
            made.append(without_border(frames).permute(3, 0, 1, 2))
            kept.append(new)
        return torch.stack(made), kept

    def walk(self, frames_FHWC: Tensor, old: Cache, new: Cache) -> Tensor:
        """Planes of the result."""
        raise NotImplementedError

    def resnet(self, stock: Any, x: Tensor, z: Tensor | None, name: str, old: Cache, new: Cache) -> Tensor:  # noqa: ANN401
        """A residual block."""
        kept = self.normed_conv(stock.norm1, stock.conv1.conv, x, z, f"{name}.conv1", old, new)
        beside = x
        if stock.in_channels != stock.out_channels:
            shortcut = stock.conv_shortcut
            beside = F.linear(x, shortcut.weight.flatten(1), shortcut.bias)
        return self.normed_conv(stock.norm2, stock.conv2.conv, kept, z, f"{name}.conv2", old, new, beside)

    def normed_conv(
        self,
        norm: Any,  # noqa: ANN401 - a group norm or diffusers' spatial norm
        conv: nn.Conv3d,
        x_FPQC: Tensor,
        z_zhwC: Tensor | None,
        name: str,
        old: Cache,
        new: Cache,
        beside: Tensor | None = None,
    ) -> Tensor:
        """Norm, SiLU and a causal convolution, with `beside` added."""
        history = self._history(x_FPQC.shape, x_FPQC)
        latents, plain = None, norm
        if z_zhwC is not None:
            plain = norm.norm_layer
            latents = tuple(
                F.linear(z_zhwC, part.conv.weight.flatten(1), part.conv.bias) for part in (norm.conv_y, norm.conv_b)
            )
        mean, deviation = self._planes.statistics(x_FPQC, plain.num_groups, plain.eps)
        scale = deviation * plain.weight.float()
        shift = plain.bias.float() - mean * scale
        self._planes.normalise(x_FPQC, scale, shift, latents, history[2:])  # pyright: ignore[reportArgumentType]
        return self.causal(conv, history, name, old, new, beside)

    def causal(
        self, conv: nn.Conv3d, history: Tensor, name: str, old: Cache, new: Cache, beside: Tensor | None = None
    ) -> Tensor:
        """A causal convolution of `history[2:]`, whose first two planes are filled here."""
        if name in old:
            history[:2] = old[name]
        else:
            history[:2] = history[2]
        new[name] = history[-2:].clone()
        weight, bias = self._weights(conv)
        outputs = conv.out_channels
        return self._planes.convolve(history, weight, bias, beside)[..., :outputs]

    def first_conv(self, conv: nn.Conv3d, frames_FHWC: Tensor, name: str, old: Cache, new: Cache) -> Tensor:
        """A causal convolution of frames as they come."""
        missing = self._weights(conv)[0].shape[-1] - conv.in_channels
        history = with_border(F.pad(frames_FHWC, (0, missing, 0, 0, 0, 0, 2, 0)))
        return self.causal(conv, history, name, old, new)

    def plane_conv(self, conv: nn.Conv2d, planes_FPQC: Tensor) -> Tensor:
        """A 3x3 convolution of each frame, whose border is zero."""
        weight, bias = self._weights(conv)
        return self._planes.convolve(planes_FPQC, weight, bias, None)

    def _history(self, shape: torch.Size, like: Tensor) -> Tensor:
        frames, *rest = shape
        return like.new_empty((frames + 2, *rest))

    def _weights(self, conv: nn.Conv3d | nn.Conv2d) -> tuple[Tensor, Tensor]:
        """Taps in order, channels last [O, K, 3, 3, C], and biases; few channels are filled up with zeros."""
        weight, bias = conv.weight, conv.bias
        assert bias is not None
        least = self._planes.least
        state = (weight.data_ptr(), weight._version, bias._version, weight.dtype, weight.device, least)
        known = self._prepared.get(id(conv))
        if known is None or known[0] != state:
            taps = weight.detach() if weight.ndim == 5 else weight.detach()[:, :, None]
            outputs, inputs = (max(least, count) - count for count in taps.shape[:2])
            laid = F.pad(taps.permute(0, 2, 3, 4, 1), (0, inputs, 0, 0, 0, 0, 0, 0, 0, outputs)).contiguous()
            known = (state, (laid, F.pad(bias.detach(), (0, outputs))))
            self._prepared[id(conv)] = known
        return known[1]


class FastDecoder(_Network):
    """From latents to frames."""

    def walk(self, frames_FHWC: Tensor, old: Cache, new: Cache) -> Tensor:
        stock, z = self._stock, frames_FHWC
        x = self.first_conv(stock.conv_in.conv, z, "conv_in", old, new)
        for i, resnet in enumerate(stock.mid_block.resnets):
            x = self.resnet(resnet, x, z, f"mid.{i}", old, new)
        for b, block in enumerate(stock.up_blocks):
            for i, resnet in enumerate(block.resnets):
                x = self.resnet(resnet, x, z, f"up.{b}.{i}", old, new)
            for upsampler in block.upsamplers or ():
                x = self.plane_conv(upsampler.conv, self._planes.enlarge(x))
                x = _doubled_time(x) if upsampler.compress_time else x
        return self.normed_conv(stock.norm_out, stock.conv_out.conv, x, z, "conv_out", old, new)


class FastEncoder(_Network):
    """From frames to a posterior's moments."""

    def walk(self, frames_FHWC: Tensor, old: Cache, new: Cache) -> Tensor:
        stock = self._stock
        x = self.first_conv(stock.conv_in.conv, frames_FHWC, "conv_in", old, new)
        for b, block in enumerate(stock.down_blocks):
            for i, resnet in enumerate(block.resnets):
                x = self.resnet(resnet, x, None, f"down.{b}.{i}", old, new)
            for downsampler in block.downsamplers or ():
                x = _halved(without_border(x), downsampler)
        for i, resnet in enumerate(stock.mid_block.resnets):
            x = self.resnet(resnet, x, None, f"mid.{i}", old, new)
        return self.normed_conv(stock.norm_out, stock.conv_out.conv, x, None, "conv_out", old, new)


def _doubled_time(planes_FPQC: Tensor) -> Tensor:
    """Each frame twice, an odd count's first one once."""
    if planes_FPQC.shape[0] == 1:
        return planes_FPQC
    if planes_FPQC.shape[0] % 2 == 1:
        return torch.cat([planes_FPQC[:1], planes_FPQC[1:].repeat_interleave(2, 0)])
    return planes_FPQC.repeat_interleave(2, 0)


def _halved(frames_FHWC: Tensor, downsampler: Any) -> Tensor:  # noqa: ANN401 - diffusers' module
    """Planes of half the height and width and, where time is compressed, the mean of each two frames."""
    x = frames_FHWC
    if downsampler.compress_time and len(x) > 1:
        alone = len(x) % 2
        pairs = torch.lerp(x[alone::2], x[alone + 1 :: 2], 0.5)
        x = torch.cat([x[:1], pairs]) if alone else pairs
    x = F.pad(x, (0, 0, 0, 1, 0, 1)).permute(0, 3, 1, 2)  # channels last in memory, as cuDNN likes them
    conv = downsampler.conv
    weight = conv.weight.contiguous(memory_format=torch.channels_last)
    return with_border(F.conv2d(x, weight, conv.bias, conv.stride).permute(0, 2, 3, 1))


def _planes_for(sample: Tensor, stock: Any) -> Planes:  # noqa: ANN401 - diffusers' network
    """GPU kernels for a network of 16-bit weights whose channels they take, else plain torch."""
    widths = {conv.out_channels for conv in stock.modules() if isinstance(conv, nn.Conv3d | nn.Conv2d)} - {3}
    fits = all(width >= 16 and width & (width - 1) == 0 for width in widths)
    if sample.device.type == "cuda" and sample.element_size() == 2 and fits and _has_copy_engine(sample.device):
        from dynamictrl.acceleration.triton_planes import TritonPlanes

        return TritonPlanes()
    return Planes()


def _has_copy_engine(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (9, 0)
