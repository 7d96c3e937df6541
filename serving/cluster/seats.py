"""Which engines can take a job at once, as Serve's router in this process sees them.

A draining or dead replica leaves the router's list at once, long before its last sign of life is old: so capacity
follows the replicas, and a job is leased only when an engine is free for it.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterable


class Seats:
    """The engines that may be sent jobs, and those that this process's jobs sit on."""

    def __init__(self):
        self._lock = threading.Lock()  # the router lives on another thread's loop
        self._open: frozenset[Hashable] = frozenset()
        self._taken: dict[str, Hashable] = {}
        self.known = False
        """Whether a router has spoken at all."""

    def opened(self, engines: Iterable[Hashable]) -> None:
        """The router's list has changed."""
        with self._lock:
            self._open, self.known = frozenset(engines), True

    def closed(self, engine: Hashable) -> None:
        with self._lock:
            self._open = self._open - {engine}

    def taken(self, request: str, engine: Hashable) -> None:
        with self._lock:
            self._taken[request] = engine

    def freed(self, request: str) -> None:
        with self._lock:
            self._taken.pop(request, None)

    def count(self) -> int:
        """Jobs that can run at once: one on each open engine, and those that closed ones are finishing."""
        with self._lock:
            return len(self._open) + sum(engine not in self._open for engine in self._taken.values())


SEATS = Seats()
"""Of the renderers, in the dispatcher's process."""
