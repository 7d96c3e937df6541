"""The queue as one sees it from a place in it: how many jobs come first, and how long they will take.

A snapshot of what waits and what runs, read at most twice a second in each process, however many clients ask.
"""

from __future__ import annotations

import bisect
import heapq
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy import Engine, func, select

from serving.jobs.database import videos, workers
from serving.jobs.estimates import remaining
from serving.jobs.job import Status
from serving.jobs.presence import WARM, is_recent

FRESH_S = 0.5
"""Seconds for which a snapshot is good enough."""
SIMULATED = 256
"""Jobs before one's own that are played through one by one; of more the mean is as good."""


@dataclass
class _Waiting:
    """One tenant's queued jobs in their order."""

    order: list[tuple[float, int]] = field(default_factory=list)
    """Rank and place of each."""
    seconds: list[float | None] = field(default_factory=list)
    running: int = 0


@dataclass(frozen=True)
class Outlook:
    """What a queued job can expect."""

    position: int
    """1 is next."""
    wait_s: float | None
    """Seconds until a worker takes it; None where no worker is warm or nothing is known of the jobs before it."""


class QueueView:
    """Answers for every queued job from one snapshot. Threads may share it."""

    def __init__(self, engine: Engine, *, fresh_s: float = FRESH_S, clock: Callable[[], float] = time.time):
        self.engine = engine
        self._clock = clock
        self._fresh_s = fresh_s
        self._lock = threading.Lock()
        self._read_at = float("-inf")
        self._tenants: dict[str, _Waiting] = {}
        self._running: list[float | None] = []
        self._warm = 0

    def outlook(self, tenant: str, rank: float, place: int) -> Outlook:
        """Where a queued job of a tenant stands."""
        with self._lock:
            if time.monotonic() - self._read_at >= self._fresh_s:
                self._read()
            return self._outlook(tenant, (rank, place))

    def _outlook(self, tenant: str, where: tuple[float, int]) -> Outlook:
        mine = self._tenants.get(tenant, _Waiting())
        before = bisect.bisect_left(mine.order, where)
        counts = {tenant: before}
        for name, other in self._tenants.items():
            if name != tenant:
                # Tenants take turns, the one with fewer running jobs first: by this job's turn each of the others has
                # had as many turns as this tenant will have had, running jobs included.
                turns = before + mine.running - other.running + (1 if name < tenant else 0)
                counts[name] = max(0, min(len(other.order), turns))
        ahead = [value for name, count in counts.items() for value in self._waiting_seconds(name, count)]
        return Outlook(1 + sum(counts.values()), self._wait(ahead))

    def _waiting_seconds(self, tenant: str, count: int) -> list[float | None]:
        return self._tenants[tenant].seconds[:count] if count else []

    def _wait(self, ahead: list[float | None]) -> float | None:
        known = [value for value in ahead if value is not None]
        if not self._warm or None in self._running or (ahead and not known):
            return None
        # A job of a shape that nobody has timed counts as the mean of the others.
        mean = sum(known) / len(known) if known else 0.0
        left = sorted(value for value in self._running if value is not None)
        engines = [0.0] * max(0, self._warm - len(left)) + left[-self._warm :]
        if len(ahead) > SIMULATED:
            return (sum(engines) + mean * len(ahead)) / len(engines)
        heapq.heapify(engines)
        for value in ahead:
            heapq.heapreplace(engines, engines[0] + (mean if value is None else value))
        return engines[0]

    def _read(self) -> None:
        now = self._clock()
        waiting = (
            select(videos.c.tenant, videos.c.rank, videos.c.place, videos.c.gpu_seconds_estimate)
            .where(videos.c.status == Status.QUEUED)
            .order_by(videos.c.tenant, videos.c.rank, videos.c.place)
        )
        running = select(
            videos.c.tenant, videos.c.gpu_seconds_estimate, videos.c.started_at, videos.c.progress
        ).where(videos.c.status == Status.IN_PROGRESS)  # fmt: skip
        warm = select(func.count()).select_from(workers).where(is_recent(WARM, now))
        tenants: dict[str, _Waiting] = {}
        with self.engine.connect() as connection:
            for tenant, rank, place, seconds in connection.execute(waiting):
                one = tenants.setdefault(tenant, _Waiting())
                one.order.append((rank, place))
                one.seconds.append(seconds)
            left: list[float | None] = []
            for tenant, seconds, started_at, progress in connection.execute(running):
                tenants.setdefault(tenant, _Waiting()).running += 1
                left.append(remaining(seconds, now - (started_at or now), progress))
            self._warm = connection.execute(warm).scalar_one()
        self._tenants, self._running, self._read_at = tenants, left, time.monotonic()
