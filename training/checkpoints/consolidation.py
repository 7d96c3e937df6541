"""A checkpoint's weights without an engine: read from the shards of any number of workers, on the CPU."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dynamictrl.errors import CheckpointError, ConfigError
from training.checkpoints.average import file_of
from training.checkpoints.ema import UPDATES
from training.checkpoints.on_disk import STATE, Checkpoint
from training.config import Recipe
from training.engine import starting_weights

if TYPE_CHECKING:
    from dynamictrl.animation import DynamiCtrlPipeline


def load(recipe: Recipe, found: Checkpoint, *, averaged: bool) -> tuple[DynamiCtrlPipeline, dict[str, Tensor]]:
    """The run's pipeline and, as `parallel.gather_weights` gives them, the weights of a checkpoint.

    `averaged` takes the moving average: ConfigError where none was kept. Raises CheckpointError where a weight that
    learns is missing or has another shape.
    """
    pipeline = starting_weights.load(recipe)
    learner = starting_weights.learner(pipeline, torch.device("cpu"))
    weights = dict(learner.state_dict())
    missing = {name for name, parameter in learner.named_parameters() if parameter.requires_grad}
    for name, values in _average(found) if averaged else _masters(found):
        if name not in weights or weights[name].numel() != values.numel():
            raise _not_whole(found, name)
        weights[name] = values.reshape(weights[name].shape).to(weights[name].dtype)
        missing.discard(name)
    if missing:
        raise _not_whole(found, *sorted(missing))
    return pipeline, weights


def _not_whole(found: Checkpoint, *names: str) -> CheckpointError:
    return CheckpointError(
        f"{found.folder} does not hold the weights of this run: {list(names[:3])} of {len(names)} are missing or of "
        "another shape; take another --step",
        code="checkpoint_damaged",
    )


def _average(found: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    """Each parameter's average, flat in float32, put together from the workers' fragments."""
    if not (found.folder / file_of(0)).is_file():
        raise ConfigError(
            f"{found.folder} keeps no moving average; take --weights raw (ema_decay was 0)",
            code="setting_conflict",
            param="weights",
        )
    files = [
        torch.load(found.folder / file_of(rank), map_location="cpu", mmap=True, weights_only=True)
        for rank in range(found.workers)
    ]
    for name in {name: None for held in files for name in held if name != UPDATES}:
        pieces = {start: values for held in files if name in held for start, values in [held[name]]}
        ordered = sorted(pieces)
        ends = [start + pieces[start].numel() for start in ordered]
        if ordered != [0, *ends[:-1]]:
            raise _not_whole(found, name)
        yield name, torch.cat([pieces[start].view(-1) for start in ordered])


def _masters(found: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    """Each parameter that learns, in float32, one at a time."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        lazy = get_fp32_state_dict_from_zero_checkpoint(
            str(found.folder), tag=STATE, exclude_frozen_parameters=True, lazy_mode=True
        )
    assert lazy is not None
    for name in list(lazy):
        yield name, lazy.pop(name).contiguous()
