"""How far a run is: a bar where a person watches, a plain line now and then where a log is kept."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipelines.clip import Clip

if TYPE_CHECKING:
    from tqdm import tqdm

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts units of one phase and what became of them; a context manager."""

    def __init__(self, phase: str, total: int, unit: str):
        self.phase, self.total, self.unit = phase, total, unit
        self.done, self.kept, self.refused = 0, 0, 0
        self._began = self._said = time.monotonic()
        self._bar: tqdm | None = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=self.total, desc=self.phase, unit=f" {self.unit}", dynamic_ncols=True)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif exception[0] is None:
            self._say()

    def advance(self, units: int, clips: Sequence[Clip] = ()) -> None:
        """`units` more are done; `clips` is what they became."""
        self.done += units
        self.refused += sum(bool(clip.rejected) for clip in clips)
        self.kept += sum(not clip.rejected for clip in clips)
        if self._bar is not None:
            self._bar.set_postfix(kept=self.kept, refused=self.refused, refresh=False)
            self._bar.update(units)
        elif time.monotonic() - self._said > SECONDS_BETWEEN_LINES:
            self._say()

    def _say(self) -> None:
        self._said = time.monotonic()
        seconds = self._said - self._began
        outcome = f", {self.kept} clips kept, {self.refused} refused" if self.kept + self.refused else ""
        logger.info("%s: %s of %s %s in %.0f s%s", self.phase, self.done, self.total, self.unit, seconds, outcome)
