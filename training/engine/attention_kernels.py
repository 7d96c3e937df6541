"""Which attention kernel runs, on which order of its inputs: the fastest, timed both ways at the run's own shape.

scaled_dot_product_attention has several kernels and one order for all GPUs. At head size 64 on Hopper the spread is
wide (17,776 tokens, 48 heads, forward and backward: cuDNN 31 ms, FlashAttention-2 48 ms, memory-efficient 123 ms), and
the first of the order is not the same in every release of torch. A second of timing settles it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dynamictrl.joint_attention import JointAttention

logger = logging.getLogger(__name__)

KERNELS: dict[str, SDPBackend] = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
"""By the names that `speed.attention_kernel` takes."""

SECONDS_PER_KERNEL = 0.2
"""Time for which a kernel is tried, after its first run; what is slower than that runs once more."""

_chosen = ExitStack()
"""Holds the order of this process's kernels until another is chosen."""


class Choice(NamedTuple):
    """A kernel and how its inputs lie."""

    kernel: str
    heads_first: bool
    """As `dynamictrl.joint_attention.JointAttention.heads_first`."""

    def __str__(self):
        return f"{self.kernel}, {'heads' if self.heads_first else 'tokens'} first"


def prefer(name: str) -> None:
    """From now on this process's attention runs on a kernel wherever it can, on the others where it cannot.

    Of the process, not of a call: compiled graphs take the choice in when they are traced, and the backward pass
    computes attention anew in threads of its own.
    """
    _chosen.close()
    order = [KERNELS[name], *(kernel for other, kernel in KERNELS.items() if other != name)]
    _chosen.enter_context(sdpa_kernel(order, set_priority=True))


def prefer_default() -> None:
    """From now on torch's own order holds again."""
    _chosen.close()


def fastest(times: Mapping[Choice, float]) -> Choice | None:
    """The choice that took least, None where none ran."""
    return min(times, key=lambda choice: times[choice]) if times else None


def probe(
    shape: tuple[int, int, int, int],
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
    kernels: Sequence[str] = ("cudnn", "flash", "efficient"),
) -> dict[Choice, float]:
    """Seconds of one forward and backward pass; `shape` is [batch, heads, tokens, head width].

    A kernel that cannot run at this shape has none. Tokens' rows are where every pass begins and ends, so that heads
    first pays for its copies.
    """
    times: dict[Choice, float] = {}
    for choice in (Choice(kernel, heads_first) for kernel in kernels for heads_first in (False, True)):
        try:
            with sdpa_kernel(KERNELS[choice.kernel]):
                times[choice] = _time(_pass(shape, device, dtype, choice.heads_first), device)
        except RuntimeError as problem:
            # Also how torch says that a kernel is not for this GPU, this type or this head size.
            logger.info("attention kernel %s cannot run here: %s", choice.kernel, str(problem).splitlines()[0])
    return times


def _pass(
    shape: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype, heads_first: bool
) -> Callable[[], None]:
    """One forward and backward pass from tokens' rows to tokens' rows, as in the model."""
    batch, heads, tokens, width = shape
    attention = JointAttention()
    attention.heads_first = heads_first
    generator = torch.Generator(device).manual_seed(0)

    def rows() -> Tensor:
        return torch.randn((batch, tokens, heads, width), generator=generator, device=device, dtype=dtype)

    q, k, v = (rows().requires_grad_(True) for _ in range(3))
    above = rows().flatten(2)

    def run() -> None:
        torch.autograd.grad(attention.attend(q, k, v), (q, k, v), above)

    return run


def _time(run: Callable[[], None], device: torch.device) -> float:
    """Seconds of a run, over as many as go into the time for a kernel; the first one is not counted."""
    run()
    once = _seconds(run, device, 1)
    return _seconds(run, device, max(1, min(20, int(SECONDS_PER_KERNEL / max(once, 1e-6)))))


def _seconds(run: Callable[[], None], device: torch.device, times: int) -> float:
    _wait(device)
    started = time.perf_counter()
    for _ in range(times):
        run()
    _wait(device)
    return (time.perf_counter() - started) / times


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def choose(
    shape: tuple[int, int, int, int],
    device: torch.device,
    dtype: torch.dtype,
    kernels: Sequence[str] = ("cudnn", "flash", "efficient"),
) -> Choice | None:
    """The fastest at this shape, with what each took in the log; None where none could be timed."""
    times = probe(shape, device, dtype, kernels)
    best = fastest(times)
    batch, heads, tokens, width = shape
    flop = 3 * 4 * batch * heads * width * tokens**2
    table = "; ".join(f"{one} {1e3 * took:.1f} ms ({flop / took / 1e12:.0f} TFLOP/s)" for one, took in times.items())
    logger.info("attention of %d tokens forward and backward: %s. %s runs", tokens, table or "nothing timed", best)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return best
