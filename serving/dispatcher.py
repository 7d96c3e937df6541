"""From the queue to the workers: leases a job only when a worker has room, and keeps its lease alive meanwhile."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from serving.backend import Backend
from serving.blobs import new_id
from serving.store import Lease

logger = logging.getLogger(__name__)

IDLE_S = 0.1
"""Seconds between two looks at an empty queue: at most this is added to a job's start."""
HOUSEKEEPING_S = 60.0
"""Seconds between two rounds of removing expired clips and leftovers."""

Render = Callable[[str, int], Awaitable[str]]
"""Renders a leased job, given its id and token, on whichever worker is free; raises where that worker died."""


class Dispatcher:
    """Runs as many jobs at once as there are workers. Several dispatchers may share one store."""

    def __init__(self, backend: Backend, render: Render):
        self.backend = backend
        self.id = new_id("dispatcher")
        self._render = render
        self._running: dict[asyncio.Task[None], Lease] = {}
        self._draining = asyncio.Event()
        self._main: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to serve the queue; needs a running event loop."""
        self._main = asyncio.get_running_loop().create_task(self._serve(), name="dispatch")

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
        _, left = await asyncio.wait(self._running, timeout=seconds) if self._running else ((), set())
        for task in left:
            lease = self._running[task]
            task.cancel()
            await asyncio.to_thread(self.backend.store.release, lease.video.id, lease.token, refund=True)
        return len(left)

    async def _serve(self) -> None:
        next_housekeeping = 0.0
        while not self._draining.is_set():
            try:
                if time.monotonic() >= next_housekeeping:
                    next_housekeeping = time.monotonic() + HOUSEKEEPING_S
                    await asyncio.to_thread(self.housekeep)
                leased = await self._lease_one()
            except Exception:
                # A database that is away for a while must not end the dispatcher.
                logger.exception("the job store could not be asked; trying again")
                leased = False
                await asyncio.sleep(1.0)
            if not leased:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._draining.wait(), IDLE_S)

    async def _lease_one(self) -> bool:
        service = self.backend.service
        # A job is in progress once a worker has it: while none is warm, it waits in the queue and says so.
        warm = await asyncio.to_thread(self.backend.presence.count)
        if len(self._running) >= min(service.engines, warm):
            return False
        lease = await asyncio.to_thread(self.backend.store.lease, self.id, service.lease_s, service.max_attempts)
        if lease is None:
            return False
        task = asyncio.get_running_loop().create_task(self._work(lease), name=lease.video.id)
        self._running[task] = lease
        task.add_done_callback(lambda done: self._running.pop(done, None))
        return True

    async def _work(self, lease: Lease) -> None:
        heartbeat = asyncio.get_running_loop().create_task(self._keep(lease))
        video, store = lease.video, self.backend.store
        try:
            outcome = await self._render(video.id, lease.token)
            logger.info("job %s attempt %d: %s", video.id, video.attempts, outcome)
        except Exception as problem:
            logger.warning("the worker of job %s was lost (%s)", video.id, problem)
            await asyncio.to_thread(self._give_back, lease)
        finally:
            heartbeat.cancel()
        if await asyncio.to_thread(store.get, video.id) is None:
            await asyncio.to_thread(self.backend.blobs.drop_video, video.id)

    def _give_back(self, lease: Lease) -> None:
        store, limit = self.backend.store, self.backend.service.max_attempts
        if lease.video.attempts < limit:
            store.release(lease.video.id, lease.token, refund=False)
            return
        store.fail(
            lease.video.id, lease.token, code="too_many_attempts",
            message=f"{limit} workers were lost while rendering this job; it will not be tried again"
        )  # fmt: skip

    async def _keep(self, lease: Lease) -> None:
        service = self.backend.service
        while True:
            await asyncio.sleep(service.lease_s / 4)
            try:
                await asyncio.to_thread(self.backend.store.renew, lease.video.id, lease.token, service.lease_s)
            except Exception:
                logger.warning("the lease of job %s could not be renewed", lease.video.id, exc_info=True)

    def housekeep(self) -> None:
        """Removes the bytes of expired clips, and what crashes have left."""
        store, blobs = self.backend.store, self.backend.blobs
        for video_id in store.expired():
            blobs.drop_video(video_id)
            store.expire(video_id)
        blobs.sweep(store.ids())
