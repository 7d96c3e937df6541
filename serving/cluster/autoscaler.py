"""Serve's autoscaling on the work that waits: the dispatcher posts it, the controller reads it.

Posted through Ray's own key-value store and not read from the job store: so the controller needs no database driver,
no password, and no patience with a database that is slow.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from serving.cluster.capacity import engines_wanted, from_post, to_post
from serving.config import Scaling, Service
from serving.jobs.workload import Workload

logger = logging.getLogger("ray.serve")

KEY, NAMESPACE = b"dynamictrl-workload", b"dynamictrl"
POST_S = 0.25
"""Seconds between two posts of the dispatcher, and between two looks of the controller."""
SILENT_S = 15.0
"""Seconds without a post after which the last one is no longer believed, and nothing changes."""


def post(work: Workload, number: int) -> None:
    """The dispatcher's word on how much work there is."""
    _internal_kv_put(KEY, to_post(work, number), overwrite=True, namespace=NAMESPACE)


class QueuedWork:
    """The autoscaling policy: one object in Serve's controller, asked at each of its rounds."""

    def __init__(self, **scaling: float):
        self._scaling = Scaling(**scaling)
        self._work: Workload | None = None
        self._number, self._heard, self._looked = -1, 0.0, 0.0
        self._look: asyncio.Task[None] | None = None
        self._said = -1

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        self._start_look()
        least, most = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
        target = context.target_num_replicas
        if self._work is None or time.monotonic() - self._heard > SILENT_S:
            # A dispatcher that is away says nothing about the queue: whatever runs goes on.
            return max(least, target), {}
        wanted = engines_wanted(self._work, target, self._scaling, least, most)
        # Requests that are no jobs, such as the smoke clip of a new model, need an engine too.
        wanted = max(wanted, min(most, 1 if context.total_num_requests > 0 else 0))
        if wanted > target and wanted != self._said:
            logger.info("%d engines wanted, %d there: %s", wanted, target, self._work)
        self._said = wanted
        return wanted, {}

    def _start_look(self) -> None:
        now = time.monotonic()
        if now - self._looked >= POST_S and (self._look is None or self._look.done()):
            self._looked = now
            self._look = asyncio.get_running_loop().create_task(self._read())

    async def _read(self) -> None:
        try:
            text = await asyncio.to_thread(_internal_kv_get, KEY, namespace=NAMESPACE)
        except Exception:
            logger.warning("the work that waits could not be read", exc_info=True)
            return
        if text:
            number, work = from_post(text)
            if number != self._number:
                self._number, self._work, self._heard = number, work, time.monotonic()


def autoscaling(service: Service) -> AutoscalingConfig:
    """Between `min_engines` and `max_engines`: up at once, down when it has been too many for a while."""
    scaling = service.scaling
    return AutoscalingConfig(
        min_replicas=service.min_engines,
        max_replicas=service.max_engines,
        initial_replicas=service.min_engines,
        upscale_delay_s=0.0,
        downscale_delay_s=scaling.shrink_after_s,
        downscale_to_zero_delay_s=scaling.to_zero_after_s,
        policy=AutoscalingPolicy(
            policy_function="serving.cluster.autoscaler:QueuedWork",
            policy_kwargs={
                "clear_within_s": scaling.clear_within_s,
                "shrink_margin": scaling.shrink_margin,
            },
        ),
    )
