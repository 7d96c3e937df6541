"""The one that takes jobs from the store to the renderers, and tells the autoscaler how much there is."""

from __future__ import annotations

import asyncio
import itertools
import logging

from ray.serve.handle import DeploymentHandle

from serving.backend import Backend, open_backend
from serving.cluster.autoscaler import POST_S, post
from serving.cluster.seats import SEATS
from serving.config import Service
from serving.jobs.dispatcher import Dispatcher
from serving.jobs.workload import Workload, read_workload
from serving.watching import tracing
from serving.watching.process import begin
from serving.watching.processes import Publisher
from serving.webhooks.deliverer import Deliverer, deliverer_of

logger = logging.getLogger(__name__)


class Dispatch:
    """A Dispatcher in an actor of its own. During a redeploy the next one works before this one has stopped."""

    def __init__(self, service: Service, renderer: DeploymentHandle):
        self._service = service
        # Asking for options starts the router, which is who knows the replicas.
        self._renderer = renderer.options(method_name="render")
        self._dispatcher: Dispatcher | None = None
        self._deliverer: Deliverer | None = None
        self._publisher: Publisher | None = None
        self._work = Workload()
        self._starting = asyncio.get_running_loop().create_task(self._start())
        self._posting: asyncio.Task[None] | None = None

    async def _start(self) -> None:
        async def render(video_id: str, token: int) -> str:
            return await self._renderer.remote(video_id, token)

        backend = await asyncio.to_thread(open_backend, self._service)
        self._publisher = begin(backend, "dispatcher")
        self._deliverer = deliverer_of(backend)
        self._deliverer.start()
        self._dispatcher = Dispatcher(backend, render, capacity=lambda: self._capacity(backend))
        self._dispatcher.start()
        self._posting = asyncio.get_running_loop().create_task(self._post(backend, self._dispatcher.id))

    def _capacity(self, backend: Backend) -> int:
        """Jobs that this dispatcher may have running: every engine's, less those that another one has given out."""
        engines = SEATS.count() if SEATS.known else backend.presence.count()
        return engines - self._work.running_elsewhere

    async def _post(self, backend: Backend, dispatcher_id: str) -> None:
        for number in itertools.count():
            try:
                store = backend.store
                self._work = await asyncio.to_thread(read_workload, store.engine, dispatcher_id, cap=store.cap)
                await asyncio.to_thread(post, self._work, number)
            except Exception:
                # The controller notices the silence, and leaves the engines as they are.
                logger.warning("the work that waits could not be posted", exc_info=True)
                await asyncio.sleep(1.0)
            await asyncio.sleep(POST_S)

    async def drain(self, seconds: float) -> int:
        """Stops taking jobs; returns how many had to go back to the queue after `seconds`."""
        return await self._dispatcher.drain(seconds) if self._dispatcher else 0

    def check_health(self) -> None:
        """Serve replaces a replica that could not start, or whose loop has ended."""
        if self._starting.done():
            self._starting.result()
        if self._dispatcher is not None and not self._dispatcher.is_alive and not self._dispatcher.is_draining:
            raise RuntimeError("the dispatcher has stopped")
        if self._deliverer is not None and not self._deliverer.is_alive:
            raise RuntimeError("webhooks are not delivered any more")

    async def __del__(self):
        if self._posting is not None:
            self._posting.cancel()
        await self.drain(self._service.longest_job_s)
        # The last: jobs that end during the drain have webhooks, too.
        if self._deliverer is not None:
            await asyncio.to_thread(self._deliverer.stop)
        if self._publisher is not None:
            await asyncio.to_thread(self._publisher.stop)
        tracing.flush()
