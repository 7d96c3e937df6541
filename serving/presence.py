"""Which workers are warm: each says so every few seconds, so that readiness and /v1/models tell the truth."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Engine, delete, insert, select, update

from serving.database import workers

BEAT_S = 2.0
"""Seconds between two signs of life."""
SILENT_S = 10.0
"""Seconds after which a worker counts as gone."""


@dataclass(frozen=True)
class ServedModel:
    """A model as clients see it."""

    name: str
    version: str
    mini: bool


class Presence:
    """The workers table."""

    def __init__(self, engine: Engine, *, clock: Callable[[], float] = time.time):
        self.engine = engine
        self.clock = clock

    def beat(self, worker_id: str, model: ServedModel) -> None:
        """One sign of life."""
        row = {"model": model.name, "model_version": model.version, "mini": model.mini, "seen_at": self.clock()}
        with self.engine.begin() as connection:
            known = connection.execute(update(workers).where(workers.c.id == worker_id).values(row)).rowcount
            if not known:
                connection.execute(insert(workers).values(id=worker_id, **row))
            # Those that fell silent long ago are of no more interest.
            connection.execute(delete(workers).where(workers.c.seen_at < self.clock() - 60 * SILENT_S))

    def leave(self, worker_id: str) -> None:
        with self.engine.begin() as connection:
            connection.execute(delete(workers).where(workers.c.id == worker_id))

    def forget_all(self) -> None:
        """For a service that starts on a folder of its own: nobody can be warm yet."""
        with self.engine.begin() as connection:
            connection.execute(delete(workers))

    def models(self) -> list[ServedModel]:
        """What the warm workers serve, one entry per name and version."""
        recent = workers.c.seen_at >= self.clock() - SILENT_S
        query = select(workers.c.model, workers.c.model_version, workers.c.mini).where(recent).distinct()
        with self.engine.connect() as connection:
            return sorted((ServedModel(*row) for row in connection.execute(query)), key=lambda m: (m.name, m.version))

    def count(self) -> int:
        recent = workers.c.seen_at >= self.clock() - SILENT_S
        with self.engine.connect() as connection:
            return len(connection.execute(select(workers.c.id).where(recent)).all())
