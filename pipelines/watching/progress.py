"""How far a run is, for people: a bar where one watches, a plain line now and then where a log is kept."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipelines.clip import Clip
from pipelines.files.storage import local_size
from pipelines.watching import metrics
from pipelines.watching.metrics import Phase, RunMetrics

if TYPE_CHECKING:
    from tqdm import tqdm

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0
SOURCES = "sources"
"""The phase that reads sources."""
OUTCOMES = ("kept", "rejected", "quarantined")


class Progress:
    """Counts units of one phase and what became of them; a context manager."""

    def __init__(self, phase: str, total: int, unit: str, numbers: RunMetrics | None = None):
        """`numbers` are the run's for machines (`metrics.exported`): the phase is entered there, too."""
        self.phase, self.unit, self.numbers = phase, unit, numbers
        self.state = numbers.begin(phase, total) if numbers else Phase(total)
        self._said = time.monotonic()
        self._bar: tqdm | None = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from tqdm import tqdm

            layout = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
            self._bar = tqdm(total=self.state.total, desc=self.phase, bar_format=layout, dynamic_ncols=True)
        return self

    def __exit__(self, *exception: object) -> None:
        self.state.ended = time.monotonic()
        if self._bar is not None:
            self._bar.set_postfix_str(self._rate(), refresh=False)
            self._bar.close()
        elif exception[0] is None:
            self._say()

    def advance(self, units: int, clips: Sequence[Clip] = ()) -> None:
        """`units` more are done; `clips` is what they became."""
        self.state.done += units
        self.state.rows.update(metrics.outcomes(clips))
        if self.numbers and self.phase == SOURCES:
            places = {clip.source: clip.path or clip.source for clip in clips}
            self.numbers.read += sum(map(local_size, places.values()))
        if self._bar is not None:
            self._bar.set_postfix_str(self._rate(), refresh=False)
            self._bar.update(units)
        elif time.monotonic() - self._said > SECONDS_BETWEEN_LINES:
            self._say()

    def _say(self) -> None:
        self._said = time.monotonic()
        state = self.state
        logger.info("%s: %s of %s %s, %s", self.phase, state.done, state.total, self.unit, self._rate())

    def _rate(self) -> str:
        """`1,234 an hour, 2:03:10 to go, 5 kept, 1 rejected`; the time it took, once it is done."""
        state = self.state
        parts = [f"{state.per_hour:,.0f} an hour"]
        if state.ended or state.done >= state.total:
            parts.append(f"in {clock(state.seconds)}")
        elif state.done:
            parts.append(f"{clock(state.eta)} to go")
        return ", ".join([*parts, *(f"{state.rows[o]:,} {o}" for o in OUTCOMES if state.rows[o])])


def clock(seconds: float) -> str:
    """Hours, minutes and seconds: 2:03:10."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def say_summary(numbers: RunMetrics) -> None:
    """One line per stage: what it saw, what it refused, what it took."""
    for line in numbers.summary():
        logger.info("%s", line)
