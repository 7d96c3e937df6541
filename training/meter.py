"""What one optimizer step is told of: its loss, its times, what it achieved. The same on every worker."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from training import parallel
from training.config import Recipe
from training.parallel import Place
from training.step import Work

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from training.batches import Batch


class StepMeter:
    """Measures one optimizer step, from its construction to `metrics`."""

    def __init__(self, recipe: Recipe, place: Place, config: object):
        """`config` is the transformer's."""
        self._recipe, self._place, self._config = recipe, place, config
        self._started = time.perf_counter()
        self._seconds = {"data": 0.0, "compute": 0.0, "optimizer": 0.0}
        self._losses: list[Tensor] = []
        self._batch: Batch | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds what the block takes, in this process's time, to the phase `data`, `compute` or `optimizer`."""
        started = time.perf_counter()
        yield
        self._seconds[name] += time.perf_counter() - started

    def fed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same micro-batches, with the wait for each counted as data."""
        while True:
            with self.phase("data"):
                batch = next(batches, None)
            if batch is None:
                return
            self._batch = batch
            yield batch

    def add(self, batch: Batch, losses_B: Tensor) -> None:
        """A micro-batch's losses [B], detached."""
        self._losses.append(losses_B.mean())

    def metrics(self, engine: DeepSpeedEngine, learning_rate: float) -> dict[str, float]:
        """The step's, the loss and the waits as means over all workers."""
        place, recipe = self._place, self._recipe
        loss, waited = parallel.mean_over_workers(
            [float(torch.stack(self._losses).mean()), self._seconds["data"]], place.device
        )
        seconds = time.perf_counter() - self._started
        assert self._batch is not None
        work = Work.of(self._config, self._batch)  # pyright: ignore[reportArgumentType] - a mapping
        return {
            "loss": loss,
            "grad_norm": float(engine.get_global_grad_norm() or 0.0),
            "learning_rate": learning_rate,
            "step_seconds": seconds,
            **work.rates(recipe.optimization.batch_size, seconds, place.size, parallel.device_name(place.device)),
            "data_stall_fraction": min(1.0, waited / seconds),
            "skipped_steps": float(engine.skipped_steps),
            "peak_memory_gib": parallel.peak_memory_gib(place.device),
        }
