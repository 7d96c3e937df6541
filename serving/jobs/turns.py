"""Whose job is next: fair between tenants, by rank among one tenant's jobs.

The tenant with the fewest running jobs comes first; among equals the one that has used the fewest GPU-seconds of late.
A tenant's own jobs go by `rank`: the time of arrival, less five minutes for each step of priority. So an important job
overtakes what came up to five minutes before it, and what has waited longer keeps its place.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Mapping

from sqlalchemy import Connection, and_, func, or_, select, text
from sqlalchemy import Row as SqlRow

from serving.jobs.database import videos
from serving.jobs.job import Status

AGEING_S = 300.0
"""Seconds of waiting that are worth one step of priority: so nobody waits for ever behind the more important."""

RECENT_S = 600.0
"""Seconds of the past that count when tenants compete for a free engine."""

Cap = Callable[[str], "int | None"]
"""How many of a tenant's jobs may run at once; None for as many as there are engines."""
_CAPS_LOCK = 0x44594E
"""PostgreSQL's number of the locks under which a tenant's running jobs are counted."""


def next_job(
    connection: Connection, *, now: float, used: Mapping[str, float], cap: Cap, versions: Collection[str] | None
) -> SqlRow | None:
    """Id and lease token of the job to be leased now, locked until the transaction ends; None where none may be."""
    running = _running(connection)
    for tenant in sorted(
        waiting_tenants(connection), key=lambda name: (running.get(name, 0), used.get(name, 0.0), name)
    ):
        limit = cap(tenant)
        if limit is not None and _count_alone(connection, tenant) >= limit:
            continue
        first = _first_of(connection, tenant, now, versions)
        if first is not None:
            return first
    return None


def waiting_tenants(connection: Connection) -> list[str]:
    """Tenants that have queued jobs: one step along the index for each, however many jobs they have."""
    queued = videos.c.status == Status.QUEUED
    found = select(func.min(videos.c.tenant).label("tenant")).where(queued).cte("waiting", recursive=True)
    beyond = select(func.min(videos.c.tenant)).where(queued, videos.c.tenant > found.c.tenant).scalar_subquery()
    found = found.union_all(select(beyond).where(found.c.tenant.is_not(None)))
    return list(connection.execute(select(found.c.tenant).where(found.c.tenant.is_not(None))).scalars())


def used_since(connection: Connection, since: float) -> dict[str, float]:
    """GPU-seconds by tenant of the jobs that have ended since a moment."""
    ended = videos.c.status.in_([status for status in Status if status.is_final])
    query = select(videos.c.tenant, func.coalesce(func.sum(videos.c.gpu_seconds), 0.0))
    query = query.where(ended, videos.c.completed_at >= since).group_by(videos.c.tenant)
    return {tenant: float(seconds) for tenant, seconds in connection.execute(query)}


def _running(connection: Connection) -> dict[str, int]:
    query = select(videos.c.tenant, func.count()).where(videos.c.status == Status.IN_PROGRESS)
    return {tenant: count for tenant, count in connection.execute(query.group_by(videos.c.tenant))}


def _count_alone(connection: Connection, tenant: str) -> int:
    """A capped tenant's running jobs, while nobody else counts them to add one."""
    if connection.dialect.name == "postgresql":
        key = {"space": _CAPS_LOCK, "tenant": zlib.crc32(tenant.encode()) - 2**31}
        connection.execute(text("SELECT pg_advisory_xact_lock(:space, :tenant)"), key)
    mine = and_(videos.c.status == Status.IN_PROGRESS, videos.c.tenant == tenant)
    return connection.execute(select(func.count()).where(mine)).scalar_one()


def _first_of(connection: Connection, tenant: str, now: float, versions: Collection[str] | None) -> SqlRow | None:
    due = or_(videos.c.not_before.is_(None), videos.c.not_before <= now)
    where = [videos.c.status == Status.QUEUED, videos.c.tenant == tenant, due]
    if versions is not None:
        where.append(or_(videos.c.target_version.is_(None), videos.c.target_version.in_(list(versions))))
    query = select(videos.c.id, videos.c.lease_token).where(*where).order_by(videos.c.rank, videos.c.place).limit(1)
    return connection.execute(query.with_for_update(skip_locked=True)).first()
