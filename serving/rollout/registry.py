"""What MLflow's registry says: which version an alias names."""

from __future__ import annotations

import os
import re

from dynamictrl.errors import CheckpointError

_ALIAS = re.compile(r"models:/(?P<name>[^/@]+)@(?P<alias>[^/@]+)")


def followed_name(model: str, *, follow: bool = True) -> str | None:
    """The registered model whose alias a service follows; None where it serves one thing for good."""
    match = _ALIAS.fullmatch(model)
    return match["name"] if match and follow else None


def uri_of(version: str) -> str:
    """`dynamictrl/3` as `locate` takes it."""
    return f"models:/{version}"


def version_by_alias(model: str) -> str:
    """`NAME/VERSION` that the alias of `models:/NAME@ALIAS` names now; CheckpointError where it names none."""
    match = _ALIAS.fullmatch(model)
    assert match is not None, model
    tracking = os.environ.get("MLFLOW_TRACKING_URI")
    if not tracking:
        raise CheckpointError(
            f"{model!r} is an alias in MLflow's registry and MLFLOW_TRACKING_URI is not set",
            code="no_tracking_uri",
            param="model",
        )
    # Imported late: it takes seconds, and only who follows an alias needs it.
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        client = mlflow.MlflowClient(tracking, registry_uri=tracking)
        version = client.get_model_version_by_alias(match["name"], match["alias"]).version
    except (MlflowException, OSError) as problem:
        raise CheckpointError(
            f"{model!r} could not be looked up ({problem})", code="model_not_registered", param="model"
        ) from problem
    return f"{match['name']}/{version}"
