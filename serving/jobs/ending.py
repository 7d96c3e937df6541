"""What happens when a job ends, in the very transaction that ends it: its usage is booked, its webhook is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Connection

from serving.jobs.database import videos
from serving.tenants import ledger
from serving.webhooks import outbox

FACTS = tuple(
    videos.c[name]
    for name in ("id", "tenant", "status", "model", "settings", "gpu_seconds", "webhook_url", "traceparent")
)
"""The columns that this needs of a job that has just changed."""


def after_end(connection: Connection, ended: Iterable[Mapping[Any, Any]], now: float) -> None:
    """For jobs whose status has just become final; `ended` holds their FACTS."""
    rows = list(ended)
    ledger.settle(connection, rows, now)
    outbox.announce(connection, rows, now)


def after_deletion(connection: Connection, deleted: Iterable[Mapping[Any, Any]], now: float) -> None:
    """For jobs that are no more; what one had used that was still at work is booked."""
    at_work = [{**row, "status": "deleted"} for row in deleted if row["status"] in ("queued", "in_progress")]
    ledger.settle(connection, at_work, now)
