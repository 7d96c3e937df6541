"""Writes a run's checkpoints and goes on from the newest; `checkpoint` knows what they look like on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from training import checkpoint
from training.checkpoint import RunFolder
from training.config import Recipe
from training.parallel import Place

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from training.ema import MovingAverage


class Saver:
    """The checkpoints of one run, in one worker; every worker calls its methods together."""

    def __init__(self, folder: RunFolder, recipe: Recipe, place: Place):
        self._folder, self._recipe, self._place = folder, recipe, place

    def resume(self, engine: DeepSpeedEngine, average: MovingAverage | None) -> int:
        """Puts the newest whole checkpoint into the engine; returns the steps done, 0 where there is none."""
        found = checkpoint.newest(self._folder)
        checkpoint.check_workers(found, self._place.size)
        return checkpoint.load(engine, found) if found else 0

    def save(self, engine: DeepSpeedEngine, average: MovingAverage | None, done: int) -> Path:
        """Writes a checkpoint; what it says is safe once `COMPLETE` is in it."""
        return checkpoint.save(engine, self._folder, done, self._recipe.checkpoints.keep_checkpoints)

    def close(self) -> None:
        """Waits for what is still being written."""
