"""Whether a tenant may have one more job or file: decided in the transaction that would add it.

All replicas ask the same rows under the tenant's own lock, so two requests at the same moment cannot both take the last
place. Tenants do not wait for each other.
"""

from __future__ import annotations

from sqlalchemy import Connection, Table, func, select
from sqlalchemy.dialects import postgresql, sqlite

from dynamictrl.errors import DynamiCtrlError
from serving.jobs.database import files, videos
from serving.tenants.ledger import next_month, used_this_month
from serving.tenants.tables import admission_locks
from serving.tenants.tenant import Tenant

ACTIVE = ("queued", "in_progress")
BUSY_RETRY_S = 10
"""Seconds after which a tenant with all its places taken is told to ask again."""


class QuotaError(DynamiCtrlError):
    """A tenant has what it may have. `status` is HTTP's; `retry_after_s` is None where asking again does not help."""

    def __init__(self, message: str, *, code: str, status: int, retry_after_s: int | None = None):
        super().__init__(message, code=code)
        self.status = status
        self.retry_after_s = retry_after_s


def admit_job(
    connection: Connection, tenant: Tenant, *, gpu_seconds: float, added_bytes: int, now: float, gpus: float = 1.0
) -> None:  # fmt: skip
    """QuotaError where the tenant's places, budget or storage do not suffice for one more job.

    Estimates in the store are of engine seconds; an engine has `gpus`.
    """
    quotas = tenant.quotas
    if not (quotas.jobs_at_once or quotas.gpu_seconds_per_month or quotas.storage_bytes):
        return
    _lock(connection, tenant.id, now)
    active = videos.c.status.in_(ACTIVE) & (videos.c.tenant == tenant.id)
    query = select(func.count(), func.coalesce(func.sum(videos.c.gpu_seconds_estimate), 0.0)).where(active)
    count, pledged = connection.execute(query).one()
    if quotas.jobs_at_once and count >= quotas.jobs_at_once:
        raise QuotaError(
            f"{count} jobs are queued or running, and {quotas.jobs_at_once} may be; wait for one to end",
            code="too_many_jobs",
            status=429,
            retry_after_s=BUSY_RETRY_S,
        )
    if quotas.gpu_seconds_per_month:
        used, pledged = used_this_month(connection, tenant.id, now), pledged * gpus
        if used + pledged + gpu_seconds > quotas.gpu_seconds_per_month:
            raise QuotaError(
                f"of {quotas.gpu_seconds_per_month:g} GPU seconds this month {used:.0f} are used and {pledged:.0f} are "
                f"pledged to jobs at work; this job is estimated at {gpu_seconds:.0f}. The next month begins in "
                f"{(next_month(now) - now) / 86400:.1f} days",
                code="gpu_budget_exceeded",
                status=402,
            )
    _check_storage(connection, tenant, added_bytes)


def admit_file(connection: Connection, tenant: Tenant, *, added_bytes: int, now: float) -> None:
    """QuotaError where a file more would be too much."""
    if tenant.quotas.storage_bytes:
        _lock(connection, tenant.id, now)
        _check_storage(connection, tenant, added_bytes)


def stored_bytes(connection: Connection, tenant: str) -> int:
    """Bytes of a tenant's files, inputs and clips."""
    return sum(
        _sum(connection, table, column, tenant) for table, column in ((files, "bytes"), (videos, "stored_bytes"))
    )


def _check_storage(connection: Connection, tenant: Tenant, added: int) -> None:
    most = tenant.quotas.storage_bytes
    if not most:
        return
    kept = stored_bytes(connection, tenant.id)
    if kept + added > most:
        raise QuotaError(
            f"{kept} bytes are kept for you, and {most} may be; this would add {added}. Delete files or videos first",
            code="storage_full",
            status=403,
        )


def _sum(connection: Connection, table: Table, column: str, tenant: str) -> int:
    query = select(func.coalesce(func.sum(table.c[column]), 0)).where(table.c.tenant == tenant)
    return int(connection.execute(query).scalar_one())


def _lock(connection: Connection, tenant: str, now: float) -> None:
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    row = dialect.insert(admission_locks).values(tenant=tenant, at=now)
    connection.execute(row.on_conflict_do_update(index_elements=["tenant"], set_={"at": now}))
