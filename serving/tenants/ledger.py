"""What tenants have used: one row a tenant, month, model, quality and outcome, written with a job's last change.

It outlives the jobs themselves, so deleting one gives no budget back, and its sums only grow: /metrics shows them as
counters, the same from every replica.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.dialects import postgresql, sqlite

from serving.tenants.tables import usage

Key = tuple[str, str, str, str, str]


def month_of(at: float) -> str:
    """2026-11, in UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m")


def next_month(at: float) -> float:
    """When the month of `at` is over, Unix seconds."""
    now = datetime.fromtimestamp(at, UTC)
    year, month = (now.year + 1, 1) if now.month == 12 else (now.year, now.month + 1)
    return datetime(year, month, 1, tzinfo=UTC).timestamp()


def settle(connection: Connection, ended: Iterable[Mapping[Any, Any]], now: float) -> None:
    """Books jobs that have just ended (rows of `videos`), in the transaction that ended them."""
    sums: defaultdict[Key, list[float]] = defaultdict(lambda: [0, 0.0])
    for row in ended:
        quality = str(json.loads(row["settings"]).get("quality", "exact"))
        booked = sums[row["tenant"], month_of(now), row["model"], quality, str(row["status"])]
        booked[0] += 1
        booked[1] += row["gpu_seconds"] or 0.0
    # In one order everywhere: two transactions that book the same rows cannot wait for each other.
    for key, (jobs, seconds) in sorted(sums.items()):
        _add(connection, key, int(jobs), seconds)


def used_this_month(connection: Connection, tenant: str, now: float) -> float:
    """GPU seconds of a tenant's jobs that have ended this month."""
    query = select(func.coalesce(func.sum(usage.c.gpu_seconds), 0.0))
    here = (usage.c.tenant == tenant) & (usage.c.month == month_of(now))
    return float(connection.execute(query.where(here)).scalar_one())


def report(engine: Engine, *, tenant: str | None = None, month: str | None = None) -> list[dict[str, Any]]:
    """The ledger's rows, oldest month first."""
    query = select(usage).order_by(usage.c.month, usage.c.tenant, usage.c.model, usage.c.quality, usage.c.outcome)
    if tenant is not None:
        query = query.where(usage.c.tenant == tenant)
    if month is not None:
        query = query.where(usage.c.month == month)
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(query).mappings()]


def _add(connection: Connection, key: Key, jobs: int, seconds: float) -> None:
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    names = ("tenant", "month", "model", "quality", "outcome")
    row = dialect.insert(usage).values(**dict(zip(names, key, strict=True)), jobs=jobs, gpu_seconds=seconds)
    grown = {"jobs": usage.c.jobs + jobs, "gpu_seconds": usage.c.gpu_seconds + seconds}
    connection.execute(row.on_conflict_do_update(index_elements=list(names), set_=grown))
