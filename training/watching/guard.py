"""What becomes of a step whose gradients cannot be trusted: it is left out, told of with its clips, and counted.

DeepSpeed (0.19, every ZeRO stage, bf16 and fp32) leaves a step out on all workers when its gradients' norm is not
finite, and says so nowhere but in a counter; `step.forward_backward` sees to it that a loss that is not finite has
such gradients. The weights, AdamW's state and the moving average then stay as they were; the learning rate follows the
number of the step, applied or not.

The median of the gradient norms is part of a run's state where `skip_spikes` is set. It is a function of the steps
before, so a restart takes it from `RUN/metrics.jsonl`.
"""

from __future__ import annotations

import json
import logging
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from dynamictrl.errors import DynamiCtrlError
from training.callbacks.metrics_file import keep_until, read_lines
from training.engine.parallel import Place
from training.settings.watch import Watch

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

logger = logging.getLogger(__name__)

SKIPPED_FILE = "skipped_steps.jsonl"
NOT_FINITE, SPIKE = "not_finite", "spike"

Shown = Callable[[], Sequence[Mapping[str, Any]]]
"""Gives this worker's samples of a step, each with what names it and its loss."""


class Guard:
    """Judges every step of one worker; all workers come to the same judgement."""

    def __init__(self, watch: Watch, place: Place, folder: Path, engine: DeepSpeedEngine):
        """`folder` is the run's."""
        self._watch, self._place, self._folder, self._engine = watch, place, folder, engine
        self._norms: deque[float] = deque(maxlen=watch.spike_window)
        self._skipped, self._spikes = 0, 0
        self._in_a_row = 0
        self._last_applied = 0
        self._held_back = False
        """Whether the last step that got as far as the optimizer was a spike that it left out."""
        if watch.skip_spikes:
            self._hold_spikes_back()

    @property
    def applied(self) -> bool:
        """Whether the last step has changed the weights."""
        return self._engine.was_step_applied() and not self._held_back

    @property
    def allows_checkpoint(self) -> bool:
        """No checkpoint is written while steps are left out, so that the good ones stay."""
        return self._in_a_row == 0

    def resume(self, done: int) -> None:
        """Goes on after `done` steps from what the first worker has on record of them."""
        record: list[Any] = [None]
        if self._place.is_first:
            keep_until(self._folder / SKIPPED_FILE, done)
            record = [_recorded(self._folder / "metrics.jsonl", done, self._watch.spike_window)]
        dist.broadcast_object_list(record, src=0)
        norms, skipped, self._spikes = record[0]
        self._norms.extend(norms)
        self._skipped = max(skipped, self._engine.skipped_steps)
        self._last_applied = done

    def judge(self, step: int, metrics: Mapping[str, float], shown: Shown) -> dict[str, float]:
        """Counts, with `skipped_steps` and `spikes` of the run so far; `step` counts from 1, and is over.

        Raises DynamiCtrlError (code run_failed) on every worker when too many steps in a row were not applied.
        """
        applied, norm, median = self.applied, metrics["grad_norm"], self._median()
        reason = _reason(norm, self._is_spike(norm))
        self._spikes += reason == SPIKE
        self._skipped += not applied
        self._in_a_row = 0 if applied else self._in_a_row + 1
        if applied:
            self._norms.append(norm)
            self._last_applied = step
        if reason or not applied:
            self._tell(step, reason or NOT_FINITE, metrics, median, applied, shown)
        if self._in_a_row >= self._watch.max_skipped_steps:
            raise self._failure(step)
        return {"skipped_steps": float(self._skipped), "spikes": float(self._spikes)}

    def check_end(self, step: int) -> None:
        """Raises DynamiCtrlError (code run_failed) where the run would end with steps left out in a row."""
        if self._in_a_row > 1:
            raise self._failure(step)

    def _hold_spikes_back(self) -> None:
        """The engine's own optimizer does nothing on a spike; all that DeepSpeed does around it is left as it is."""
        optimizer: Any = self._engine.optimizer
        apply = optimizer.optimizer.step

        def apply_unless_spike(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - torch's
            # DeepSpeed calls this once for each group of parameters, and knows the norm of all by then.
            self._held_back = self._is_spike(float(optimizer._global_grad_norm))
            return None if self._held_back else apply(*arguments, **options)

        optimizer.optimizer.step = apply_unless_spike

    def _median(self) -> float | None:
        """Of the last applied steps' norms, once there are enough to tell."""
        enough = len(self._norms) >= max(1, self._watch.spike_window // 4)
        return statistics.median(self._norms) if enough else None

    def _is_spike(self, norm: float) -> bool:
        median = self._median() if self._watch.spike_factor else None
        return median is not None and norm > self._watch.spike_factor * median

    def _tell(
        self, step: int, reason: str, metrics: Mapping[str, float], median: float | None, applied: bool, shown: Shown
    ) -> None:
        """Steps that are told of are told of on every worker, so all of them can bring what they were shown."""
        everyone: list[Any] = [None] * self._place.size
        dist.all_gather_object(everyone, shown())
        if not self._place.is_first:
            return
        samples = [sample for mine in everyone[:: self._place.sequence_parallel] for sample in mine]
        worst = max(samples, key=lambda sample: _order(sample["loss"]), default={})
        logger.warning(
            "step %d %s: gradient norm %.3g (median %.3g), loss %.3g, greatest for %s; %s has its %d clips",
            step, "was applied" if applied else "was left out", metrics["grad_norm"], median or math.nan,
            metrics["loss"], worst.get("key", "no clip"), SKIPPED_FILE, len(samples),
        )  # fmt: skip
        line = {
            "step": step, "time": round(time.time(), 3), "reason": reason, "applied": applied,
            "loss": _finite(metrics["loss"]), "grad_norm": _finite(metrics["grad_norm"]), "median_norm": median,
            "samples": [{**sample, "loss": _finite(sample["loss"])} for sample in samples],
        }  # fmt: skip
        try:
            with (self._folder / SKIPPED_FILE).open("a") as stream:
                stream.write(json.dumps(line) + "\n")
        except OSError as problem:  # as on a full disk: the log has its essence
            logger.warning("step %d is not in %s: %s", step, SKIPPED_FILE, problem)

    def _failure(self, step: int) -> DynamiCtrlError:
        return DynamiCtrlError(
            f"the gradients of steps {self._last_applied + 1} to {step} could not be applied; the last good "
            f"checkpoint is kept, and {self._folder / SKIPPED_FILE} names their clips. Start again in another --out "
            "with a lower --learning-rate, or without those clips",
            code="run_failed",
        )


def _reason(norm: float, is_spike: bool) -> str:
    if not math.isfinite(norm):
        return NOT_FINITE
    return SPIKE if is_spike else ""


def _recorded(path: Path, done: int, window: int) -> tuple[list[float], int, int]:
    """Of the first `done` steps on record: the last applied norms, and how many were left out and were spikes."""
    norms: deque[float] = deque(maxlen=window)
    skipped, spikes = 0, 0
    for line in read_lines(path):
        if line["step"] > done:
            break
        if line["skipped_steps"] == skipped:
            norms.append(line["grad_norm"])
        skipped, spikes = int(line["skipped_steps"]), int(line.get("spikes", 0))
    return list(norms), skipped, spikes


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _order(loss: float) -> float:
    return loss if not math.isnan(loss) else math.inf
