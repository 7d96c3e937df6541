"""A moving average of the weights, kept beside the optimizer: what is exported where `ema_decay` is set.

Each worker averages the float32 weights that its share of the optimizer holds (ZeRO's flat partitions), so that the
average costs 4 bytes a parameter over all workers together. Its state is named by parameter and place in it, so any
number of workers can go on from it, and a checkpoint can be exported without an engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from training.engine import parallel

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

UPDATES = "updates()"
"""Stands among the fragments for a count; no parameter can be named so."""


@dataclass(frozen=True)
class _Fragment:
    """A stretch of one parameter, flattened, that this worker holds in one of its flat partitions."""

    name: str
    start: int
    """In the parameter."""
    count: int
    flat: int
    """Which partition."""
    offset: int
    """In the partition."""


class MovingAverage:
    """Float32 averages of the weights that learn: w_avg = d w_avg + (1 - d) w after every step that was applied.

    d is `decay`, but at the n-th update at most (1 + n) / (10 + n), so that a young average forgets where it began.
    """

    def __init__(self, engine: DeepSpeedEngine, decay: float):
        self._engine, self._decay = engine, decay
        self._updates = torch.zeros(1)
        self._fragments = list(_fragments(engine))
        self._averages = [flat.detach().to(torch.float32, copy=True) for flat in _partitions(engine)]

    @torch.no_grad()
    def update(self) -> None:
        """After an optimizer step; one that was skipped (gradients that are not finite) leaves the average alone."""
        if not self._engine.was_step_applied():
            return
        done = float(self._updates)
        decay = min(self._decay, (1 + done) / (10 + done))
        weights = [flat.detach().float() for flat in _partitions(self._engine)]
        torch._foreach_lerp_(self._averages, weights, 1 - decay)
        self._updates += 1

    def fragments(self) -> dict[str, tuple[int, Tensor]]:
        """This worker's share: parameter name to (first element in the flat parameter, live float32 values [n]).

        Checkpoints copy them, and write into them on resume, also where the number of workers has changed. `UPDATES`
        is among them on every worker: how often the average was brought forward.
        """
        return {f.name: (f.start, self._view(f)) for f in self._fragments} | {UPDATES: (0, self._updates)}

    def gather(self) -> dict[str, Tensor] | None:
        """The whole transformer with averaged weights, in host memory on the first worker, None on the others.

        Every worker must call it. Weights have the type that they train in; those that do not learn are as they are.
        """
        whole = parallel.gather_weights(self._engine)
        mine = {fragment.name: fragment for fragment in self._fragments}
        for name, parameter in self._engine.module.named_parameters():
            if not parameter.requires_grad:
                continue
            shape = getattr(parameter, "ds_shape", parameter.shape)
            buffer = torch.zeros(shape.numel(), dtype=torch.float32, device=self._engine.device)
            if name in mine:
                start = mine[name].start
                buffer[start : start + mine[name].count] = self._view(mine[name])
            if _is_sharded(self._engine):
                dist.reduce(buffer, 0)
            if whole is not None:
                whole[name] = buffer.view(shape).to("cpu", whole[name].dtype)
        return whole

    def _view(self, fragment: _Fragment) -> Tensor:
        return self._averages[fragment.flat][fragment.offset : fragment.offset + fragment.count]


def _is_sharded(engine: DeepSpeedEngine) -> bool:
    return engine.zero_optimization_stage() > 0


def _partitions(engine: DeepSpeedEngine) -> list[Tensor]:
    """This worker's flat shares of the float32 weights, as each of DeepSpeed's optimizers names them."""
    optimizer: Any = engine.optimizer
    for name in (
        "fp32_partitioned_groups_flat",  # ZeRO-3
        "single_partition_of_fp32_groups",  # ZeRO-1 and 2
        "fp32_groups_flat_partition",  # ZeRO-1 in bfloat16 with gradients in float32
    ):
        if hasattr(optimizer, name):
            return list(getattr(optimizer, name))
    return [parameter.data.view(-1) for parameter in engine.module.parameters() if parameter.requires_grad]


def _fragments(engine: DeepSpeedEngine) -> Iterator[_Fragment]:
    """Which stretch of which parameter lies where in `_partitions`."""
    optimizer: Any = engine.optimizer
    learns = [(name, p) for name, p in engine.module.named_parameters() if p.requires_grad]
    for number, (name, parameter) in enumerate(learns):
        found: Any = parameter
        if hasattr(found, "ds_id"):
            flat, offset, _ = optimizer.grad_position[optimizer.get_param_id(found)]
            start = dist.get_rank() * found.partition_numel()
            count = min(found.partition_numel(), found.ds_numel - start)
            if count > 0:
                yield _Fragment(name, start, count, flat, offset)
        elif not _is_sharded(engine):
            yield _Fragment(name, 0, found.numel(), number, 0)
        elif found._hp_mapping is not None:
            place = found._hp_mapping
            inside, outside = place.lp_fragment_address, place.hp_fragment_address
            yield _Fragment(name, inside.start, inside.numel, place.param_group_index, outside.start)
