"""What is kept of a run."""

from __future__ import annotations

from dataclasses import dataclass

from training.settings.fields import free, positive


@dataclass(frozen=True, kw_only=True)
class Records:
    """What is kept of the run."""

    log_every: int = free(10)
    """Steps between log lines; every step's metrics are recorded all the same."""
    experiment: str = free("dynamictrl")
    """MLflow experiment; empty records nothing (steps are in RUN/metrics.jsonl all the same)."""
    registered_model: str = free("dynamictrl")
    """Name under which the exported model is registered in MLflow; empty registers nothing."""
    alias: str = free("champion")
    """Alias the new version gets; serving follows `champion`."""

    def __post_init__(self):
        positive(self, "log_every")
