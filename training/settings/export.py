"""Which checkpoint of a run becomes a model folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from training.settings.fields import not_negative


@dataclass(frozen=True, kw_only=True)
class Export:
    """Which checkpoint of a run becomes a model folder; it is read on the CPU, whoever wrote it."""

    out: Path
    """Model folder to write; it must not exist."""
    step: int = 0
    """Step of the checkpoint; 0 takes the newest."""
    weights: Literal["auto", "ema", "raw"] = "auto"
    """The moving average, or the weights as they are; auto takes the average where one was kept."""

    def __post_init__(self):
        not_negative(self, "step")
