"""What one optimizer step is told of: its loss, its times, what it achieved. The same on every worker.

A step's numbers cross the workers in one collective at its end, and leave the device there at once: nothing before
waits for the device. On CUDA phases are timed by events, so `data` is what the device waits for its next micro-batch
(with what encodes it), not what the host does beside it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from training.config import Recipe
from training.engine import parallel
from training.engine.parallel import Place
from training.engine.work import Work, peak_tflops
from training.planning.memory import Kept

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from training.samples.batches import Batch

PHASES = ("data", "forward", "backward", "optimizer")


class Clock:
    """Adds up seconds by phase: of the process, or on CUDA of the device's stream."""

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._spans: list[tuple[str, Any, Any]] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts what the block takes to the phase `name`."""
        started = self._now()
        try:
            yield
        finally:
            self._spans.append((name, started, self._now()))

    def seconds(self) -> dict[str, float]:
        """By phase; on CUDA the device must have passed the last one's end."""
        total: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        for name, start, end in self._spans:
            total[name] += start.elapsed_time(end) / 1000 if self._cuda else end - start
        return total

    def _now(self) -> Any:  # noqa: ANN401 - an event or a number
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class Meter:
    """What the steps of a run have in common."""

    def __init__(
        self, recipe: Recipe, place: Place, config: Mapping[str, Any], kept: Kept, *, num_timesteps: int, clips: int
    ):
        """`config` is the transformer's, `kept` what its blocks leave for the backward pass (`work.kept_of`).

        `num_timesteps` is the schedule's length, `clips` are those of the data set.
        """
        self.recipe, self.place, self.config = recipe, place, config
        self.num_timesteps, self.clips = num_timesteps, clips
        self.kept = kept
        peak = peak_tflops(parallel.device_name(place.device))
        self.peak_tflops = peak * place.size if peak is not None else None
        """Of all workers together."""

    def step(self, number: int) -> StepMeter:
        """For the step `number`, counted from 0, which begins now."""
        return StepMeter(self, number)


class StepMeter:
    """Measures one optimizer step, from its construction to `metrics`."""

    def __init__(self, meter: Meter, number: int):
        self._meter, self._number = meter, number
        self._started = time.perf_counter()
        self._clock = Clock(meter.place.device)
        self._losses: list[Tensor] = []
        self._timesteps: list[Tensor] = []
        self._work: list[Work] = []
        self.losses: list[float] = []
        """This worker's samples', in the order they were fed; known after `metrics`."""
        self.timesteps: list[int] = []
        """Theirs, likewise."""
        self.carried: list[float] = []
        """More of this worker's numbers that cross with the step's own; as many on every worker."""
        self.heard: list[list[float]] = []
        """Every worker's `carried`, one row a worker; known after `metrics`."""

    def phase(self, name: str) -> Any:  # noqa: ANN401 - a context manager
        """Counts what the block takes to `data`, `forward`, `backward` or `optimizer`."""
        return self._clock.phase(name)

    def fed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same micro-batches, with the wait for each counted as data."""
        while True:
            with self.phase("data"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def add(self, batch: Batch, losses_B: Tensor) -> None:
        """A micro-batch's losses [B], detached."""
        meter = self._meter
        self._losses.append(losses_B)
        self._timesteps.append(batch.timesteps)
        adapter = meter.recipe.lora.lora_rank > 0
        self._work.append(Work.of(meter.config, batch, meter.kept, adapter=adapter))

    def metrics(self, engine: DeepSpeedEngine, learning_rate: float) -> dict[str, float]:
        """The step's: losses as means over all samples, times and memory as the slowest and fullest worker's."""
        self._read()
        recipe, place = self._meter.recipe, self._meter.place
        seconds = self._clock.seconds()
        memory = _memory_gib(place.device)
        everyone = _gather(
            [*self._bins(), *self._totals(), *seconds.values(), *memory.values(), self._since_start(), *self.carried],
            place,
        )
        bins, totals, phases, held, elapsed, heard = np.split(everyone, np.cumsum([
            2 * recipe.watch.timestep_bins, 3, len(seconds), len(memory), 1
        ]), axis=1)  # fmt: skip
        self.heard = heard.tolist()
        step_seconds = float(elapsed.max())
        # Workers that share a clip count it once: their sums are of the same samples.
        sums, counts = (bins.sum(axis=0) / place.sequence_parallel).reshape(2, -1)
        norm = float(engine.get_global_grad_norm() or 0.0)
        limit = recipe.optimization.max_grad_norm
        waited = float(phases[:, PHASES.index("data")].mean())
        return {
            "loss": float(sums.sum() / counts.sum()),
            "grad_norm": norm if np.isfinite(norm) else float("nan"),
            "learning_rate": learning_rate,
            "step_seconds": step_seconds,
            **self._rates(totals.sum(axis=0) / place.sequence_parallel, step_seconds),
            "data_stall_fraction": min(1.0, waited / step_seconds),
            "skipped_steps": float(engine.skipped_steps),
            **{name: float(held[:, column].max()) for column, name in enumerate(memory)},
            **_by_bin(sums, counts, self._meter.num_timesteps),
            **{f"{name}_seconds": float(phases[:, column].mean()) for column, name in enumerate(PHASES)},
            "clipped": float(bool(limit) and norm > limit),
            **self._seen(),
        }

    def _read(self) -> None:
        """Takes losses and timesteps off the device: the one wait of a step."""
        both = torch.stack([torch.cat(self._losses).double(), torch.cat(self._timesteps).double()]).cpu()
        self.losses, self.timesteps = both[0].tolist(), [int(t) for t in both[1]]

    def _bins(self) -> list[float]:
        """Sums of the losses in each part of the schedule, then how many there are."""
        count = self._meter.recipe.watch.timestep_bins
        sums, counts = [0.0] * count, [0.0] * count
        for loss, timestep in zip(self.losses, self.timesteps, strict=True):
            which = bin_of(timestep, count, self._meter.num_timesteps)
            sums[which] += loss
            counts[which] += 1
        return sums + counts

    def _totals(self) -> list[float]:
        return [
            sum(work.tokens for work in self._work),
            sum(work.model_tflop for work in self._work),
            sum(work.hardware_tflop for work in self._work),
        ]

    def _rates(self, totals: NDArray[np.float64], seconds: float) -> dict[str, float]:
        tokens, model, hardware = (float(total) for total in totals)
        peak = self._meter.peak_tflops
        known = {"mfu": model / seconds / peak, "hfu": hardware / seconds / peak} if peak is not None else {}
        return {"tokens_per_second": tokens / seconds} | known

    def _seen(self) -> dict[str, float]:
        seen = (self._number + 1) * self._meter.recipe.optimization.batch_size
        return {"samples_seen": float(seen), "epoch": seen / self._meter.clips}

    def _since_start(self) -> float:
        return time.perf_counter() - self._started


def bin_of(timestep: int, bins: int, num_timesteps: int) -> int:
    """In which of so many equal parts of the schedule a timestep lies."""
    return timestep * bins // num_timesteps


def bin_name(number: int, bins: int, num_timesteps: int) -> str:
    """The metric of one part of the schedule, as `loss/t000-200`: from its first timestep to the next part's."""
    low, high = (-(-edge * num_timesteps // bins) for edge in (number, number + 1))
    return f"loss/t{low:03d}-{high:03d}"


def _by_bin(sums: NDArray[np.float64], counts: NDArray[np.float64], num_timesteps: int) -> dict[str, float]:
    """Mean losses of the parts that got a sample."""
    return {
        bin_name(number, len(counts), num_timesteps): float(sums[number] / counts[number])
        for number in range(len(counts))
        if counts[number]
    }


def _gather(values: Sequence[float], place: Place) -> NDArray[np.float64]:
    """Every worker's values, float64 [workers, values]."""
    mine = torch.tensor(values, dtype=torch.float64, device=place.device)
    everyone = torch.empty(place.size * len(values), dtype=torch.float64, device=place.device)
    dist.all_gather_into_tensor(everyone, mine)
    return everyone.view(place.size, -1).cpu().numpy()


def _memory_gib(device: torch.device) -> dict[str, float]:
    """Peak of this process, and on CUDA what is held now by tensors and by torch."""
    if device.type != "cuda":
        return {"peak_memory_gib": parallel.peak_memory_gib(device)}
    held = torch.cuda.memory_stats(device)
    return {
        "peak_memory_gib": held["allocated_bytes.all.peak"] / 2**30,
        "memory_gib": held["allocated_bytes.all.current"] / 2**30,
        "reserved_memory_gib": held["reserved_bytes.all.current"] / 2**30,
    }
