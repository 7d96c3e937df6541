"""Every step's metrics in the run's MLflow run, each step once, however often the run was restarted.

A thread reads `RUN/metrics.jsonl` as it grows and sends what is not on record yet, so a slow or dead server costs the
loop nothing and the memory nothing: what it did not take is read again when it answers, or at the next start.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.callbacks import Callback
from training.callbacks.metrics_file import Tail
from training.release.tracking import TrackedRun, last_step, log_steps

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 2.0
LONGEST_PAUSE = 60.0
"""Seconds between two tries while the server does not answer."""
CLOSE_SECONDS = 30.0
"""How long the end of a session waits for what is not on record yet."""
STEPS_AT_ONCE = 25
"""So that a request stays below MLflow's 1000 values."""
LARGEST_ARTIFACT = 64 * 2**20
"""Bytes of a file that is copied into the record."""


class MlflowLog(Callback):
    """Keeps the MLflow run up with the metrics file, beside the loop."""

    def __init__(self, tracked: TrackedRun, metrics_file: Path):
        """`metrics_file` is `MetricsFile`'s, which stands before this callback."""
        self._tracked = tracked
        self._tail = Tail(metrics_file)
        self._client: MlflowClient | None = None
        self._recorded: int | None = None
        """Last step on record; None where the server must be asked."""
        self._waiting: deque[dict[str, Any]] = deque()
        self._artifacts: deque[Path] = deque()
        self._wake, self._stop, self._abandoned = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)

    def on_start(self, step: int) -> None:
        self._thread.start()

    def on_checkpoint(self, step: int, folder: Path) -> None:
        self._wake.set()

    def on_artifact(self, path: Path) -> None:
        self._artifacts.append(path)

    def on_close(self) -> None:
        if not self._thread.is_alive():
            return
        self._stop.set()
        self._wake.set()
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            self._abandoned.set()
            logger.warning("the MLflow server is behind; the next session records what is missing")

    def _work(self) -> None:
        pause, told = FLUSH_SECONDS, False
        while True:
            self._wake.wait(pause)
            self._wake.clear()
            stopping = self._stop.is_set()
            try:
                self._record_all()
                pause, told = FLUSH_SECONDS, False
            except Exception as problem:  # whatever a tracker does, training goes on
                self._recorded = None  # a request may have been carried out though its answer was lost
                pause = min(2 * pause, LONGEST_PAUSE)
                if not told:
                    logger.warning("steps wait for the MLflow server: %s", str(problem).splitlines()[:1])
                told = True
            if stopping:
                return

    def _record_all(self) -> None:
        if self._client is None:
            self._client = self._tracked.client()
        if self._recorded is None:
            self._recorded = last_step(self._client, self._tracked.run_id)
        while not self._abandoned.is_set():
            if not self._waiting:
                self._waiting.extend(self._tail.read())
            if not self._waiting:
                break
            self._record([self._waiting[i] for i in range(min(STEPS_AT_ONCE, len(self._waiting)))])
        while self._artifacts:
            self._keep(self._client, self._artifacts[0])
            self._artifacts.popleft()

    def _record(self, lines: list[dict[str, Any]]) -> None:
        assert self._client is not None
        assert self._recorded is not None
        fresh = [line for line in lines if line["step"] > self._recorded]
        if fresh:
            steps = [(int(line["step"]), int(line["time"] * 1000), _metrics(line)) for line in fresh]
            log_steps(self._client, self._tracked.run_id, steps)
            self._recorded = steps[-1][0]
        for _ in lines:
            self._waiting.popleft()

    def _keep(self, client: MlflowClient, path: Path) -> None:
        if path.is_file() and path.stat().st_size <= LARGEST_ARTIFACT:
            client.log_artifact(self._tracked.run_id, str(path), path.parent.name)


def _metrics(line: dict[str, Any]) -> dict[str, float]:
    """A line's values; a null becomes NaN again, which MLflow takes."""
    return {
        name: math.nan if value is None else float(value)
        for name, value in line.items()
        if name not in ("step", "time")
    }
