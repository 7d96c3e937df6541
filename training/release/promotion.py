"""Which registered version gets the alias that serving follows: not one that validation found worse than the champion.

Without validation, or with an empty `gate_metric`, every new version gets it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from training.config import Run
from training.validating.validation_results import HIGHER_IS_BETTER, Result, result_at

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

IDENTITY = "validation/identity"
GATE = "gate"


def settle(client: MlflowClient, run: Run, version: str, uri: str) -> bool:
    """Describes a version by tags and gives it the recipe's alias where it may have it; returns whether it has."""
    records, result = run.recipe.records, result_at(run.out, run.recipe.optimization.steps)
    name, alias = records.registered_model, records.alias
    reason = _objection(client, run, version, result) if alias else ""
    told = _description(run, result) | ({GATE: f"refused: {reason}" if reason else "passed"} if alias else {})
    for key, value in told.items():
        client.set_model_version_tag(name, version, key, value)
    if reason:
        logger.warning(
            "version %s of %s is registered without the alias %s: %s. To give it all the same: python -c \"from mlflow "
            "import MlflowClient; MlflowClient('%s').set_registered_model_alias('%s', '%s', '%s')\"",
            version, name, alias, reason, uri, name, alias, version,
        )  # fmt: skip
    elif alias:
        client.set_registered_model_alias(name, alias, version)
        logger.info("version %s of %s has the alias %s", version, name, alias)
    return bool(alias) and not reason


def _description(run: Run, result: Result | None) -> dict[str, str]:
    optimization = run.recipe.optimization
    told = {
        "recipe": run.name,
        "base": run.recipe.model.base,
        "steps": str(optimization.steps),
        "data": run.data.name,
        "weights": "ema" if optimization.ema_decay else "raw",
    }
    if result is None:
        return told
    return told | {name: f"{value:.6g}" for name, value in result.metrics().items()} | {IDENTITY: result.identity}


def _objection(client: MlflowClient, run: Run, version: str, result: Result | None) -> str:
    """Why a version may not have the alias; empty where it may."""
    records = run.recipe.records
    if not records.gate_metric or not run.recipe.validation.validate_every:
        return ""
    champion = _champion(client, records.registered_model, records.alias)
    if champion is None or champion[0] == version:
        return ""
    if result is None:
        return "its final validation is missing"
    return compare(result, champion[0], champion[1], records.gate_metric, records.gate_margin)


def compare(result: Result, champion: str, tags: Mapping[str, str], metric: str, margin: float) -> str:
    """Why a result does not reach the champion's, whose version tags are given; empty where it does."""
    known = tags.get(f"validation/{metric}")
    if known is None:
        return f"the champion, version {champion}, has no {metric} to compare with"
    if tags.get(IDENTITY) != result.identity:
        return f"the champion, version {champion}, was validated on other clips or in another way"
    mine, theirs = result.values[metric], float(known)
    worse_by = theirs - mine if HIGHER_IS_BETTER[metric] else mine - theirs
    if worse_by <= margin:
        return ""
    return f"its {metric} {mine:.4g} is worse than the {theirs:.4g} of version {champion} by more than {margin:g}"


def _champion(client: MlflowClient, name: str, alias: str) -> tuple[str, Mapping[str, str]] | None:
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_model_version_by_alias(name, alias)
    except MlflowException as problem:
        if problem.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    return str(found.version), dict(found.tags)
