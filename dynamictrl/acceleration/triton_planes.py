"""`planes.Planes` as GPU kernels: a convolution that is matrix products of moved rows, norms that are two passes.

Rows are pixels of all planes in order, borders among them. A tap of the kernel is then one offset between rows, tiles
are loaded by the tensor copy engine (which answers zeros outside), and what a tile computes of borders is not used.

Shape suffixes as in `planes`; M rows, T taps.
"""

# pyright: basic, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from dynamictrl.acceleration.planes import Planes, latent_of

DEPTH = 64
"""Channels that are multiplied at a time, at most."""


@triton.jit
def _convolve(
    x, w, out, bias, beside, rows, plane, pitch, outputs,
    C: tl.constexpr, DT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """out[row] = bias + beside[row] + the sum over taps of x[row + the tap's offset] times the tap's weights."""
    pid = tl.program_id(0)
    columns = tl.cdiv(outputs, BN)
    row = (pid // columns) * BM
    column = (pid % columns) * BN
    parts: tl.constexpr = C // BK
    total = tl.zeros((BM, BN), tl.float32)
    for step in tl.range(0, 9 * DT * parts):
        tap = step // parts
        offset = (tap // 9) * plane + ((tap // 3) % 3 - 1) * pitch + tap % 3 - 1
        a = x.load([row + offset, (step % parts) * BK])
        b = w.load([column, step * BK])
        total = tl.dot(a, b.T, total)
    total += tl.load(bias + column + tl.arange(0, BN)).to(tl.float32)[None, :]
    if ADD:
        total += beside.load([row, column]).to(tl.float32)
    out.store([row, column], total.to(out.dtype))


@triton.jit
def _sums(x, sums, rows, plane, pitch, height, width, C: tl.constexpr, BM: tl.constexpr, REPEAT: tl.constexpr):
    """Each program's sums and square sums of its rows inside the border, by channel."""
    pid = tl.program_id(0)
    channels = tl.arange(0, C)
    first, second = tl.zeros((BM, C), tl.float32), tl.zeros((BM, C), tl.float32)
    for turn in range(REPEAT):
        m = (pid * REPEAT + turn) * BM + tl.arange(0, BM)
        p = m % plane
        h, w = p // pitch, p % pitch
        inside = (m < rows) & (h >= 1) & (h <= height) & (w >= 1) & (w <= width)
        value = tl.load(x + m.to(tl.int64)[:, None] * C + channels[None, :], mask=inside[:, None], other=0.0)
        value = value.to(tl.float32)
        first += value
        second += value * value
    tl.store(sums + pid * 2 * C + channels, tl.sum(first, 0))
    tl.store(sums + pid * 2 * C + C + channels, tl.sum(second, 0))


@triton.jit
def _normalise(
    x, scale, shift, z_scale, z_shift, times, out, rows, plane, pitch, height, width, z_height, z_width, ratio,
    C: tl.constexpr, BM: tl.constexpr, SPATIAL: tl.constexpr,
):  # fmt: skip
    """SiLU of scale * x + shift, by each pixel's latent scaled and shifted again; zero on the border."""
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    channels = tl.arange(0, C)
    frame, p = m // plane, m % plane
    h, w = p // pitch, p % pitch
    inside = (m < rows) & (h >= 1) & (h <= height) & (w >= 1) & (w <= width)
    where = m.to(tl.int64)[:, None] * C + channels[None, :]
    value = tl.load(x + where, mask=inside[:, None], other=0.0).to(tl.float32)
    value = value * tl.load(scale + channels)[None, :] + tl.load(shift + channels)[None, :]
    if SPATIAL:
        time = tl.load(times + frame, mask=inside, other=0)
        latent = (time * z_height + (h - 1) // ratio) * z_width + (w - 1) // ratio
        there = latent.to(tl.int64)[:, None] * C + channels[None, :]
        value = value * tl.load(z_scale + there, mask=inside[:, None], other=0.0).to(tl.float32)
        value += tl.load(z_shift + there, mask=inside[:, None], other=0.0).to(tl.float32)
    value = value / (1 + tl.exp(-value))
    value = tl.where(inside[:, None], value, 0.0)
    tl.store(out + where, value.to(out.dtype.element_ty), mask=(m < rows)[:, None])


@triton.jit
def _enlarge(x, out, rows, plane, pitch, height, width, C: tl.constexpr, BM: tl.constexpr):
    """Rows of planes twice as high and wide as x's; `height` and `width` are the large ones."""
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    channels = tl.arange(0, C)
    frame, p = m // plane, m % plane
    h, w = p // pitch, p % pitch
    inside = (m < rows) & (h >= 1) & (h <= height) & (w >= 1) & (w <= width)
    small_pitch = width // 2 + 2
    source = (frame * (height // 2 + 2) + (h - 1) // 2 + 1) * small_pitch + (w - 1) // 2 + 1
    value = tl.load(x + source.to(tl.int64)[:, None] * C + channels[None, :], mask=inside[:, None], other=0.0)
    tl.store(out + m.to(tl.int64)[:, None] * C + channels[None, :], value, mask=(m < rows)[:, None])


class TritonPlanes(Planes):
    """For channels that are powers of two."""

    least = 16

    def convolve(self, history_FPQC: Tensor, weight_OKhwC: Tensor, bias_O: Tensor, beside: Tensor | None) -> Tensor:
        frames, height, width, channels = history_FPQC.shape
        outputs, taps = weight_OKhwC.shape[:2]
        frames -= taps - 1
        rows, plane = frames * height * width, height * width
        made = history_FPQC.new_empty((frames, height, width, outputs))
        bm, bn, bk, warps, stages = tile(outputs, channels)
        x = _rows(history_FPQC.flatten(0, 2), (bm, bk))
        weight = _rows(weight_OKhwC.flatten(1), (bn, bk))
        out = _rows(made.flatten(0, 2), (bm, bn))
        more = _rows(beside.flatten(0, 2), (bm, bn)) if beside is not None else out
        grid = (triton.cdiv(rows, bm) * triton.cdiv(outputs, bn),)
        _convolve[grid](
            x, weight, out, bias_O, more, rows, plane, width, outputs, C=channels, DT=taps, BM=bm, BN=bn, BK=bk,
            ADD=beside is not None, num_warps=warps, num_stages=stages,
        )  # fmt: skip
        return made

    def statistics(self, planes_FPQC: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
        frames, height, width, channels = planes_FPQC.shape
        rows, bm, repeat = frames * height * width, max(1, 4096 // channels), 32
        programs = triton.cdiv(rows, bm * repeat)
        sums = torch.empty((programs, 2, channels), dtype=torch.float32, device=planes_FPQC.device)
        _sums[(programs,)](
            planes_FPQC, sums, rows, height * width, width, height - 2, width - 2, C=channels, BM=bm, REPEAT=repeat,
            num_warps=8,
        )  # fmt: skip
        count = frames * (height - 2) * (width - 2) * (channels // groups)
        first, second = sums.double().sum(0).unflatten(-1, (groups, -1)).sum(-1) / count
        deviation = torch.rsqrt(second - first.square() + eps)
        each = channels // groups
        return first.float().repeat_interleave(each), deviation.float().repeat_interleave(each)

    def normalise(
        self,
        planes_FPQC: Tensor,
        scale_C: Tensor,
        shift_C: Tensor,
        latents: tuple[Tensor, Tensor] | None,
        out_FPQC: Tensor,
    ) -> None:
        frames, height, width, channels = planes_FPQC.shape
        rows, bm = frames * height * width, max(1, 4096 // channels)
        z, h, w = latents[0].shape[:3] if latents is not None else (1, 1, 1)
        scale, shift = latents if latents is not None else (planes_FPQC, planes_FPQC)
        times = torch.tensor([latent_of(frame, frames, z) for frame in range(frames)], dtype=torch.int32)
        _normalise[(triton.cdiv(rows, bm),)](
            planes_FPQC, scale_C, shift_C, scale, shift, times.to(planes_FPQC.device, non_blocking=True), out_FPQC,
            rows, height * width, width, height - 2, width - 2, h, w, max(1, (height - 2) // h), C=channels, BM=bm,
            SPATIAL=latents is not None, num_warps=4,
        )  # fmt: skip

    def enlarge(self, planes_FPQC: Tensor) -> Tensor:
        frames, height, width, channels = planes_FPQC.shape
        tall, wide = 2 * (height - 2) + 2, 2 * (width - 2) + 2
        out = planes_FPQC.new_empty((frames, tall, wide, channels))
        rows, bm = frames * tall * wide, max(1, 4096 // channels)
        _enlarge[(triton.cdiv(rows, bm),)](
            planes_FPQC, out, rows, tall * wide, wide, tall - 2, wide - 2, C=channels, BM=bm, num_warps=4
        )
        return out


def tile(outputs: int, channels: int) -> tuple[int, int, int, int, int]:
    """Rows, columns and depth of a tile, its warps and its stages."""
    depth = min(DEPTH, channels)
    if outputs >= 256:
        return 128, 256, depth, 8, 3
    if outputs == 128:
        return 256, 128, depth, 8, 4
    return 128, max(16, int(triton.next_power_of_2(outputs))), depth, 4, 3


def _rows(matrix: Tensor, block: tuple[int, int]) -> TensorDescriptor:
    return TensorDescriptor.from_tensor(matrix, list(block))
