"""Word that this machine will be taken away: SIGTERM, or what a launcher knows of its cluster."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)

IsLeaving = Callable[[], bool]


class Notice:
    """Listens for SIGTERM, where the process lets it; the second one ends the process as it always did."""

    def __init__(self, *, on_signal: bool, is_leaving: IsLeaving | None = None):
        """`is_leaving` is a launcher's own knowledge, asked for once a step: it must answer at once."""
        self._given, self._is_leaving = False, is_leaving
        self._before: Any = None
        # Only the main thread may listen. Ray trains in another one, and has its own way of telling.
        self._listens = on_signal and threading.current_thread() is threading.main_thread()
        if self._listens:
            self._before = signal.signal(signal.SIGTERM, self._take)

    @property
    def given(self) -> bool:
        """Whether this worker should leave."""
        return self._given or (self._is_leaving is not None and self._is_leaving())

    def give(self) -> None:
        """Asks to leave at the end of this step."""
        self._given = True

    def close(self) -> None:
        """Listens no more."""
        if self._listens and signal.getsignal(signal.SIGTERM) == self._take:
            signal.signal(signal.SIGTERM, self._before)
        self._listens = False

    def _take(self, number: int, frame: object) -> None:
        self.give()
        signal.signal(signal.SIGTERM, self._before)
        logger.warning("SIGTERM: a checkpoint is made when this step is done; a second one ends the process at once")
