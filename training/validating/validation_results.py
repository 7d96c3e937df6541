"""What validations have left in `RUN/validation`, and how it reaches the run's MLflow run. Nothing heavy here.

```
RUN/validation/step-00000100/   there only when it is whole
  metrics.json                  step, mean and per clip, what was sampled and how
  KEY.mp4                       reference, poses, truth and what was made, side by side
```
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.release.tracking import TrackedRun, log_steps

if TYPE_CHECKING:
    from mlflow import MlflowClient

METRICS = "metrics.json"
HIGHER_IS_BETTER = {"psnr": True, "ssim": True, "mean_absolute_error": False, "l1_disco": False}
"""What is measured."""


@dataclass(frozen=True)
class Result:
    """One validation."""

    folder: Path
    step: int
    identity: str
    """The same where clips, sizes, sampler and noise were: only then values may be compared."""
    values: Mapping[str, float]
    """Means over the clips."""
    seconds: float
    finished: float
    """Seconds since 1970."""
    keys: tuple[str, ...]
    """The clips."""

    @property
    def clips(self) -> list[Path]:
        """The videos."""
        return [self.folder / f"{key}.mp4" for key in self.keys]

    def metrics(self) -> dict[str, float]:
        """As MLflow names them."""
        return {f"validation/{name}": value for name, value in self.values.items()} | {
            "validation/seconds": self.seconds
        }


def folder_of(out: Path, step: int) -> Path:
    """Where the validation after so many steps is."""
    return out / "validation" / f"step-{step:08d}"


def results(out: Path) -> list[Result]:
    """All whole validations of a run, in order of step; unreadable ones are passed by."""
    found = [_read(path) for path in sorted((out / "validation").glob(f"step-*/{METRICS}"))]
    return [result for result in found if result is not None]


def result_at(out: Path, step: int) -> Result | None:
    """The validation after so many steps, if it is there."""
    return _read(folder_of(out, step) / METRICS)


def _read(path: Path) -> Result | None:
    try:
        told: dict[str, Any] = json.loads(path.read_text())
        values, keys = told["mean"]["model"], tuple(told["per_clip"])
        return Result(path.parent, int(told["step"]), told["identity"], values, told["seconds"], told["finished"], keys)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def record(tracked: TrackedRun, out: Path) -> None:
    """Brings to the MLflow run what is not on record there: metrics at their steps, and the videos.

    Raises what MLflow raises where the server does not answer; call again later.
    """
    there = results(out)
    if not there:
        return
    client = tracked.client()
    recorded = _recorded_steps(client, tracked.run_id)
    for result in there:
        if result.step not in recorded:
            for path in (result.folder / METRICS, *result.clips):
                client.log_artifact(tracked.run_id, str(path), f"validation/{result.folder.name}")
            # Last: a step counts as recorded by its metrics.
            log_steps(client, tracked.run_id, [(result.step, int(result.finished * 1000), result.metrics())])


def _recorded_steps(client: MlflowClient, run_id: str) -> set[int]:
    return {metric.step for metric in client.get_metric_history(run_id, "validation/seconds")}
