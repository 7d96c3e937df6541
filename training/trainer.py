"""The loop. Plain Python: one process alone, or every process of a group that Ray Train or torchrun has started.

`train` -> `Trainer.run` -> `Trainer.step` -> `step.forward_backward`.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from dynamictrl.errors import DynamiCtrlError
from dynamictrl.objective import Schedule
from training.callbacks import Callback
from training.checkpoints.ema import MovingAverage
from training.checkpoints.notice import IsLeaving
from training.checkpoints.saver import Saver
from training.config import Run
from training.engine import acceleration, parallel, starting_weights, step, work
from training.engine.parallel import Place
from training.release import export
from training.run_folder import RunFolder
from training.samples.feed import Feed
from training.watching.guard import Guard
from training.watching.meter import Meter, StepMeter
from training.watching.trace import Trace

logger = logging.getLogger(__name__)

Report = Callable[[dict[str, float]], None]


def train(
    run: Run, callbacks: Sequence[Callback] = (), report: Report | None = None, is_leaving: IsLeaving | None = None
) -> Path:
    """Trains to the end from the last checkpoint there is, and exports; returns the model folder.

    Every process of the group calls it. `callbacks` are heard on the first worker; `report` is called on all of them
    at checkpoints (Ray Train's is slow: once a poll of its controller). `is_leaving` is asked once a step on every
    worker, and must answer at once: where it says so on any of them, or SIGTERM came, a checkpoint is made and
    DynamiCtrlError with code run_stopped raised.
    """
    place = parallel.join(run.recipe)
    heard = list(callbacks) if place.is_first else []
    try:
        return Trainer(run, place, heard, report, is_leaving).run()
    finally:
        for callback in heard:
            callback.on_close()


class Trainer:
    """A run in one process: models, data and engine, and the steps between them."""

    def __init__(
        self, run: Run, place: Place, callbacks: Sequence[Callback], report: Report | None = None,
        is_leaving: IsLeaving | None = None,
    ):  # fmt: skip
        recipe = run.recipe
        self._run, self._recipe, self._place = run, recipe, place
        self._callbacks, self._report = callbacks, report
        self._folder = RunFolder(run.out)
        self._pipeline = starting_weights.load(recipe)
        self._config = dict(self._pipeline.transformer.config)
        self._schedule = Schedule.from_scheduler(self._pipeline.scheduler)
        self._feed = Feed(run, place, self._pipeline, self._schedule.num_timesteps)
        acceleration.prepare(self._pipeline.transformer, recipe, place, precomputed=self._feed.index.all_encoded)
        self._engine = parallel.make_engine(starting_weights.learner(self._pipeline, place.device), recipe, place)
        decay = recipe.optimization.ema_decay
        self._average = MovingAverage(self._engine, decay) if decay else None
        self._saver = Saver(self._folder, recipe, place, is_leaving)
        self._guard = Guard(recipe.watch, place, run.out, self._engine)
        self._trace = Trace(recipe.watch.profile_step, place, run.out, callbacks)
        self._meter = Meter(
            recipe, place, self._config, work.kept_of(self._pipeline.transformer),
            num_timesteps=self._schedule.num_timesteps, clips=len(self._feed.index.entries),
        )  # fmt: skip

    def run(self) -> Path:
        """All steps that are left, then the export.

        Raises DynamiCtrlError with code run_stopped where a worker was told to leave.
        """
        try:
            done, metrics = self._train()
        except BaseException:
            self._saver.abandon()
            raise
        return self._export(done, metrics)

    def _train(self) -> tuple[int, dict[str, float]]:
        done = self._saver.resume(self._engine, self._average)
        self._guard.resume(done)
        for callback in self._callbacks:
            callback.on_start(done)
        last = self._recipe.optimization.steps
        metrics: dict[str, float] = {}
        due = False
        while done < last:
            self._trace.before(done + 1)
            metrics = self.step(done)
            done += 1
            self._trace.after(done, last)
            for callback in self._callbacks:
                callback.on_step(done, metrics)
            due = due or done % self._recipe.checkpoints.checkpoint_every == 0 or done == last or self._saver.leaving
            due = due or self._recipe.validation.is_due(done, last)
            if due and (self._guard.allows_checkpoint or done == last):
                self._save(done, metrics)
                due = False
            self._tell_arrived()
            if self._saver.leaving and done < last:
                self._leave(done)
        self._feed.close()
        self._saver.close()
        self._tell_arrived()
        return done, metrics

    def step(self, number: int) -> dict[str, float]:
        """The optimizer step `number`, counted from 0; returns its metrics, the same on every worker."""
        meter = self._meter.step(number)
        rate = step.learning_rate(self._recipe.optimization, number)
        parallel.set_learning_rate(self._engine, rate)
        for batch in meter.fed(self._feed.batches(number)):
            losses_B = step.forward_backward(self._engine, self._schedule, batch, meter)
            meter.add(batch, losses_B)
            with meter.phase("optimizer"):
                self._engine.step()
        if self._average is not None and self._guard.applied:
            self._average.update()
        meter.carried += self._saver.say()
        metrics = meter.metrics(self._engine, rate)
        self._saver.hear(meter.heard)
        metrics |= self._saver.metrics()
        metrics |= self._guard.judge(number + 1, metrics, lambda: self._shown(number, meter))
        if number + 1 == self._recipe.optimization.steps:
            self._guard.check_end(number + 1)
        return metrics

    def _shown(self, number: int, meter: StepMeter) -> list[dict[str, Any]]:
        """This worker's samples of a step that is over, as `skipped_steps.jsonl` names them."""
        return [
            {"position": draw.position, "key": draw.entry.key, "start": draw.window.start, "timestep": t, "loss": loss}
            for draw, t, loss in zip(self._feed.shown(number), meter.timesteps, meter.losses, strict=True)
        ]

    def _save(self, done: int, metrics: dict[str, float]) -> None:
        self._saver.save(self._engine, self._average, done)
        if self._report is not None:
            self._report(metrics | {"step": float(done)})

    def _tell_arrived(self) -> None:
        for done, folder in self._saver.arrived():
            for callback in self._callbacks:
                callback.on_checkpoint(done, folder)

    def _leave(self, done: int) -> None:
        self._feed.close()
        self._saver.close()
        self._tell_arrived()
        raise DynamiCtrlError(
            f"stopped after step {done}, as this machine will be taken away; the same command goes on from the last "
            f"checkpoint in {self._folder.checkpoints}",
            code="run_stopped",
        )

    def _export(self, done: int, metrics: dict[str, float]) -> Path:
        gathered = self._average.gather() if self._average else parallel.gather_weights(self._engine)
        if gathered is not None:
            try:
                export.export(self._pipeline, gathered, self._run, self._facts(done, metrics))
            except OSError as problem:
                raise DynamiCtrlError(
                    f"the model could not be written ({problem}); free some space, and the same command exports it "
                    f"from the last whole checkpoint, {self._saver.last or 'of which there is none'}",
                    code="run_failed",
                ) from problem
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
