"""What happens when an engine does not come up: how long it waits before it tries again, and what it says."""

from __future__ import annotations

from dynamictrl.errors import DynamiCtrlError

FIRST_PAUSE_S = 5.0
LONGEST_PAUSE_S = 300.0


def pause_before(attempt: int) -> float:
    """Seconds before an attempt to load the model: none before the first (0), then twice as long each time."""
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (attempt - 1)) if attempt > 0 else 0.0


def reason(problem: BaseException) -> str:
    """One word or two for `/readyz`, which strangers may read: no path and no message; the log has those."""
    return problem.code if isinstance(problem, DynamiCtrlError) else type(problem).__name__
