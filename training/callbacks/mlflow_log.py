"""Every step's metrics in the run's MLflow run, each step once, however often the run was restarted."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path

from training.callbacks import Callback
from training.callbacks.metrics_file import read_lines
from training.tracking import TrackedRun, last_step, log_steps

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 2.0


class MlflowLog(Callback):
    """Gathers steps and records them together, so that tracking does not slow the loop."""

    def __init__(self, tracked: TrackedRun, metrics_file: Path):
        """`metrics_file` is `MetricsFile`'s: what a kill kept from being recorded is taken from there."""
        self._tracked = tracked
        self._metrics_file = metrics_file
        self._waiting: list[tuple[int, int, Mapping[str, float]]] = []
        self._flushed = time.monotonic()

    def on_start(self, step: int) -> None:
        self._client = self._tracked.client()
        self._on_record = last_step(self._client, self._tracked.run_id)
        for line in read_lines(self._metrics_file):
            metrics = {name: value for name, value in line.items() if name not in ("step", "time")}
            if self._on_record < line["step"] <= step:
                self._waiting.append((int(line["step"]), int(line["time"] * 1000), metrics))
        self._flush()

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        if step > self._on_record:
            self._waiting.append((step, int(time.time() * 1000), dict(metrics)))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._flush()

    def on_checkpoint(self, step: int, folder: Path) -> None:
        self._flush()

    def on_close(self) -> None:
        if hasattr(self, "_client"):
            self._flush()

    def _flush(self) -> None:
        from mlflow.exceptions import MlflowException

        self._flushed = time.monotonic()
        if not self._waiting:
            return
        try:
            log_steps(self._client, self._tracked.run_id, self._waiting)
        except MlflowException as problem:
            # Training goes on: what waits is recorded when the server answers again.
            logger.warning("%d steps wait for the MLflow server: %s", len(self._waiting), problem)
            return
        self._on_record = self._waiting[-1][0]
        self._waiting = []
