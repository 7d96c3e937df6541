"""What a job's `quality` means: the shortcuts that each tier takes. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dynamictrl.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Tier:
    """One way to trade closeness for time; the exact one takes no shortcut."""

    float8: bool = False
    """The blocks' linear layers multiply in 8 bits, where the GPU has such units; elsewhere they stay as they are."""
    step_cache: float = 0.0
    """Steps whose first block changes by less than this share take the other blocks' last result; 0 computes all."""
    steps_in_a_row: int = 1
    """How many steps one after another may do so."""


TIERS: dict[str, Tier] = {
    "exact": Tier(),
    "balanced": Tier(float8=True, step_cache=0.2),
    "fast": Tier(float8=True, step_cache=0.3, steps_in_a_row=2),
}
"""By the names of `serving.jobs.job.QUALITIES`. `tests/benchmarks/serving_quality.py` is the gate for a change."""


def tier(quality: str) -> Tier:
    """The tier of a job's quality; InputError for a name that is none."""
    if quality not in TIERS:
        raise InputError(
            f"quality {quality!r} is not offered; there is {', '.join(TIERS)}", code="quality", param="quality"
        )
    return TIERS[quality]


def said(of: Tier) -> dict[str, Any]:
    """A tier as a clip's manifest has it."""
    return asdict(of)
