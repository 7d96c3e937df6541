"""The moving average in a checkpoint: each worker's fragments by parameter name, for any number of workers to take."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from dynamictrl.errors import CheckpointError
from training.checkpoints.on_disk import AVERAGE

Fragments = Mapping[str, tuple[int, Tensor]]
"""Parameter name to (first element in the flat parameter, values [n])."""


def file_of(rank: int) -> str:
    """Where a worker's fragments lie in a checkpoint."""
    return f"{AVERAGE}/{rank:05d}.pt"


def fill(fragments: Fragments, folder: Path, workers: int) -> None:
    """Writes a checkpoint's average into live fragments, whoever wrote which part of it.

    Raises CheckpointError where the checkpoint holds less than is asked for.
    """
    missing = {name: values.numel() for name, (_, values) in fragments.items()}
    for rank in range(workers):
        # Mapped, not read: of other workers' files only what this one needs is touched.
        theirs: Fragments = torch.load(folder / file_of(rank), map_location="cpu", mmap=True, weights_only=True)
        for name in fragments.keys() & theirs.keys():
            missing[name] -= _overlap(fragments[name], theirs[name])
    lacking = sorted(name for name, count in missing.items() if count > 0)  # what all workers hold counts often
    if lacking:
        raise CheckpointError(
            f"{folder} holds no whole average of {lacking[:3]} (of {len(lacking)}); was ema_decay set when it was "
            "written? Choose another --out, or leave ema_decay as it was",
            code="checkpoint_damaged",
        )


def _overlap(mine: tuple[int, Tensor], theirs: tuple[int, Tensor]) -> int:
    """Copies what both hold of a flat parameter; returns how many elements that is."""
    (start, values), (other, source) = mine, theirs
    first, last = max(start, other), min(start + values.numel(), other + source.numel())
    if first >= last:
        return 0
    values.view(-1)[first - start : last - start].copy_(source.view(-1)[first - other : last - other])
    return last - first
