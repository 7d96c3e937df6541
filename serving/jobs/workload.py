"""How much work there is: what capacity is decided by."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Engine, and_, func, or_, select

from serving.jobs.database import videos
from serving.jobs.job import Status
from serving.jobs.turns import Cap

GUESS_S = 30.0
"""Engine-seconds of a job that nobody has estimated, before any has been rendered."""


@dataclass(frozen=True)
class Workload:
    """The jobs that are not done, in engine-seconds."""

    queued: int = 0
    """Jobs that wait for an engine."""
    running: int = 0
    """Jobs that an engine is on."""
    queued_seconds: float = 0.0
    """Engine-seconds that the waiting jobs will take."""
    running_seconds: float = 0.0
    """Engine-seconds that are left of the running ones."""
    running_elsewhere: int = 0
    """Running jobs that another dispatcher has given out."""


def seconds_left(estimate: float, since_start: float) -> float:
    """What is left of a running job; one that overstays its estimate is taken to need a tenth of it yet."""
    return max(estimate - since_start, estimate / 10)


def read_workload(
    engine: Engine, dispatcher: str = "", *, clock: Callable[[], float] = time.time, cap: Cap = lambda tenant: None
) -> Workload:
    """What waits and runs now; `dispatcher` is the one whose jobs are not elsewhere.

    Of a tenant whose running jobs are capped, only what may run beside them counts as waiting: more engines would not
    do the rest any sooner. Nor does a job count whose time has not come.
    """
    now = clock()
    due = and_(videos.c.status == Status.QUEUED, or_(videos.c.not_before.is_(None), videos.c.not_before <= now))
    estimate = videos.c.gpu_seconds_estimate
    waiting = select(
        videos.c.tenant,
        func.count().label("jobs"),
        func.count(estimate).label("estimated"),
        func.sum(estimate).label("s"),
    )
    at_work = select(videos.c.tenant, estimate, videos.c.started_at, videos.c.lease_owner)
    with engine.connect() as connection:
        tenants = connection.execute(waiting.where(due).group_by(videos.c.tenant)).all()
        running = connection.execute(at_work.where(videos.c.status == Status.IN_PROGRESS)).all()
    known = [row.gpu_seconds_estimate for row in running if row.gpu_seconds_estimate]
    estimated, seconds = sum(row.estimated for row in tenants), sum(row.s or 0.0 for row in tenants)
    mean = seconds / estimated if estimated and seconds else sum(known) / len(known) if known else GUESS_S
    at_once = Counter(row.tenant for row in running)
    queued, queued_seconds = 0, 0.0
    for row in tenants:
        limit = cap(row.tenant)
        jobs = row.jobs if limit is None else min(row.jobs, max(0, limit - at_once[row.tenant]))
        queued += jobs
        queued_seconds += ((row.s or 0.0) + mean * (row.jobs - row.estimated)) * jobs / row.jobs
    return Workload(
        queued=queued,
        running=len(running),
        queued_seconds=queued_seconds,
        running_seconds=sum(
            seconds_left(row.gpu_seconds_estimate or mean, now - (row.started_at or now)) for row in running
        ),
        running_elsewhere=sum(row.lease_owner != dispatcher for row in running),
    )
