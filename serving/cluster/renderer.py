"""One model replica: a Worker behind a Serve request."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from serving.backend import Backend, open_backend
from serving.cluster.starting import pause_before, reason
from serving.config import Service
from serving.jobs.presence import BEAT_S
from serving.results.blobs import new_id
from serving.rollout.registry import uri_of, version_by_alias
from serving.watching import tracing
from serving.watching.process import begin

if TYPE_CHECKING:
    from serving.rendering.worker import Worker

logger = logging.getLogger(__name__)


class Renderer:
    """A Worker in an actor of its own.

    A model that cannot be loaded does not end the actor, which Serve would start again for ever: it says why, waits,
    and tries again. Until it has the model, Serve counts the replica as starting and sends it nothing.
    """

    async def __init__(self, service: Service):
        self._worker: Worker | None = None
        self._starting_id = new_id("starting")
        self._backend = await asyncio.to_thread(open_backend, service)
        self._publisher = begin(self._backend, "worker")
        saying = asyncio.get_running_loop().create_task(self._say_starting())
        try:
            self._worker = await self._load()
        finally:
            saying.cancel()
            await asyncio.to_thread(self._backend.presence.leave, self._starting_id)

    async def _load(self) -> Worker:
        attempt = await asyncio.to_thread(self._backend.presence.crashed_starts)
        if attempt:
            logger.warning("%d engines died while they were loading the model in the last minutes", attempt)
        while True:
            await asyncio.sleep(pause_before(attempt))
            try:
                return await asyncio.to_thread(_worker, self._backend)
            except Exception as problem:
                attempt += 1
                pause = pause_before(attempt)
                logger.exception("the model could not be loaded (attempt %d); again in %.0f s", attempt, pause)
                await asyncio.to_thread(self._backend.presence.starting, self._starting_id, why=reason(problem))

    async def try_out(self, version: str) -> dict[str, Any]:
        """Renders a smoke clip with a version of the followed model; a `rollout.lead.Smoke` as a dict."""
        assert self._worker is not None
        return asdict(await asyncio.to_thread(self._worker.try_out, version))

    async def _say_starting(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self._backend.presence.starting, self._starting_id)
            except Exception:
                logger.warning("no sign of life could be given", exc_info=True)
            await asyncio.sleep(BEAT_S)

    async def render(self, video_id: str, token: int) -> str:
        """Renders one leased job, in a thread: Serve's health checks go on meanwhile."""
        assert self._worker is not None
        return await asyncio.to_thread(self._worker.render, video_id, token)

    def check_health(self) -> None:
        """Serve replaces a replica whose engine has lost a part."""
        if self._worker is not None:
            self._worker.check_health()

    def __del__(self):
        with suppress(AttributeError):  # the job store could not be opened
            self._backend.presence.leave(self._starting_id)
        if self._worker is not None:
            self._worker.leave()
        with suppress(AttributeError):
            self._publisher.stop()
        tracing.flush()


def _worker(backend: Backend) -> Worker:
    # Imported here: the ingress and the dispatcher need no torch.
    from serving.rendering.worker import Worker

    if backend.rollouts is None:
        return Worker(backend)
    state = backend.rollouts.get() or backend.rollouts.begin(version_by_alias(backend.service.model))
    return Worker(replace(backend, service=replace(backend.service, model=uri_of(state.stable))))
