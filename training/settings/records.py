"""What is kept of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from training.settings.fields import free, not_negative, positive

Gate = Literal["", "psnr", "ssim", "mean_absolute_error", "l1_disco"]


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
    gate_metric: Gate = free("psnr")
    """With validation, the alias moves only where this is not worse than the present champion's; empty: always."""
    gate_margin: float = free(0.0)
    """By how much it may be worse."""

    def __post_init__(self):
        positive(self, "log_every")
        not_negative(self, "gate_margin")
