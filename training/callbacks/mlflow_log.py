"""Every step's metrics in the run's MLflow run, each step once, however often the run was restarted."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from training.callbacks import Callback
from training.tracking import TrackedRun, last_step, log_steps

FLUSH_SECONDS = 2.0


class MlflowLog(Callback):
    """Gathers steps and records them together, so that tracking does not slow the loop."""

    def __init__(self, tracked: TrackedRun):
        self._tracked = tracked
        self._waiting: list[tuple[int, int, Mapping[str, float]]] = []
        self._flushed = time.monotonic()

    def on_start(self, step: int) -> None:
        self._client = self._tracked.client()
        self._on_record = last_step(self._client, self._tracked.run_id)

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
        if self._waiting:
            log_steps(self._client, self._tracked.run_id, self._waiting)
            self._on_record = self._waiting[-1][0]
        self._waiting = []
        self._flushed = time.monotonic()
