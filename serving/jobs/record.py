"""A job as the store has it, and the one way in which it changes: a conditional UPDATE that leaves an event behind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Connection, Float, Index, Integer, RowMapping, String, Table, insert, update

from serving.jobs.database import METADATA, videos
from serving.jobs.ending import after_end
from serving.jobs.job import Settings, Status

Where = Any  # SQLAlchemy's boolean expression

events = Table(
    "video_events",
    METADATA,
    Column("video_id", String(64), primary_key=True),
    Column("version", Integer, primary_key=True),  # the job's version that this change made
    Column("at", Float, nullable=False),
    Column("status", String(16), nullable=False),
    Column("stage", String(32), nullable=False),
    Column("progress", Integer, nullable=False),
    Column("step", Integer),
    Column("steps", Integer),
    Index("video_events_by_time", "at"),
)


@dataclass(frozen=True, kw_only=True)
class Video:
    """One job as the store has it. Times are Unix seconds."""

    id: str
    place: int
    status: Status
    stage: str
    progress: int
    step: int | None
    """Denoising steps done, of `steps`, in the attempt that runs or ran last."""
    steps: int | None
    version: int
    created_at: float
    started_at: float | None
    completed_at: float | None
    expires_at: float | None
    model: str
    model_version: str | None
    target_version: str | None
    settings: Settings
    inputs: dict[str, str]
    remixed_from: str | None
    error_code: str | None
    error_message: str | None
    tenant: str
    priority: int
    rank: float
    not_before: float | None
    queue_deadline_at: float | None
    deadline_at: float | None
    gpu_seconds_estimate: float | None
    gpu_seconds: float | None
    traceparent: str | None
    webhook_url: str | None
    manifest: str | None
    content_hash: str
    cancel_requested: bool
    attempts: int
    lease_owner: str | None
    lease_token: int
    lease_expires_at: float | None
    result_token: int | None


@dataclass(frozen=True, kw_only=True)
class Event:
    """One change of a job: what it was from `version` on."""

    video_id: str
    version: int
    at: float
    status: Status
    stage: str
    progress: int
    step: int | None
    steps: int | None


_EVENT = ("version", "status", "stage", "progress", "step", "steps")


def change(
    connection: Connection, where: Where, *, now: float, ends: bool = False, **values: Any  # noqa: ANN401
) -> list[RowMapping]:  # fmt: skip
    """Changes the jobs that `where` holds for, and records an event for each; returns their rows as they are now.

    With `ends`, those that are in a final state now have just come there, and all that follows from it is written too.
    """
    values["version"] = videos.c.version + 1
    statement = update(videos).where(where).values(values).returning(*videos.c)
    rows = list(connection.execute(statement).mappings().all())
    record(connection, rows, now=now)
    if ends:
        after_end(connection, [row for row in rows if Status(row["status"]).is_final], now)
    return rows


def record(connection: Connection, rows: Sequence[RowMapping], *, now: float) -> None:
    """Writes down what jobs are now as events."""
    for row in rows:
        values = {"video_id": row["id"], "at": now, **{name: row[name] for name in _EVENT}}
        connection.execute(insert(events).values(values))


def to_video(row: RowMapping) -> Video:
    values = {name: row[name] for name in Video.__dataclass_fields__}
    values["status"] = Status(row["status"])
    values["settings"] = Settings(**json.loads(row["settings"]))
    values["inputs"] = json.loads(row["inputs"])
    return Video(**values)


def to_event(row: RowMapping) -> Event:
    return Event(**{**row, "status": Status(row["status"])})
