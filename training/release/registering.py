"""The end of a run's record: what is missing is recorded, the model registered, and the alias moved if it may."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dynamictrl.errors import DynamiCtrlError
from training.callbacks.metrics_file import read_lines
from training.config import Run
from training.release import promotion, provenance, tracking
from training.validating import validation_results

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 180.0
PAUSE_SECONDS = 5.0
PASSING = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "DEADLINE_EXCEEDED")


def finish(tracked: tracking.TrackedRun, run: Run, model: Path) -> str | None:
    """Brings the record of a finished run to its end and returns the registered version, if there is one.

    What a dead server kept from being recorded is recorded now. While the server does not answer it is tried again
    for PATIENCE_SECONDS; then DynamiCtrlError (code run_failed) says that the model is whole all the same.
    """

    def end() -> str | None:
        _record_the_rest(tracked, run)
        validation_results.record(tracked, run.out)
        version = register(tracked, run, model)
        tracking.close(tracked, "FINISHED")
        return version

    return _tried_again(end, f"the model {model} is complete and not registered")


def _tried_again(action: Callable[[], str | None], loss: str) -> str | None:
    from mlflow.exceptions import MlflowException

    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return action()
        except (MlflowException, OSError) as problem:
            passing = not isinstance(problem, MlflowException) or problem.error_code in PASSING
            if not passing or time.monotonic() + PAUSE_SECONDS > deadline:
                raise DynamiCtrlError(
                    f"{loss}: the MLflow server answers {tracking.first_line(problem)!r}; the same command registers "
                    "it once the server is back, without training again",
                    code="run_failed",
                ) from problem
            logger.warning("the MLflow server does not answer, trying again: %s", tracking.first_line(problem))
            time.sleep(PAUSE_SECONDS)


def _record_the_rest(tracked: tracking.TrackedRun, run: Run) -> None:
    """The steps and the workers' environment that are in the run folder and not on record yet."""
    client = tracked.client()
    lines = read_lines(run.out / "metrics.jsonl")
    if lines:
        recorded = tracking.last_step(client, tracked.run_id)
        rest = [line for line in lines if line["step"] > recorded]
        tracking.log_steps(
            client,
            tracked.run_id,
            (
                (
                    int(line["step"]),
                    int(line["time"] * 1000),
                    {name: value for name, value in line.items() if name not in ("step", "time")},
                )
                for line in rest
            ),
        )
    for name in (provenance.ENVIRONMENT, "summary.html"):
        if (run.out / name).is_file():
            client.log_artifact(tracked.run_id, str(run.out / name))


def register(tracked: tracking.TrackedRun, run: Run, model: Path) -> str | None:
    """Registers the exported model and returns its version, which gets its alias where `promotion` has no objection.

    A rerun finds the same version; a run that was made longer gets another.
    """
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
    mine = [version for version in client.search_model_versions(f"name='{name}'") if version.run_id == tracked.run_id]
    steps = str(run.recipe.optimization.steps)
    # A run that was made longer has another model than the version of its first end; one without tags is of a session
    # that died before it could describe it.
    known = [version for version in mine if version.tags.get("steps", steps) == steps]
    if known:
        version = known[0]
    else:
        folder = f"model-{steps}" if mine else "model"
        version = client.create_model_version(name, _source(client, tracked, model, folder), tracked.run_id)
    promotion.settle(client, run, str(version.version), tracked.tracking_uri)
    return str(version.version)


def _source(client: MlflowClient, tracked: tracking.TrackedRun, model: Path, folder: str) -> str:
    """Where the registry says the model is: the folder itself, or its copy on a server that cannot see the folder."""
    if not tracked.tracking_uri.startswith("http"):
        return str(model.resolve())
    client.log_artifacts(tracked.run_id, str(model), folder)
    return f"{client.get_run(tracked.run_id).info.artifact_uri}/{folder}"
