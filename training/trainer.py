"""The loop. Plain Python: one process alone, or every process of a group that Ray Train or torchrun has started.

`train` -> `Trainer.run` -> `Trainer.step` -> `step.forward_backward`.
"""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from dynamictrl.conditioning import PromptEncoder
from dynamictrl.encodings import EncodedBy, folder_hash
from dynamictrl.errors import DynamiCtrlError
from dynamictrl.objective import Schedule
from dynamictrl.weights import resolve
from training import checkpoint, parallel, starting_weights, step
from training.batches import Collator, FrozenModels, Loader, image_scale
from training.callbacks import Callback
from training.checkpoint import RunFolder
from training.config import Run
from training.data import Index, Order, build_index, positions, timesteps
from training.parallel import Place

logger = logging.getLogger(__name__)

Report = Callable[[dict[str, float]], None]


def train(run: Run, callbacks: Sequence[Callback] = (), report: Report | None = None) -> Path:
    """Trains to the end from the last checkpoint there is, and exports; returns the model folder.

    Every process of the group calls it. `callbacks` are heard on the first worker; `report` is called on all of them
    at checkpoints (Ray Train's is slow: once a poll of its controller).
    """
    place = parallel.join(run.recipe.workers)
    heard = list(callbacks) if place.is_first else []
    try:
        return Trainer(run, place, heard, report).run()
    finally:
        for callback in heard:
            callback.on_close()


def index_of(run: Run) -> Index:
    """The clips that a run trains on, with precomputed encodings where they are of its own base and sizes."""
    index = build_index(run.data, run.recipe.clips)
    if not index.has_encodings or run.recipe.model.pose_encoding == "expert":
        return index  # encodings hold the VAE's view of the poses, which an expert encoder has no use for
    base, clips = resolve(run.recipe.model.base), run.recipe.clips
    encoded_by = EncodedBy(
        Order(run.recipe.seed, clips, index.entries).window(0),
        folder_hash(base / "vae"),
        folder_hash(base / "text_encoder"),
        clips.masked_reference,
    )
    return build_index(run.data, clips, encoded_by)


class Trainer:
    """A run in one process: models, data and engine, and the steps between them."""

    def __init__(self, run: Run, place: Place, callbacks: Sequence[Callback], report: Report | None = None):
        recipe = run.recipe
        self._run, self._recipe, self._place = run, recipe, place
        self._callbacks, self._report = callbacks, report
        self._folder = RunFolder(run.out)
        self._index = index_of(run)
        self._pipeline = starting_weights.load(recipe)
        learner = starting_weights.learner(self._pipeline, place.device)
        self._config = dict(self._pipeline.transformer.config)
        self._frozen = self._frozen_models()
        order = Order(recipe.seed, recipe.clips, self._index.entries)
        shared = self._folder.encodings if recipe.clips.share_encodings else None
        self._loader = Loader(order, self._frozen, recipe.clips, shared)
        self._collate = Collator(self._frozen, recipe.clips, self._config["patch_size_t"], place.device)
        self._schedule = Schedule.from_scheduler(self._pipeline.scheduler)
        self._engine = parallel.make_engine(learner, recipe)
        self._device_name = torch.cuda.get_device_name(place.device) if place.device.type == "cuda" else "cpu"

    def _frozen_models(self) -> FrozenModels:
        pipeline, device = self._pipeline, self._place.device
        length = self._config["max_text_seq_length"]
        prompts = PromptEncoder(pipeline.tokenizer, pipeline.text_encoder.to(device), length)
        vae = pipeline.vae.to(device)
        scale = image_scale(vae, pipeline.config["image_latent_rule"])
        return FrozenModels(vae, prompts, scale, encodes_pose=pipeline.pose_encoder is None)

    def run(self) -> Path:
        """All steps that are left, then the export."""
        found = checkpoint.newest(self._folder)
        checkpoint.check_workers(found, self._place.size)
        done = checkpoint.load(self._engine, found) if found else 0
        for callback in self._callbacks:
            callback.on_start(done)
        last = self._recipe.optimization.steps
        metrics: dict[str, float] = {}
        while done < last:
            metrics = self.step(done)
            done += 1
            for callback in self._callbacks:
                callback.on_step(done, metrics)
            if done % self._recipe.records.checkpoint_every == 0 or done == last:
                self._save(done, metrics)
        self._loader.close()
        return self._export(done, metrics)

    def step(self, number: int) -> dict[str, float]:
        """The optimizer step `number`, counted from 0; returns its metrics, the same on every worker."""
        optimization, place = self._recipe.optimization, self._place
        started = time.perf_counter()
        rate = step.learning_rate(optimization, number)
        parallel.set_learning_rate(self._engine, rate)
        times = timesteps(
            self._recipe.seed,
            number,
            optimization.batch_size,
            optimization.stratified_timesteps,
            self._schedule.num_timesteps,
        )
        mine = positions(number, optimization.batch_size, place.rank, place.size)
        self._loader.prefetch(positions(number + 1, optimization.batch_size, place.rank, place.size))
        waited, losses = 0.0, []
        for first in range(0, len(mine), optimization.micro_batch_size):
            micro = mine[first : first + optimization.micro_batch_size]
            asked = time.perf_counter()
            samples = list(self._loader.load(micro))
            batch = self._collate(samples, [int(times[p - number * optimization.batch_size]) for p in micro])
            waited += time.perf_counter() - asked
            losses.append(step.forward_backward(self._engine, self._schedule, batch))
            self._engine.step()
        loss, waited = parallel.mean_over_workers([float(torch.stack(losses).mean()), waited], place.device)
        self._refuse_nonfinite(number, loss)
        seconds = time.perf_counter() - started
        work = step.Work.of(self._config, batch)  # pyright: ignore[reportPossiblyUnboundVariable] - at least one
        return {
            "loss": loss,
            "grad_norm": float(self._engine.get_global_grad_norm() or 0.0),
            "learning_rate": rate,
            "step_seconds": seconds,
            **work.rates(optimization.batch_size, seconds, place.size, self._device_name),
            "data_stall_fraction": min(1.0, waited / seconds),
            "skipped_steps": float(self._engine.skipped_steps),
            "peak_memory_gib": parallel.peak_memory_gib(place.device),
        }

    def _refuse_nonfinite(self, number: int, loss: float) -> None:
        if not math.isfinite(loss):
            raise DynamiCtrlError(
                f"the loss of step {number + 1} is {loss}; the last checkpoint is from before it. Start again in "
                "another --out with a lower --learning-rate",
                code="run_failed",
            )

    def _save(self, done: int, metrics: dict[str, float]) -> None:
        folder = checkpoint.save(self._engine, self._folder, done, self._recipe.records.keep_checkpoints)
        for callback in self._callbacks:
            callback.on_checkpoint(done, folder)
        if self._report is not None:
            self._report(metrics | {"step": float(done)})

    def _export(self, done: int, metrics: dict[str, float]) -> Path:
        gathered = parallel.gather_weights(self._engine)
        if gathered is not None:
            checkpoint.export(self._pipeline, gathered, self._run, self._facts(done, metrics))
            shutil.rmtree(self._folder.encodings, ignore_errors=True)
            for callback in self._callbacks:
                callback.on_export(done, self._folder.model)
        torch.distributed.barrier()
        return self._folder.model

    def _facts(self, done: int, metrics: dict[str, float]) -> dict[str, Any]:
        seen = done * self._recipe.optimization.batch_size
        return {
            "clips": len(self._index.entries),
            "epochs": round(seen / len(self._index.entries), 2),
            "last_loss": round(metrics["loss"], 5) if metrics else "not measured in the last session",
            "mini": self._recipe.model.base.startswith("mini/"),
        }
