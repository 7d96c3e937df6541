"""Which settings fit into the GPUs there are, and which of them is fastest. Pure arithmetic."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from dynamictrl.errors import ConfigError
from training.config import Recipe
from training.planning import shapes
from training.planning.memory import GB, GIB, Kept, Memory, kept_blocks, memory
from training.planning.timing import GPUS, Machine, StepTime, step_time

SAME_SPEED = 0.02
"""Settings whose steps differ by less than this share count as equally fast: the one nearer the recipe goes first."""


@dataclass(frozen=True)
class Choice:
    """One setting that fits."""

    zero_stage: int
    offload_optimizer: bool
    sequence_parallel: int
    micro_batch_size: int
    kept: Kept
    memory_gb: float
    """Of one GPU at its fullest."""
    seconds: float
    """Of a step."""

    @property
    def flags(self) -> str:
        """For the command line."""
        offload = " --offload-optimizer True" if self.offload_optimizer else ""
        share = f" --sequence-parallel {self.sequence_parallel}" if self.sequence_parallel > 1 else ""
        return f"--zero-stage {self.zero_stage}{offload}{share} --micro-batch-size {self.micro_batch_size}"


def largest_micro_batch(recipe: Recipe, config: Mapping[str, Any]) -> int:
    """Tokens of the micro-batch that needs most memory, captions included, before workers share them."""
    most = max(shapes.tokens(size, config) for size in shapes.sizes(recipe))
    return most * recipe.optimization.micro_batch_size


def hold(
    recipe: Recipe,
    config: Mapping[str, Any],
    workers: int,
    memory_gib: float,
    machine: Machine,
    kept: Kept | None = None,
) -> Memory:
    """What a worker holds; where not even the least fits, that least."""
    tokens = largest_micro_batch(recipe, config)
    if kept is None:
        try:
            kept = kept_blocks(recipe, config, tokens, workers, memory_gib, precomputed=machine.precomputed)
        except ConfigError:
            kept = Kept(0, 0, config["num_layers"])
    return memory(recipe, config, tokens, workers, kept, precomputed=machine.precomputed)


def usable_gib(recipe: Recipe, memory_gib: float) -> float:
    """Of a GPU's memory what a run may fill: with `recompute auto` its workers start only beside a free reserve."""
    return memory_gib - (recipe.speed.memory_reserve_gib if recipe.speed.recompute == "auto" else 0.0)


def fits(recipe: Recipe, held: Memory, memory_gib: float) -> bool:
    """Whether a worker may hold so much on a GPU of this memory; as `memory.kept_blocks` judges."""
    return held.total_gb <= usable_gib(recipe, memory_gib) * GIB / GB


def mean_time(times: list[StepTime]) -> StepTime:
    """Of several sizes, each as frequent as the others."""
    names = dict.fromkeys(name for time in times for name in time.parts)
    parts = {name: sum(time.parts.get(name, 0.0) for time in times) / len(times) for name in names}
    model, hardware = sum(time.model_tflop for time in times), sum(time.hardware_tflop for time in times)
    return StepTime(parts, model / len(times), hardware / len(times))


def choices(
    recipe: Recipe, config: Mapping[str, Any], workers: int, memory_gib: float, machine: Machine
) -> list[Choice]:
    """All settings that fit, the recommended first: the fastest, of equals the one that changes least."""
    tried = (_choice(variant, config, workers, memory_gib, machine) for variant in _variants(recipe, workers))
    found = [choice for choice in tried if choice is not None]
    fastest = min((choice.seconds for choice in found), default=0.0)

    def order(choice: Choice) -> tuple[int, int, float]:
        slower = int((choice.seconds / fastest - 1) / SAME_SPEED)
        return slower, _changes(recipe, choice), choice.memory_gb

    best: dict[tuple[int, bool, int], Choice] = {}
    for choice in sorted(found, key=order):  # of the sizes of a micro-batch one is enough
        best.setdefault((choice.zero_stage, choice.offload_optimizer, choice.sequence_parallel), choice)
    return list(best.values())


def with_stage(recipe: Recipe, config: Mapping[str, Any], workers: int, memory_gib: float, machine: Machine) -> Recipe:
    """The recipe with its ZeRO stage chosen: the fastest that fits with all else as it is, else the leanest."""
    found = [
        choice
        for stage in (2, 3, 1)
        if (choice := _choice(_stage(recipe, stage), config, workers, memory_gib, machine)) is not None
    ]
    return _stage(recipe, min(found, key=lambda choice: choice.seconds).zero_stage if found else 3)


def ways_out(recipe: Recipe, config: Mapping[str, Any], workers: int, memory_gib: float, machine: Machine) -> list[str]:
    """What would fit where no setting does: more GPUs of the kind, or as many of a larger kind."""
    ways = []
    for more in (workers * 2**power for power in range(1, 8)):
        found = choices(_batch_for(recipe, more), config, more, memory_gib, machine)
        if found:
            batch = _batch_for(recipe, more).optimization.batch_size
            larger_batch = f" --batch-size {batch}" if batch != recipe.optimization.batch_size else ""
            ways.append(f"{more} GPUs with {found[0].flags}{larger_batch}")
            break
    larger = [gpu for gpu in GPUS.values() if gpu.memory_gib > memory_gib]
    for gpu in sorted(larger, key=lambda one: one.memory_gib):
        found = choices(recipe, config, workers, gpu.memory_gib, replace(machine, gpu=gpu))
        if found:
            ways.append(f"GPUs of {gpu.memory_gib:.0f} GiB ({gpu.name}) with {found[0].flags}")
            break
    return ways


def _variants(recipe: Recipe, workers: int) -> Iterator[Recipe]:
    shares = [n for n in (1, 2, 4, 8) if workers % n == 0]
    micro = sorted({1, 2, 4, recipe.optimization.micro_batch_size})
    for stage, offload, share, samples in itertools.product((1, 2, 3), (False, True), shares, micro):
        try:
            variant = replace(
                recipe,
                workers=replace(_stage(recipe, stage).workers, offload_optimizer=offload, num_workers=workers),
                speed=replace(recipe.speed, sequence_parallel=share),
                optimization=replace(recipe.optimization, micro_batch_size=samples),
            )
        except ConfigError:
            continue  # the batch does not divide so
        yield variant


def _choice(
    recipe: Recipe, config: Mapping[str, Any], workers: int, memory_gib: float, machine: Machine
) -> Choice | None:
    if recipe.speed.sequence_parallel > config["num_attention_heads"]:
        return None  # each worker that shares a clip needs a head
    held = hold(recipe, config, workers, memory_gib, machine)
    if not fits(recipe, held, memory_gib):
        return None
    times = [step_time(recipe, config, size, workers, held.kept, machine) for size in shapes.sizes(recipe)]
    return Choice(
        recipe.workers.zero_stage,
        recipe.workers.offload_optimizer,
        recipe.speed.sequence_parallel,
        recipe.optimization.micro_batch_size,
        held.kept,
        held.total_gb,
        mean_time(times).seconds,
    )


def _changes(recipe: Recipe, choice: Choice) -> int:
    return sum(
        (
            choice.zero_stage != recipe.workers.zero_stage,
            choice.offload_optimizer != recipe.workers.offload_optimizer,
            choice.sequence_parallel != recipe.speed.sequence_parallel,
            choice.micro_batch_size != recipe.optimization.micro_batch_size,
        )
    )


def _stage(recipe: Recipe, stage: int) -> Recipe:
    return replace(recipe, workers=replace(recipe.workers, zero_stage=cast("Literal[1, 2, 3]", stage)))


def _batch_for(recipe: Recipe, workers: int) -> Recipe:
    """The recipe with a batch that so many workers can share: the next larger one."""
    size = -(-recipe.optimization.batch_size // workers) * workers
    return replace(recipe, optimization=replace(recipe.optimization, batch_size=size, micro_batch_size=1))
