"""From the queue to the workers: leases a job only when a worker has room, and keeps its lease alive meanwhile."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from sqlalchemy.exc import SQLAlchemyError

from dynamictrl.errors import StoreError
from serving.backend import Backend
from serving.jobs.leasing import LATE_S, Lease, too_many_attempts
from serving.jobs.patience import AWAY, is_away
from serving.results.blobs import new_id
from serving.watching import attempts

logger = logging.getLogger(__name__)

IDLE_S = 0.1
"""Seconds between two looks at an empty queue: at most this is added to a job's start."""
AWAY_S = 0.5
"""Seconds between two tries to reach a store that is away."""
SWEEP_S = 0.5
"""Seconds between two looks for jobs that are past a deadline, or whose owner has fallen silent."""
ESTIMATE_S = 5.0
"""Seconds between two looks for waiting jobs whose cost has become known."""
HOUSEKEEPING_S = 60.0
"""Seconds between two rounds of removing expired clips and leftovers."""

Render = Callable[[str, int], Awaitable[str]]
"""Renders a leased job, given its id and token, on whichever worker is free; raises where that worker died."""


class Dispatcher:
    """Runs as many jobs at once as there are workers. Several dispatchers may share one store."""

    def __init__(self, backend: Backend, render: Render, capacity: Callable[[], int] | None = None):
        """`capacity` says how many jobs may run here at once; without it, one for each worker that is warm."""
        self.backend = backend
        self._capacity = capacity or backend.presence.count
        self.id = new_id("dispatcher")
        self._render = render
        self._running: dict[asyncio.Task[None], Lease] = {}
        self._draining = asyncio.Event()
        self._main: asyncio.Task[None] | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._next_sweep = 0.0

    def start(self) -> None:
        """Begins to serve the queue; needs a running event loop."""
        loop = asyncio.get_running_loop()
        self._main = loop.create_task(self._serve(), name="dispatch")
        self._keeping = loop.create_task(self._housekeep(), name="housekeeping")

    @property
    def is_alive(self) -> bool:
        return self._main is not None and not self._main.done()

    @property
    def is_draining(self) -> bool:
        return self._draining.is_set()

    async def drain(self, seconds: float) -> int:
        """Takes no more jobs, waits for the running ones, and gives back to the queue what is not done in time.

        Returns how many were given back.
        """
        self._draining.set()
        if self._main is not None:
            await self._main
        if self._keeping is not None:
            self._keeping.cancel()
        _, left = await asyncio.wait(self._running, timeout=seconds) if self._running else ((), set())
        for task in left:
            lease = self._running[task]
            task.cancel()
            await asyncio.to_thread(self.backend.store.release, lease.video.id, lease.token, refund=True)
        return len(left)

    async def _serve(self) -> None:
        while not self._draining.is_set():
            try:
                await self._sweep()
                leased = await self._lease_one()
            except Exception as problem:
                # A database that is away for a while must not end the dispatcher.
                logger.warning("the job store could not be asked; trying again", exc_info=not is_away(problem))
                leased = False
                await self._wait_for_the_store()
            if not leased:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._draining.wait(), IDLE_S)

    async def _sweep(self) -> None:
        if time.monotonic() >= self._next_sweep:
            self._next_sweep = time.monotonic() + SWEEP_S
            await asyncio.to_thread(self.backend.store.sweep, self.backend.service.max_attempts)

    async def _wait_for_the_store(self) -> None:
        """While it was away no heartbeat was heard: every living owner gets the time for one before a lease counts."""
        await asyncio.sleep(AWAY_S)
        self._next_sweep = time.monotonic() + self.backend.service.lease_s
        for lease in list(self._running.values()):
            with suppress(SQLAlchemyError):  # still away: each job's own heartbeat goes on trying
                await asyncio.to_thread(self._renew, lease)

    async def _lease_one(self) -> bool:
        service, store = self.backend.service, self.backend.store
        # A job is in progress once a worker has it: while none is warm, it waits in the queue and says so.
        if len(self._running) >= await asyncio.to_thread(self._capacity):
            return False
        lease = await asyncio.to_thread(store.lease, self.id, service.lease_s, service.max_attempts, sweep=False)
        if lease is None:
            return False
        attempts.leased(lease.video)
        task = asyncio.get_running_loop().create_task(self._work(lease), name=lease.video.id)
        self._running[task] = lease
        task.add_done_callback(lambda done: self._running.pop(done, None))
        return True

    async def _work(self, lease: Lease) -> None:
        heartbeat = asyncio.get_running_loop().create_task(self._keep(lease))
        video, store = lease.video, self.backend.store
        try:
            with attempts.dispatched(video) as span:
                try:
                    outcome = await self._render(video.id, lease.token)
                    logger.info("job %s attempt %d: %s", video.id, video.attempts, outcome)
                except Exception as problem:
                    outcome = "put off" if is_away(problem) else "worker lost"
                    logger.warning("job %s came back from its worker (%s: %s)", video.id, outcome, problem)
                    await asyncio.to_thread(self._give_back, lease, no_fault=is_away(problem))
                attempts.ended(outcome, span)
        finally:
            heartbeat.cancel()
        # Where the store or the storage is away, the sweep finds the bytes of a deleted job later.
        with suppress(StoreError, *AWAY):
            if await asyncio.to_thread(store.get, video.id) is None:
                await asyncio.to_thread(self.backend.blobs.drop_video, video.id)

    def _give_back(self, lease: Lease, *, no_fault: bool) -> None:
        store, limit = self.backend.store, self.backend.service.max_attempts
        if no_fault or lease.video.attempts < limit:
            store.release(lease.video.id, lease.token, refund=no_fault)
            return
        why = too_many_attempts(limit)
        store.fail(lease.video.id, lease.token, code=why["error_code"], message=why["error_message"])

    async def _keep(self, lease: Lease) -> None:
        while True:
            await asyncio.sleep(self.backend.service.lease_s / 4)
            try:
                await asyncio.to_thread(self._renew, lease)
            except Exception as problem:
                away = is_away(problem)
                logger.warning("the lease of job %s could not be renewed", lease.video.id, exc_info=not away)

    def _renew(self, lease: Lease) -> bool:
        service = self.backend.service
        longest_s = service.longest_job_s + LATE_S
        return self.backend.store.renew(lease.video.id, lease.token, service.lease_s, longest_s=longest_s)

    async def _housekeep(self) -> None:
        next_round = 0.0
        while True:
            try:
                await asyncio.to_thread(self.backend.store.fill_estimates)
                if time.monotonic() >= next_round:
                    await asyncio.to_thread(self.housekeep)
                    next_round = time.monotonic() + HOUSEKEEPING_S
            except Exception as problem:
                logger.warning("housekeeping waits for better times", exc_info=not is_away(problem))
            await asyncio.sleep(ESTIMATE_S)

    def housekeep(self) -> None:
        """Removes what is past its time, the bytes of expired clips first, and what crashes have left."""
        store, blobs, service = self.backend.store, self.backend.blobs, self.backend.service
        for video_id in store.expired():
            blobs.drop_video(video_id)
            store.expire(video_id)
        for video_id in store.outlived(service.records_kept_s):
            blobs.drop_video(video_id)
            store.delete(video_id)
        store.forget_events(service.events_kept_s)
        blobs.sweep(store.ids(), self.backend.uploads.ids())
