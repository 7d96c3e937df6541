"""How a step is computed: none of it shapes the trained model beyond the order of sums, but for float8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from training.settings.fields import free, not_negative, positive

AttentionKernel = Literal["auto", "default", "cudnn", "flash", "efficient", "math"]
Recompute = Literal["auto", "all", "attention", "cheap", "none"]


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Kernels, compilation, and what is computed twice to save memory."""

    compile_blocks: bool = free(True)
    """Each transformer block is compiled (CUDA only; the first step of every shape takes about half a minute more)."""
    attention_kernel: AttentionKernel = free("auto")
    """Which attention runs; auto measures those there are for a second at the real shape and takes the fastest."""
    recompute: Recompute = free("auto")
    """What the backward pass computes anew: all of a block, all but its attention, what is cheap (norms, activations),
    or none. auto keeps as much as fits into a GPU's memory, block by block, up to `cheap`."""
    memory_reserve_gib: float = free(6.0)
    """GiB of a GPU that recompute auto leaves free."""
    sequence_parallel: int = free(1)
    """Workers that share one clip, token by token (Ulysses), for clips too long for one GPU; 1 shares none."""
    float8: bool = False
    """Linear layers of the blocks multiply in 8 bits (Hopper and later; needs torchao): faster, less exact."""
    deterministic: bool = free(False)
    """The same bits in every run on the same GPUs, for a few percent of speed."""

    def __post_init__(self):
        positive(self, "sequence_parallel")
        not_negative(self, "memory_reserve_gib")
