"""Which callbacks keep a run's metrics, wherever it trains."""

from __future__ import annotations

from training.callbacks import Callback
from training.callbacks.metrics_file import MetricsFile
from training.callbacks.mlflow_log import MlflowLog
from training.callbacks.sessions import FILE, Sessions
from training.config import Run
from training.release.tracking import TrackedRun
from training.run_folder import RunFolder


def record(run: Run, tracked: TrackedRun | None) -> list[Callback]:
    """The callbacks that keep a run's metrics: the file first, since MLflow's catches up from it."""
    path = RunFolder(run.out).metrics
    kept: list[Callback] = [Sessions(run.out / FILE, path), MetricsFile(path)]
    return [*kept, MlflowLog(tracked, path)] if tracked is not None else kept
