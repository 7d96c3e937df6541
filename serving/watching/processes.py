"""What each process has counted, published to the store, so that /metrics of one replica can show it for all.

A load balancer sends each scrape to any replica, and the dispatcher and the workers have no port of their own. So each
process writes its numbers into its row every few seconds, and a scrape reads all rows that are fresh.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from sqlalchemy import Column, Engine, Float, String, Table, Text, delete, insert, select, update

from serving.jobs.database import METADATA
from serving.watching.metrics import PROCESS

logger = logging.getLogger(__name__)

PUBLISH_S = 5.0
"""Seconds between two writes of a process."""
SHOWN_S = 30.0
"""Seconds after which a silent process's numbers are shown no more."""

process_metrics = Table(
    "process_metrics",
    METADATA,
    Column("process", String(64), primary_key=True),
    Column("role", String(32), nullable=False),
    Column("families", Text, nullable=False),  # JSON: [name, kind, help, [[sample, labels, value], ...]]
    Column("seen_at", Float, nullable=False),
)


class Publisher:
    """Writes this process's numbers until it is stopped."""

    def __init__(
        self, engine: Engine, role: str, *, registry: CollectorRegistry = PROCESS,
        clock: Callable[[], float] = time.time
    ):  # fmt: skip
        self.process = f"{role}-{secrets.token_hex(4)}"
        self.role = role
        self._engine, self._registry, self._clock = engine, registry, clock
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Publishes once more; the row then ages."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(5.0)

    def publish(self) -> None:
        row = {"role": self.role, "families": dump(self._registry), "seen_at": self._clock()}
        with self._engine.begin() as connection:
            mine = process_metrics.c.process == self.process
            if not connection.execute(update(process_metrics).where(mine).values(row)).rowcount:
                connection.execute(insert(process_metrics).values(process=self.process, **row))
            connection.execute(delete(process_metrics).where(process_metrics.c.seen_at < self._clock() - 10 * SHOWN_S))

    def _run(self) -> None:
        while True:
            stopping = self._stopping.wait(PUBLISH_S)
            try:
                self.publish()
            except Exception:
                # The database may be away for a moment; what was counted is not lost by that.
                logger.warning("this process's metrics could not be published", exc_info=True)
            if stopping:
                return


def published(engine: Engine, now: float, *, but: str = "") -> list[tuple[str, str, str]]:
    """Process, role and families of every process that published lately, without the one named `but`."""
    recent = (process_metrics.c.seen_at >= now - SHOWN_S) & (process_metrics.c.process != but)
    columns = (process_metrics.c.process, process_metrics.c.role, process_metrics.c.families)
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(select(*columns).where(recent).order_by(columns[0]))]


def dump(registry: CollectorRegistry) -> str:
    """A registry's numbers as text that `merge` understands."""
    families = []
    for family in registry.collect():
        samples = [[s.name, s.labels, s.value] for s in family.samples if not s.name.endswith("_created")]
        families.append([family.name, family.type, family.documentation, samples])
    return json.dumps(families)


def merge(dumps: Iterable[tuple[str, str]]) -> list[Metric]:
    """One family a metric over all processes, each sample with the label `process`."""
    found: dict[str, Metric] = {}
    for process, text in dumps:
        for name, kind, documentation, samples in json.loads(text):
            family = found.setdefault(name, Metric(name, documentation, kind))
            for sample, labels, value in samples:
                family.add_sample(sample, {**labels, "process": process}, value)
    return list(found.values())
