"""Which attention kernel runs, on which order of its inputs: the fastest, timed both ways at the run's own shape.

scaled_dot_product_attention has several kernels and one order for all GPUs. At head size 64 on Hopper the spread is
wide (17,776 tokens, 48 heads, forward and backward: cuDNN 31 ms, FlashAttention-2 48 ms, memory-efficient 123 ms), and
the first of the order is not the same in every release of torch. A second of timing settles it. Where nothing is
learned our own kernel (`triton_attention`) is a candidate more.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dynamictrl.joint_attention import JointAttention

logger = logging.getLogger(__name__)

KERNELS: dict[str, SDPBackend] = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
"""Torch's, by the names that settings take."""

OWN = ("triton",)
"""Ours, forward only (`joint_attention.own_attention`)."""

USUAL_BOUND = 45.0
"""Up to which usual bound of a block's logits, in powers of two, our kernel is taken: it spares its search below 60,
and some tokens are longer than usual. 11.5 where a norm's weights are 1 and heads 64 wide."""

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


def use(transformer: nn.Module, choice: Choice) -> None:
    """From now on a transformer's blocks attend by a kernel, with its inputs in the order that it likes."""
    own = choice.kernel in OWN
    if not own:
        prefer(choice.kernel)
    blocks: Any = transformer.transformer_blocks
    for block in blocks:
        block.attn1.processor.heads_first = choice.heads_first
        block.attn1.processor.kernel = choice.kernel if own else "torch"


def use_own_where_bounded(transformer: nn.Module, own: Choice, other: Choice) -> int:
    """Our kernel in blocks whose queries and keys are short, another in the rest; returns how many have ours.

    It is the faster one only where their lengths bound the logits well enough to spare it a search
    (`triton_attention`), and a block's norms tell how long they come out.
    """
    use(transformer, other)
    blocks: Any = transformer.transformer_blocks
    short = [block.attn1.processor for block in blocks if _usual_bound(block.attn1) < USUAL_BOUND]
    for processor in short:
        processor.heads_first, processor.kernel = own.heads_first, own.kernel
    return len(short)


def _usual_bound(attention: Any) -> float:  # noqa: ANN401 - diffusers' module
    """log2(e) |q| |k| / sqrt(width) of entries with mean 0 and variance 1 before a norm's weights."""
    squares = [
        norm.weight.detach().double().square().sum() + norm.bias.detach().double().square().sum()
        for norm in (attention.norm_q, attention.norm_k)
    ]
    width = attention.norm_q.weight.numel()
    return math.log2(math.e) * float((squares[0] * squares[1]).sqrt()) / math.sqrt(width)


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
    *,
    backward: bool = True,
) -> dict[Choice, float]:
    """Seconds of one forward and, for training, backward pass; `shape` is [batch, heads, tokens, head width].

    A kernel that cannot run at this shape has none. Tokens' rows are where every pass begins and ends, so that heads
    first pays for its copies.
    """
    times: dict[Choice, float] = {}
    for choice in (Choice(kernel, heads_first) for kernel in kernels for heads_first in (False, True)):
        try:
            with nullcontext() if choice.kernel in OWN else sdpa_kernel(KERNELS[choice.kernel]):
                times[choice] = _time(_pass(shape, device, dtype, choice, backward), device)
        except (RuntimeError, ImportError) as problem:
            # Also how torch says that a kernel is not for this GPU, this type or this head size.
            logger.info("attention kernel %s cannot run here: %s", choice.kernel, str(problem).splitlines()[0])
    return times


def _pass(
    shape: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype, choice: Choice, backward: bool
) -> Callable[[], None]:
    """One pass from tokens' rows to tokens' rows, as in the model."""
    batch, heads, tokens, width = shape
    attention = JointAttention()
    attention.heads_first = choice.heads_first
    attention.kernel = choice.kernel if choice.kernel in OWN else "torch"
    generator = torch.Generator(device).manual_seed(0)

    def rows() -> Tensor:
        return torch.randn((batch, tokens, heads, width), generator=generator, device=device, dtype=dtype)

    q, k, v = (rows().requires_grad_(backward) for _ in range(3))
    above = rows().flatten(2)

    def run() -> None:
        attended = attention.attend(q, k, v)
        if backward:
            torch.autograd.grad(attended, (q, k, v), above)

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
    *,
    backward: bool = True,
) -> Choice | None:
    """The fastest at this shape, with what each took in the log; None where none could be timed."""
    times = probe(shape, device, dtype, kernels, backward=backward)
    best = fastest(times)
    batch, heads, tokens, width = shape
    flop = (3 if backward else 1) * 4 * batch * heads * width * tokens**2
    table = "; ".join(f"{one} {1e3 * took:.1f} ms ({flop / took / 1e12:.0f} TFLOP/s)" for one, took in times.items())
    way = "forward and backward" if backward else "forward"
    logger.info("attention of %d tokens %s: %s. %s runs", tokens, way, table or "nothing timed", best)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return best
