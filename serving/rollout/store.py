"""The rollouts table: one row for each registered model, one leader at a time, every step on record."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict

from sqlalchemy import Boolean, Column, Engine, Float, Integer, String, Table, Text, and_, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from serving.jobs.database import METADATA, videos
from serving.jobs.job import Status
from serving.rollout.judging import OUR_FAULTS, Tally
from serving.rollout.state import Phase, Rollout, first, version_for
from serving.tenants.audit import AuditLog, Entry

logger = logging.getLogger(__name__)

FRESH_S = 1.0
"""Seconds for which a state that was read is good enough to pin a job by."""
TALLIED = 500
"""Jobs that a tally looks at, the latest ones."""

rollouts = Table(
    "rollouts",
    METADATA,
    Column("model", String(200), primary_key=True),
    Column("stable", String(200), nullable=False),
    Column("proven", Boolean, nullable=False),
    Column("candidate", String(200)),
    Column("previous", String(200)),
    Column("rejected", String(200)),
    Column("phase", String(16), nullable=False),
    Column("since", Float, nullable=False),
    Column("percent", Integer, nullable=False),
    Column("why", Text, nullable=False),
    Column("leader", String(64)),
    Column("leads_until", Float),
)


def models(engine: Engine) -> list[str]:
    """The registered models that services of this job store have followed."""
    with engine.connect() as connection:
        return list(connection.execute(select(rollouts.c.model).order_by(rollouts.c.model)).scalars())


class Rollouts:
    """The state of one registered model. Safe for many threads and processes."""

    def __init__(self, engine: Engine, model: str, *, clock: Callable[[], float] = time.time):
        self.engine = engine
        self.model = model
        self.clock = clock
        self._read: tuple[float, Rollout | None] = (float("-inf"), None)

    def get(self) -> Rollout | None:
        """The state; None before the service has had a version."""
        with self.engine.connect() as connection:
            row = connection.execute(select(rollouts).where(rollouts.c.model == self.model)).mappings().first()
        if row is None:
            return None
        values = {name: row[name] for name in Rollout.__dataclass_fields__}
        return Rollout(**{**values, "phase": Phase(row["phase"])})

    def begin(self, version: str) -> Rollout:
        """The state; with `version` as the first one where there has been none."""
        state = first(self.model, version, self.clock())
        try:
            with self.engine.begin() as connection:
                connection.execute(insert(rollouts).values(**asdict(state)))
        except IntegrityError:
            known = self.get()
            assert known is not None
            return known
        self._record(state, "first", version)
        return state

    def step(self, old: Rollout, new: Rollout, action: str) -> bool:
        """Goes from one state to the next, on record; False where somebody else has gone elsewhere meanwhile."""
        same = and_(
            rollouts.c.model == self.model, rollouts.c.stable == old.stable, rollouts.c.phase == old.phase,
            rollouts.c.candidate.is_(None) if old.candidate is None else rollouts.c.candidate == old.candidate
        )  # fmt: skip
        with self.engine.begin() as connection:
            if connection.execute(update(rollouts).where(same).values(**asdict(new))).rowcount != 1:
                return False
        self._record(new, action, new.candidate or (new.rejected if action == "rolled_back" else None) or new.stable)
        return True

    def prove(self, version: str) -> None:
        """An engine is warm with this version."""
        fresh = and_(rollouts.c.model == self.model, rollouts.c.stable == version, rollouts.c.proven.is_(False))
        with self.engine.begin() as connection:
            connection.execute(update(rollouts).where(fresh).values(proven=True))

    def lead(self, who: str, seconds: float) -> bool:
        """Whether `who` is, for some seconds, the only one to take the next step."""
        now = self.clock()
        free = or_(rollouts.c.leader.is_(None), rollouts.c.leader == who, rollouts.c.leads_until < now)
        with self.engine.begin() as connection:
            mine = update(rollouts).where(rollouts.c.model == self.model, free)
            return connection.execute(mine.values(leader=who, leads_until=now + seconds)).rowcount == 1

    def pin(self, tenant: str, video_id: str) -> str | None:
        """The version that a new job has to be rendered with, if it matters."""
        read_at, state = self._read
        if time.monotonic() - read_at > FRESH_S:
            state = self.get()
            self._read = (time.monotonic(), state)
        return version_for(state, tenant, video_id)

    def forget(self) -> None:
        """The next pin reads the state anew."""
        self._read = (float("-inf"), None)

    def tallies(self, state: Rollout) -> tuple[Tally, Tally]:
        """What became of the candidate's jobs and of the others since the phase began."""
        mine = videos.c.target_version == state.candidate
        return self._tally(state.since, mine), self._tally(
            state.since, or_(videos.c.target_version.is_(None), videos.c.target_version != state.candidate)
        )

    def _tally(self, since: float, which: object) -> Tally:
        columns = (
            videos.c.status, videos.c.error_code, videos.c.started_at, videos.c.completed_at,
            videos.c.gpu_seconds_estimate
        )  # fmt: skip
        ended = and_(videos.c.completed_at >= since, videos.c.status.in_([Status.COMPLETED, Status.FAILED]))
        query = select(*columns).where(ended, which).order_by(videos.c.completed_at.desc()).limit(TALLIED)  # pyright: ignore[reportArgumentType]
        with self.engine.connect() as connection:
            rows = connection.execute(query).all()
        completed = [row for row in rows if row.status == Status.COMPLETED]
        ratios = [
            (row.completed_at - row.started_at) / row.gpu_seconds_estimate
            for row in completed
            if row.gpu_seconds_estimate and row.started_at
        ]
        failed = sum(row.status == Status.FAILED and row.error_code in OUR_FAULTS for row in rows)
        return Tally(len(completed), failed, statistics.median(ratios) if ratios else None)

    def _record(self, state: Rollout, action: str, version: str) -> None:
        logger.info("rollout of %s: %s %s (%s)", self.model, action, version, state.why)
        AuditLog(self.engine).add([Entry(tenant="operator", action=f"rollout.{action}", target=version)])
