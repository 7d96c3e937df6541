"""Which attention kernel runs: the fastest of those there are, timed forward and backward at the run's own shape.

scaled_dot_product_attention has several kernels and one order for all GPUs. At head size 64 on Hopper the spread is
wide (17,776 tokens, 48 heads, forward and backward: cuDNN 31 ms, FlashAttention-2 48 ms, memory-efficient 123 ms), and
the first of the order is not the same in every release of torch. A second of timing settles it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

logger = logging.getLogger(__name__)

KERNELS: dict[str, SDPBackend] = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
"""By the names that `speed.attention_kernel` takes."""

SECONDS_PER_KERNEL = 0.3
"""Time for which a kernel is tried, after its first run; what is slower than that runs once more."""

_chosen = ExitStack()
"""Holds the order of this process's kernels until another is chosen."""


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


def fastest(times: Mapping[str, float]) -> str | None:
    """The kernel that took least, None where none ran."""
    return min(times, key=lambda name: times[name]) if times else None


def probe(
    shape: tuple[int, int, int, int],
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
    kernels: tuple[str, ...] = ("cudnn", "flash", "efficient"),
) -> dict[str, float]:
    """Seconds of one forward and backward pass by kernel; a kernel that cannot run at this shape has none."""
    times: dict[str, float] = {}
    for name in kernels:
        try:
            with sdpa_kernel(KERNELS[name]):
                times[name] = _time(_pass(shape, device, dtype), device)
        except RuntimeError as problem:
            # Also how torch says that a kernel is not for this GPU, this type or this head size.
            logger.info("attention kernel %s cannot run here: %s", name, str(problem).splitlines()[0])
    return times


def _pass(shape: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
    """One forward and backward pass over heads that lie inside their tokens' rows, as the model's do."""
    batch, heads, tokens, width = shape

    def rows() -> Tensor:
        generator = torch.Generator(device).manual_seed(0)
        made = torch.randn((batch, tokens, heads, width), generator=generator, device=device, dtype=dtype)
        return made.transpose(1, 2).requires_grad_(True)

    q, k, v = rows(), rows(), rows()
    above = torch.ones_like(q)

    def run() -> None:
        torch.autograd.grad(F.scaled_dot_product_attention(q, k, v), (q, k, v), above)

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


def choose(shape: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype) -> str | None:
    """The fastest kernel at this shape, with what each took in the log; None where none could be timed."""
    times = probe(shape, device, dtype)
    best = fastest(times)
    batch, heads, tokens, width = shape
    flop = 3 * 4 * batch * heads * width * tokens**2
    table = ", ".join(f"{name} {1e3 * took:.1f} ms ({flop / took / 1e12:.0f} TFLOP/s)" for name, took in times.items())
    logger.info("attention of %d tokens forward and backward: %s; %s runs", tokens, table or "nothing timed", best)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return best
