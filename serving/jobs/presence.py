"""Which workers are warm: each says so every few seconds, so that readiness and /v1/models tell the truth."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Engine, and_, delete, func, insert, select, update

from serving.jobs.database import workers

BEAT_S = 2.0
"""Seconds between two signs of life."""
SILENT_S = 10.0
"""Seconds after which a worker counts as gone."""
LOADING_SILENT_S = 60.0
"""The same while it loads: imports and weights can keep all its threads from speaking, and so can a busy machine."""


STARTING, WARM, LEFT = "starting", "warm", "left"
BESIDE = "beside"
"""State of the rows of a warm worker's further models; such a row is no worker."""


@dataclass(frozen=True)
class Readiness:
    """Whether jobs will be rendered, in the words of GET /readyz."""

    status: str
    """`ready`; `asleep` where idle engines were given up and the next job starts one; `starting`; `failing` where the
    engines that start cannot load their model."""
    workers: int
    """Engines that are warm."""
    starting: int
    why: tuple[str, ...] = ()
    """Why engines could not start, in codes; the log has the whole story."""

    @property
    def ok(self) -> bool:
        return self.status in ("ready", "asleep")

    def to_dict(self) -> dict[str, object]:
        return {"status": self.status, "workers": self.workers, "starting": self.starting, "why": list(self.why)}


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

    def beat(self, worker_id: str, *models: ServedModel) -> None:
        """One sign of life of a worker that has these models, the default one first."""
        for number, model in enumerate(models):
            row = {"model": model.name, "model_version": model.version, "mini": model.mini, "seen_at": self.clock()}
            # One row is the worker; a model beside its default has a row of its own, which is no worker.
            row_id, state = (f"{worker_id}/{number}", BESIDE) if number else (worker_id, WARM)
            self._say(row_id, row | {"state": state, "why": None})

    def starting(self, worker_id: str, *, why: str | None = None) -> None:
        """A sign of life of a worker that has no model yet; `why` its last attempt failed stays until it is warm."""
        row = {"model": "", "model_version": "", "mini": False, "seen_at": self.clock(), "state": STARTING}
        self._say(worker_id, row | ({"why": why} if why else {}))

    def _say(self, worker_id: str, row: Mapping[str, object]) -> None:
        with self.engine.begin() as connection:
            known = connection.execute(update(workers).where(workers.c.id == worker_id).values(row)).rowcount
            if not known:
                connection.execute(insert(workers).values(id=worker_id, **row))
            # Those that fell silent long ago are of no more interest.
            connection.execute(delete(workers).where(workers.c.seen_at < self.clock() - 60 * SILENT_S))

    def leave(self, worker_id: str) -> None:
        """The worker has gone; what it served stays known, for a service that sleeps."""
        with self.engine.begin() as connection:
            own = (workers.c.id == worker_id) | workers.c.id.startswith(f"{worker_id}/", autoescape=True)
            connection.execute(delete(workers).where(own, workers.c.state == STARTING))
            connection.execute(update(workers).where(own).values(state=LEFT, seen_at=self.clock()))

    def forget_all(self) -> None:
        """For a service that starts on a folder of its own: nobody can be warm yet."""
        with self.engine.begin() as connection:
            connection.execute(delete(workers))

    def models(self) -> list[ServedModel]:
        """What the warm workers serve, one entry per name and version; where all have left, what the last one did."""
        query, now = select(workers.c.model, workers.c.model_version, workers.c.mini).distinct(), self.clock()
        left = workers.c.state == LEFT
        last = select(func.max(workers.c.seen_at)).where(left).scalar_subquery()
        with self.engine.connect() as connection:
            rows = connection.execute(query.where(is_recent(WARM, now) | is_recent(BESIDE, now))).all()
            rows = rows or connection.execute(query.where(left, workers.c.seen_at >= last - BEAT_S)).all()
        return sorted((ServedModel(*row) for row in rows), key=lambda m: (m.name, m.version))

    def count(self) -> int:
        with self.engine.connect() as connection:
            return len(connection.execute(select(workers.c.id).where(is_recent(WARM, self.clock()))).all())

    def crashed_starts(self) -> int:
        """Workers that fell silent for good in the last minutes before they had a model."""
        silent = and_(workers.c.state == STARTING, workers.c.seen_at < self.clock() - LOADING_SILENT_S)
        with self.engine.connect() as connection:
            return connection.execute(select(func.count()).select_from(workers).where(silent)).scalar_one()

    def readiness(self, *, may_sleep: bool, jobs_wait: bool) -> Readiness:
        """`may_sleep`: having no worker is as it should be while no job waits."""
        with self.engine.connect() as connection:
            rows = connection.execute(select(workers.c.state, workers.c.why, workers.c.seen_at)).all()
        now = self.clock()
        warm = sum(row.state == WARM and row.seen_at >= now - SILENT_S for row in rows)
        loading = [row for row in rows if row.state == STARTING]
        starting = [row for row in loading if row.seen_at >= now - LOADING_SILENT_S]
        why = {row.why for row in starting if row.why}
        if len(starting) < len(loading):
            why.add("died_while_loading")
        if warm:
            status = "ready"
        elif why:
            status = "failing"
        else:
            status = "asleep" if may_sleep and not jobs_wait and not starting else "starting"
        return Readiness(status, warm, len(starting), tuple(sorted(why)))


def is_recent(state: str, now: float) -> ColumnElement[bool]:
    """Rows of a state whose worker has spoken of late: the only ones that count."""
    return and_(workers.c.state == state, workers.c.seen_at >= now - SILENT_S)
