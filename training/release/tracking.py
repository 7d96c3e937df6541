"""The run's MLflow run: opened once, found again after a restart, and written to.

A run may have none: `--experiment ""` records nothing, and then nothing here needs mlflow.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dynamictrl.errors import ConfigError
from dynamictrl.samples.shards import write_json
from training.config import Run
from training.release import provenance

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

MARKER = "mlflow.json"
FOLDER_ID = ".tracking-id"
FOLDER_TAG = "dynamictrl.run_folder"


@dataclass(frozen=True)
class TrackedRun:
    """An MLflow run, by name; any worker may open it."""

    tracking_uri: str
    run_id: str

    def client(self) -> MlflowClient:
        """A client of the run's server or store."""
        return _client(self.tracking_uri)


def tracking_uri(out: Path) -> str:
    """MLFLOW_TRACKING_URI, or a SQLite store in the run folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{out.resolve() / 'mlflow.db'}"


def _client(uri: str) -> MlflowClient:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    # A dead server should be told of in seconds, not after MLflow's two minutes of trying.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    return MlflowClient(uri)


def open_run(run: Run) -> TrackedRun | None:
    """The run's MLflow run, marked as running: the one that an earlier session opened, or a new one.

    None where the recipe records nothing. Raises ConfigError where the tracking server does not answer.
    """
    if not run.recipe.records.experiment:
        return None
    uri = tracking_uri(run.out)
    try:
        from mlflow.exceptions import MlflowException
    except ImportError as problem:
        raise ConfigError(
            'mlflow is not installed; install it, or record nothing with --experiment ""',
            code="tracking_unreachable",
            param="experiment",
        ) from problem
    try:
        return _opened(run, uri)
    except (MlflowException, OSError) as problem:
        raise ConfigError(
            f"the MLflow server {uri} does not answer ({first_line(problem)}); start it, unset MLFLOW_TRACKING_URI "
            'to record in the run folder, or record nothing with --experiment ""',
            code="tracking_unreachable",
        ) from problem


def _opened(run: Run, uri: str) -> TrackedRun:
    client, marker = _client(uri), run.out / MARKER
    run_id = _known(marker, uri)
    if run_id is None:
        experiment = _experiment(client, run.recipe.records.experiment, run.out, uri)
        folder_id, is_old = _folder_id(run.out)
        run_id = _orphan(client, experiment, folder_id) if is_old else None
        if run_id is None:
            tags = {"recipe": run.name, "data": str(run.data.resolve()), FOLDER_TAG: folder_id}
            run_id = client.create_run(experiment, run_name=run.out.name, tags=tags).info.run_id
        _describe(client, run_id, run)
        write_json(marker, {"tracking_uri": uri, "run_id": run_id})
    client.update_run(run_id, status="RUNNING")
    return TrackedRun(uri, run_id)


def _known(marker: Path, uri: str) -> str | None:
    """The MLflow run that an earlier session opened and described on this very server."""
    if not marker.is_file():
        return None
    values = json.loads(marker.read_text())
    return values["run_id"] if values["tracking_uri"] == uri else None


def _folder_id(out: Path) -> tuple[str, bool]:
    """A name for the run folder, and whether an earlier session has given it: only then may it have an orphan."""
    path = out / FOLDER_ID
    if path.is_file():
        return path.read_text().strip(), True
    chosen = uuid.uuid4().hex
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(chosen)
    return chosen, False


def _orphan(client: MlflowClient, experiment: str, folder_id: str) -> str | None:
    """The run that a session opened and died before it could write the marker."""
    found = client.search_runs([experiment], f"tags.`{FOLDER_TAG}` = '{folder_id}'", max_results=1)
    return found[0].info.run_id if found else None


def _experiment(client: MlflowClient, name: str, out: Path, uri: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    artifacts = None if uri.startswith("http") else f"file://{out.resolve() / 'artifacts'}"
    if artifacts and uri.startswith("sqlite:///") and os.environ.get("MLFLOW_TRACKING_URI"):
        artifacts = f"file://{Path(uri.removeprefix('sqlite:///')).resolve().parent / 'artifacts'}"
    return client.create_experiment(name, artifact_location=artifacts)


def _describe(client: MlflowClient, run_id: str, run: Run) -> None:
    from mlflow.entities import Param

    from training.planning.plan import plan

    told = client.get_run(run_id).data.params  # of a session that died on the way; MLflow changes none
    wanted = {name: value for name, value in provenance.settings(run.recipe).items() if name not in told}
    params = [Param(name, value) for name, value in wanted.items()]
    for first in range(0, len(params), 100):  # the most that one request may hold
        client.log_batch(run_id, params=params[first : first + 100])
    client.log_dict(run_id, run.to_dict(), "recipe.json")
    client.log_dict(run_id, provenance.environment(), provenance.ENVIRONMENT)
    client.log_text(run_id, plan(run.recipe).text() + "\n", "plan.txt")
    client.log_artifact(run_id, str(run.data / "dataset.json"))


def last_step(client: MlflowClient, run_id: str) -> int:
    """The last step that is on record; 0 where none is."""
    return max((metric.step for metric in client.get_metric_history(run_id, "loss")), default=0)


def log_steps(client: MlflowClient, run_id: str, steps: Iterable[tuple[int, int, Mapping[str, float]]]) -> None:
    """Records (step, milliseconds since 1970, metrics) of several steps at once."""
    from mlflow.entities import Metric

    entries = [
        Metric(name, value, milliseconds, step)
        for step, milliseconds, metrics in steps
        for name, value in metrics.items()
    ]
    for first in range(0, len(entries), 1000):  # the most that one request may hold
        client.log_batch(run_id, metrics=entries[first : first + 1000])


def close(tracked: TrackedRun, status: str) -> None:
    """Marks the run FINISHED, FAILED or KILLED (stopped, to go on later)."""
    tracked.client().set_terminated(tracked.run_id, status=status)


def close_early(tracked: TrackedRun, problem: BaseException) -> None:
    """Marks the run FAILED, or KILLED where it was stopped; a dead server must not hide the problem itself."""
    stopped = isinstance(problem, KeyboardInterrupt) or getattr(problem, "code", "") == "run_stopped"
    from mlflow.exceptions import MlflowException

    try:
        close(tracked, "KILLED" if stopped else "FAILED")
    except (MlflowException, OSError) as unreachable:
        logger.warning("the MLflow run could not be marked as ended: %s", first_line(unreachable))


def first_line(problem: BaseException) -> str:
    """What a log line has room for."""
    return (str(problem).splitlines() or [type(problem).__name__])[0][:200]
