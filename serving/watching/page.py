"""The page of GET /metrics: what the store says, what every process has counted."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from sqlalchemy.exc import SQLAlchemyError

from serving.backend import Backend
from serving.watching import from_store
from serving.watching.metrics import PREFIX, PROCESS
from serving.watching.processes import Publisher, dump, merge, published

logger = logging.getLogger(__name__)

CONTENT_TYPE = CONTENT_TYPE_LATEST


class _Page:
    """A collector for one page."""

    def __init__(self, backend: Backend, publisher: Publisher):
        self._backend, self._publisher = backend, publisher

    def collect(self) -> Iterator[Metric]:
        own = (self._publisher.process, dump(PROCESS))
        up, roles, others = 1, Counter([self._publisher.role]), []
        try:
            now = self._backend.store.clock()
            rows = published(self._backend.store.engine, now, but=self._publisher.process)
            from_the_store: Iterable[Metric] = list(from_store.families(self._backend))
            roles.update(role for _, role, _ in rows)
            others = [(process, text) for process, _, text in rows]
        except SQLAlchemyError:
            # What this process knows is worth more than an error page, now above all.
            logger.warning("the job store cannot be asked for its numbers", exc_info=True)
            from_the_store, up = [], 0
        yield GaugeMetricFamily(PREFIX + "store_up", "1 where the job store answers.", value=up)
        processes = GaugeMetricFamily(PREFIX + "processes", "Processes that published lately.", labels=("role",))
        for role, count in sorted(roles.items()):
            processes.add_metric([role], count)
        yield processes
        yield from from_the_store
        yield from merge([own, *others])


def render(backend: Backend, publisher: Publisher) -> bytes:
    """Prometheus text."""
    registry = CollectorRegistry()
    registry.register(_Page(backend, publisher))
    return generate_latest(registry)
