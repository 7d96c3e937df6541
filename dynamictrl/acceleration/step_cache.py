"""Steps that take most of the last step's work: where the first block changes little, the others are not run.

First-block caching (ParaAttention's idea, also in diffusers). What the first block adds to the video tokens tells how
much this step differs from the last one that was computed; below a threshold, what the other blocks added then is added
again. diffusers' own hook cannot serve here: it would break each compiled block's graph, knows one threshold for a
model instead of one for a call, has no bound on reuse, and drops our blocks' third stream, the pose.

A `StepCache` is one call's and one window's, so nothing is left over for the next. Both branches of guidance decide
together, and ranks that share a clip or its branches agree by a sum; the same inputs give the same decisions.

Shape suffixes: B batch, S video tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class StepCache:
    """What one window's steps leave for those after them."""

    def __init__(self, threshold: float, steps: int, *, in_a_row: int = 1, group: ProcessGroup | None = None):
        """`threshold` is the first block's relative change, of at most `in_a_row` steps one after another.

        The first of the `steps` and the last are always computed. `group`: ranks that have a branch of guidance each.
        """
        self._threshold, self._steps, self._in_a_row, self._group = threshold, steps, in_a_row, group
        self._step = -1
        self._reused = 0
        self._change: Tensor | None = None
        self._rest: Tensor | None = None
        self.computed: list[int] = []
        """The steps whose blocks all ran."""

    def rest(self, change_BSD: Tensor, agree: Callable[[Tensor], Tensor] = torch.clone) -> Tensor | None:
        """What the other blocks add in the step that begins, or None: they must be run. Called once a step.

        `change` is what the first block added to the video tokens; `agree` sums over ranks that share those.
        """
        self._step += 1
        may = self._rest is not None and self._step < self._steps - 1 and self._reused < self._in_a_row
        # Ranks agree on whether to ask, since that depends on counts alone.
        if may and self._difference(change_BSD, agree) < self._threshold:
            self._reused += 1
            return self._rest
        self._reused = 0
        self.computed.append(self._step)
        self._change = change_BSD
        return None

    def keep(self, rest_BSD: Tensor) -> None:
        """Remembers what the other blocks added in a step that was computed."""
        self._rest = rest_BSD

    def _difference(self, change_BSD: Tensor, agree: Callable[[Tensor], Tensor]) -> float:
        """Mean absolute change since the last computed step, relative to what it was then."""
        assert self._change is not None
        before = self._change.float()
        sums = agree(torch.stack([(change_BSD - before).abs().sum(), before.abs().sum()]))
        if self._group is not None:
            dist.all_reduce(sums, group=self._group)
        different, whole = sums.tolist()
        return different / max(whole, 1e-30)
