"""The loop. Plain Python: one process alone, or every process of a group that Ray Train or torchrun has started.

`train` -> `Trainer.run` -> `Trainer.step` -> `step.forward_backward`.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from dynamictrl.errors import DynamiCtrlError
from dynamictrl.objective import Schedule
from training import acceleration, export, parallel, starting_weights, step
from training.callbacks import Callback
from training.checkpoint import RunFolder
from training.config import Run
from training.ema import MovingAverage
from training.feed import Feed
from training.meter import StepMeter
from training.parallel import Place
from training.saver import Saver

logger = logging.getLogger(__name__)

Report = Callable[[dict[str, float]], None]


def train(run: Run, callbacks: Sequence[Callback] = (), report: Report | None = None) -> Path:
    """Trains to the end from the last checkpoint there is, and exports; returns the model folder.

    Every process of the group calls it. `callbacks` are heard on the first worker; `report` is called on all of them
    at checkpoints (Ray Train's is slow: once a poll of its controller).
    """
    place = parallel.join(run.recipe)
    heard = list(callbacks) if place.is_first else []
    try:
        return Trainer(run, place, heard, report).run()
    finally:
        for callback in heard:
            callback.on_close()


class Trainer:
    """A run in one process: models, data and engine, and the steps between them."""

    def __init__(self, run: Run, place: Place, callbacks: Sequence[Callback], report: Report | None = None):
        recipe = run.recipe
        self._run, self._recipe, self._place = run, recipe, place
        self._callbacks, self._report = callbacks, report
        self._folder = RunFolder(run.out)
        self._pipeline = starting_weights.load(recipe)
        self._config = dict(self._pipeline.transformer.config)
        self._schedule = Schedule.from_scheduler(self._pipeline.scheduler)
        self._feed = Feed(run, place, self._pipeline, self._schedule.num_timesteps)
        acceleration.prepare(self._pipeline.transformer, recipe, place)
        self._engine = parallel.make_engine(starting_weights.learner(self._pipeline, place.device), recipe, place)
        decay = recipe.optimization.ema_decay
        self._average = MovingAverage(self._engine, decay) if decay else None
        self._saver = Saver(self._folder, recipe, place)

    def run(self) -> Path:
        """All steps that are left, then the export."""
        done = self._saver.resume(self._engine, self._average)
        for callback in self._callbacks:
            callback.on_start(done)
        last = self._recipe.optimization.steps
        metrics: dict[str, float] = {}
        while done < last:
            metrics = self.step(done)
            done += 1
            for callback in self._callbacks:
                callback.on_step(done, metrics)
            if done % self._recipe.checkpoints.checkpoint_every == 0 or done == last:
                self._save(done, metrics)
        self._feed.close()
        self._saver.close()
        return self._export(done, metrics)

    def step(self, number: int) -> dict[str, float]:
        """The optimizer step `number`, counted from 0; returns its metrics, the same on every worker."""
        meter = StepMeter(self._recipe, self._place, self._config)
        rate = step.learning_rate(self._recipe.optimization, number)
        parallel.set_learning_rate(self._engine, rate)
        for batch in meter.fed(self._feed.batches(number)):
            with meter.phase("compute"):
                losses_B = step.forward_backward(self._engine, self._schedule, batch)
            meter.add(batch, losses_B)
            with meter.phase("optimizer"):
                self._engine.step()
        if self._average is not None:
            self._average.update()
        metrics = meter.metrics(self._engine, rate)
        self._refuse_nonfinite(number, metrics["loss"])
        return metrics

    def _refuse_nonfinite(self, number: int, loss: float) -> None:
        if not math.isfinite(loss):
            raise DynamiCtrlError(
                f"the loss of step {number + 1} is {loss}; the last checkpoint is from before it. Start again in "
                "another --out with a lower --learning-rate",
                code="run_failed",
            )

    def _save(self, done: int, metrics: dict[str, float]) -> None:
        folder = self._saver.save(self._engine, self._average, done)
        for callback in self._callbacks:
            callback.on_checkpoint(done, folder)
        if self._report is not None:
            self._report(metrics | {"step": float(done)})

    def _export(self, done: int, metrics: dict[str, float]) -> Path:
        gathered = self._average.gather() if self._average else parallel.gather_weights(self._engine)
        if gathered is not None:
            export.export(self._pipeline, gathered, self._run, self._facts(done, metrics))
            shutil.rmtree(self._folder.encodings, ignore_errors=True)
            for callback in self._callbacks:
                callback.on_export(done, self._folder.model)
        torch.distributed.barrier()
        return self._folder.model

    def _facts(self, done: int, metrics: dict[str, float]) -> dict[str, Any]:
        seen = done * self._recipe.optimization.batch_size
        return {
            "clips": len(self._feed.index.entries),
            "epochs": round(seen / len(self._feed.index.entries), 2),
            "last_loss": round(metrics["loss"], 5) if metrics else "not measured in the last session",
            "mini": self._recipe.model.base.startswith("mini/"),
        }
