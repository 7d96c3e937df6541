"""Whether a canary has shown enough: pure arithmetic on what became of its jobs and of the others."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from serving.config import Canary

FEW = 5
"""Jobs on each side from which on their speed is compared."""
OUR_FAULTS = ("internal_error", "too_many_attempts", "job_too_long", "model_not_loaded", "engine_lost")
"""Error codes that speak against a model; all others are of the job that was sent."""


class Decision(Enum):
    """What becomes of the candidate."""

    WAIT = "wait"
    PROMOTE = "promote"
    ROLL_BACK = "roll back"


@dataclass(frozen=True)
class Tally:
    """What became of the jobs of one version since the canary began."""

    completed: int = 0
    failed: int = 0
    """For a reason that speaks against the model."""
    slowness: float | None = None
    """Median of seconds rendered over seconds estimated."""

    @property
    def failure_rate(self) -> float:
        return self.failed / max(1, self.failed + self.completed)


def judge(candidate: Tally, stable: Tally, seconds: float, rules: Canary) -> tuple[Decision, str]:
    """The decision, and why, `seconds` after the canary began."""
    worse = candidate.failure_rate > stable.failure_rate + rules.failures_more_at_most
    if candidate.failed >= 2 and worse:
        return Decision.ROLL_BACK, f"{_failures(candidate)}, against {_failures(stable)} before"
    if (
        candidate.slowness is not None
        and stable.slowness is not None
        and min(candidate.completed, stable.completed) >= FEW
        and candidate.slowness > stable.slowness * rules.slower_at_most
    ):
        times = candidate.slowness / stable.slowness
        return Decision.ROLL_BACK, f"it renders {times:.2f} times as long (limit {rules.slower_at_most:g})"
    if candidate.completed >= rules.jobs:
        return Decision.PROMOTE, f"{candidate.completed} jobs rendered, {_failures(candidate)}"
    if seconds < rules.seconds:
        return Decision.WAIT, ""
    if candidate.failed and worse:
        return Decision.ROLL_BACK, f"{_failures(candidate)}, against {_failures(stable)} before"
    return Decision.PROMOTE, f"{seconds:.0f} s passed; {candidate.completed} jobs rendered, {_failures(candidate)}"


def _failures(tally: Tally) -> str:
    return f"{tally.failed} of {tally.failed + tally.completed} failed"
