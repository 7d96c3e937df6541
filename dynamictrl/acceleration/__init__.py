"""What makes rendering fast, said in one place: which attention runs, what is compiled, what multiplies in 8 bits.

`Acceleration` is set once, when a transformer is loaded; `Shortcuts` are chosen for each call, because one resident
model serves exact and quick clips in turn. Both change nothing where they are left at their defaults, to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from dynamictrl.acceleration.step_cache import StepCache

AttentionKernel = Literal["default", "auto", "cudnn", "flash", "efficient", "math", "triton"]


@dataclass(frozen=True, kw_only=True)
class Acceleration:
    """How a loaded model computes; results differ by rounding at most."""

    attention: AttentionKernel = "default"
    """`default` leaves it to torch, `auto` times what there is at the clips' own shape and takes the fastest."""
    compile_blocks: bool = False
    """Each block of the transformer is compiled, once for every shape."""
    float8: bool = False
    """Whether calls may ask for 8-bit products (`Shortcuts.float8`): keeps 8-bit copies of the blocks' weights."""
    fast_vae: bool = False
    """The VAE's convolutions and norms run as our kernels, where the GPU takes them (`fast_vae`)."""


@dataclass(frozen=True, kw_only=True)
class Shortcuts:
    """What one call may leave out or round; the results are near the exact ones, not equal."""

    float8: bool = False
    """The blocks' linear layers multiply in 8 bits. Needs `Acceleration.float8`."""
    step_cache: float = 0.0
    """Steps whose first block changes by less than this share take the other blocks' last result; 0 computes all."""
    steps_in_a_row: int = 1
    """How many steps one after another may do so; the first step and the last are always computed."""

    def step_caches(self, windows: int, steps: int, group: ProcessGroup | None = None) -> list[StepCache]:
        """One for each window of a call, none where every step is computed; `group` as StepCache's."""
        from dynamictrl.acceleration.step_cache import StepCache

        if self.step_cache <= 0:
            return []
        return [StepCache(self.step_cache, steps, in_a_row=self.steps_in_a_row, group=group) for _ in range(windows)]


EXACT = Shortcuts()
"""Nothing left out, nothing rounded."""
