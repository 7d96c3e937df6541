"""The run's MLflow run: opened once, found again after a restart, and where the exported model is registered."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dynamictrl.errors import ConfigError
from dynamictrl.shards import write_json
from training.config import Run

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

MARKER = "mlflow.json"


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


def open_run(run: Run) -> TrackedRun:
    """The run's MLflow run: the one that an earlier session opened, or a new one.

    Raises ConfigError where the tracking server does not answer.
    """
    uri = tracking_uri(run.out)
    marker = run.out / MARKER
    if marker.is_file():
        values = json.loads(marker.read_text())
        if values["tracking_uri"] == uri:
            return TrackedRun(uri, values["run_id"])
    from mlflow.exceptions import MlflowException

    client = _client(uri)
    try:
        experiment = _experiment(client, run.recipe.records.experiment, run.out, uri)
        run_id = client.create_run(experiment, run_name=run.out.name, tags={"recipe": run.name}).info.run_id
    except (MlflowException, OSError) as problem:
        raise ConfigError(
            f"the MLflow server {uri} does not answer ({str(problem).splitlines()[0][:200]}); start it, or unset "
            "MLFLOW_TRACKING_URI to record in the run folder",
            code="tracking_unreachable",
        ) from problem
    write_json(marker, {"tracking_uri": uri, "run_id": run_id})
    _describe(client, run_id, run)
    return TrackedRun(uri, run_id)


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

    from training.plan import plan

    recipe = run.recipe
    parts = {"": {"seed": recipe.seed}, **{name: vars(getattr(recipe, name)) for name in ("model", "clips", "workers")}}
    parts["optimization"] = vars(recipe.optimization)
    values = {
        f"{part}.{name}".lstrip("."): str(value) for part, fields in parts.items() for name, value in fields.items()
    }
    client.log_batch(run_id, params=[Param(name, value) for name, value in values.items()])
    client.log_dict(run_id, run.to_dict(), "recipe.json")
    client.log_text(run_id, plan(recipe).text() + "\n", "plan.txt")
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


def register(tracked: TrackedRun, run: Run, model: Path) -> str | None:
    """Registers the exported model, gives it its alias, and returns its version; a rerun finds the same version."""
    name = run.recipe.records.registered_model
    if not name:
        return None
    from mlflow.exceptions import MlflowException

    client = tracked.client()
    try:
        client.create_registered_model(name)
    except MlflowException as problem:
        if problem.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    known = [version for version in client.search_model_versions(f"name='{name}'") if version.run_id == tracked.run_id]
    version = known[0] if known else client.create_model_version(name, _source(client, tracked, model), tracked.run_id)
    if run.recipe.records.alias:
        client.set_registered_model_alias(name, run.recipe.records.alias, version.version)
    return str(version.version)


def _source(client: MlflowClient, tracked: TrackedRun, model: Path) -> str:
    """Where the registry says the model is: the folder itself, or its copy on a server that cannot see the folder."""
    if not tracked.tracking_uri.startswith("http"):
        return str(model.resolve())
    client.log_artifacts(tracked.run_id, str(model), "model")
    return f"{client.get_run(tracked.run_id).info.artifact_uri}/model"


def close(tracked: TrackedRun, status: str) -> None:
    """Marks the run FINISHED, FAILED or RUNNING."""
    client = tracked.client()
    if status == "RUNNING":
        client.update_run(tracked.run_id, status=status)
    else:
        client.set_terminated(tracked.run_id, status=status)
