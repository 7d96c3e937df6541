"""The one that follows the registry's alias, where a service's model is one."""

from __future__ import annotations

import asyncio
import logging

from ray.serve.handle import DeploymentHandle

from serving.backend import open_backend
from serving.config import Service
from serving.rollout.lead import Lead, Smoke
from serving.rollout.registry import version_by_alias
from serving.watching.process import name_it

logger = logging.getLogger(__name__)


class RolloutLead:
    """A Lead in an actor of its own: MLflow's client is heavy, and the dispatcher has other things to do."""

    def __init__(self, service: Service, renderer: DeploymentHandle):
        name_it(service, "rollout")
        self._service = service
        self._renderer = renderer.options(method_name="try_out")
        self._ticking = asyncio.get_running_loop().create_task(self._tick())

    async def _tick(self) -> None:
        lead: Lead | None = None
        while True:
            try:
                lead = lead or await asyncio.to_thread(self._lead)
                await lead.tick()
            except Exception:
                logger.exception("the rollout could not be led; trying again")
            await asyncio.sleep(self._service.canary.poll_s)

    def _lead(self) -> Lead:
        rollouts = open_backend(self._service).rollouts
        assert rollouts is not None
        return Lead(rollouts, self._service.canary, lambda: version_by_alias(self._service.model), self._try_out)

    async def _try_out(self, version: str) -> Smoke:
        return Smoke(**await self._renderer.remote(version))

    def __del__(self):
        self._ticking.cancel()
