"""Ends a worker that stands still, so that its launcher starts it again: nothing hangs a run for ever.

A worker that waits for a lost one in a collective is ended by torch's own timeout where that works; this is for the
rest (one worker alone, a kernel that never ends, a disk that does not answer).
"""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
import time
from pathlib import Path

logger = logging.getLogger(__name__)

STALLED = 70
"""Exit status of a worker that was ended for standing still."""
START_FACTOR = 4.0
"""Loading, encoding and compiling take longer than any step."""
SLACK = 1.25
"""Torch's timeout, whose message names the collective, comes first."""


class Vigil:
    """Watches one worker from a thread of its own, from `start` to `stop`; `beat` says that steps go on."""

    def __init__(self, seconds: float, stacks: Path):
        """`stacks` is the file that tells where every thread stood."""
        self._seconds, self._stacks = seconds * SLACK, stacks
        self._last, self._allowed = time.monotonic(), self._seconds * START_FACTOR
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="vigil", daemon=True)

    def start(self) -> Vigil:
        """Begins to watch."""
        self._last = time.monotonic()
        self._thread.start()
        return self

    def beat(self) -> None:
        """A step is done."""
        self._last, self._allowed = time.monotonic(), self._seconds

    def stop(self) -> None:
        """The worker's work is over."""
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(min(5.0, self._seconds / 4)):
            silent = time.monotonic() - self._last
            if silent > self._allowed:
                self._end(silent)

    def _end(self, silent: float) -> None:
        try:
            self._stacks.parent.mkdir(parents=True, exist_ok=True)
            with self._stacks.open("a") as stream:
                stream.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} no step for {silent:.0f} s\n")
                stream.flush()
                faulthandler.dump_traceback(stream, all_threads=True)
            logger.error("no step for %.0f s: this worker is ended; where it stood is in %s", silent, self._stacks)
        finally:
            os._exit(STALLED)  # a thread in a collective or a disk that hangs answers to nothing gentler
