"""What is to be told to whom: one row an event, added in the transaction that ended the job.

So there is no end without its event, and no event without the end. The row's id is the event's and stays the same over
all tries and replays: a receiver that has seen it may throw it away. A row is pending until a receiver took it
(delivered) or nobody would for a day (dead).
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Float,
    Index,
    Integer,
    String,
    Table,
    Text,
    delete,
    func,
    insert,
    select,
    update,
)

from serving.jobs.database import METADATA

webhook_outbox = Table(
    "webhook_outbox",
    METADATA,
    Column("place", Integer, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),  # webhook-id, and the event's own
    Column("tenant", String(64), nullable=False),
    Column("video_id", String(64), nullable=False),
    Column("event", String(32), nullable=False),  # video.completed
    Column("url", Text, nullable=False),
    Column("host", String(255), nullable=False),
    Column("payload", Text, nullable=False),  # the very bytes that are signed
    Column("status", String(16), nullable=False),  # pending, delivered, dead
    Column("created_at", Float, nullable=False),
    Column("gives_up_at", Float, nullable=False),
    Column("next_at", Float, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("claim", Integer, nullable=False),  # grows with every claim: only the latest may say how it went
    Column("claimed_until", Float, nullable=False),
    Column("last_status", Integer),
    Column("last_error", String(200)),
    Column("delivered_at", Float),
    Column("traceparent", String(64)),
    Index("webhooks_due", "status", "next_at"),
    Index("webhooks_by_video", "video_id"),
)

GIVE_UP_S = 24 * 3600.0
"""Seconds after which an event that nobody takes is dead."""
KEPT_S = 30 * 24 * 3600.0
"""Seconds for which an ended event can be looked at and replayed."""
CLAIM_S = 60.0
"""Seconds after which a claimed event whose deliverer fell silent is due again."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """One row, as a deliverer or a person needs it."""

    id: str
    tenant: str
    video_id: str
    event: str
    url: str
    host: str
    payload: str
    status: str
    created_at: float
    gives_up_at: float
    next_at: float
    tries: int
    claim: int
    last_status: int | None
    last_error: str | None
    delivered_at: float | None
    traceparent: str | None


def announce(connection: Connection, ended: Iterable[Mapping[Any, Any]], now: float) -> None:
    """Adds the events of jobs that have just ended (rows of `videos`), in the transaction that ended them."""
    rows = [_event(row, now) for row in ended if row["webhook_url"]]
    if rows:
        connection.execute(insert(webhook_outbox), rows)


class Outbox:
    """The webhook_outbox table. Safe to use from many threads and processes."""

    def __init__(self, engine: Engine, *, clock: Callable[[], float] = time.time):
        self.engine = engine
        self.clock = clock

    def claim(self, *, most: int, without_hosts: Collection[str] = ()) -> list[Event]:
        """Events that are due, each to be delivered by this caller alone for the next CLAIM_S seconds."""
        now, table = self.clock(), webhook_outbox
        due = (table.c.status == "pending") & (table.c.next_at <= now) & (table.c.claimed_until < now)
        query = select(table).where(due, table.c.host.not_in(list(without_hosts))).order_by(table.c.next_at).limit(most)
        with self.engine.connect() as connection:
            found = connection.execute(query).mappings().all()
        claimed: list[Event] = []
        for row in found:
            mine = due & (table.c.id == row["id"]) & (table.c.claim == row["claim"])
            change = update(table).where(mine).values(claim=row["claim"] + 1, claimed_until=now + CLAIM_S)
            with self.engine.begin() as connection:
                if connection.execute(change).rowcount == 1:
                    claimed.append(_shown({**row, "claim": row["claim"] + 1}))
        return claimed

    def delivered(self, event: Event, status: int) -> bool:
        return self._write(
            event, status="delivered", delivered_at=self.clock(), last_status=status, last_error=None,
            tries=event.tries + 1
        )  # fmt: skip

    def failed(self, event: Event, *, status: int | None, error: str, next_at: float | None) -> bool:
        """Due again at `next_at`, or dead where that is None or later than the day it has."""
        dead = next_at is None or next_at > event.gives_up_at
        return self._write(
            event, status="dead" if dead else "pending", next_at=event.next_at if dead else next_at,
            tries=event.tries + 1, last_status=status, last_error=error[:200]
        )  # fmt: skip

    def unclaim(self, event: Event) -> None:
        """Gives an event back that was not tried."""
        self._write(event)

    def replay(
        self, *, tenant: str | None = None, video_id: str | None = None, event_id: str | None = None,
        only_dead: bool = False
    ) -> int:  # fmt: skip
        """Makes ended events due again, with the same id, for another day; returns how many."""
        now, table = self.clock(), webhook_outbox
        query = update(table).where(table.c.status == "dead" if only_dead else table.c.status != "pending")
        for column, value in ((table.c.tenant, tenant), (table.c.video_id, video_id), (table.c.id, event_id)):
            if value is not None:
                query = query.where(column == value)
        fresh = {"status": "pending", "next_at": now, "gives_up_at": now + GIVE_UP_S, "claimed_until": 0.0,
                 "claim": table.c.claim + 1, "delivered_at": None, "tries": 0}  # fmt: skip
        with self.engine.begin() as connection:
            return connection.execute(query.values(fresh)).rowcount

    def forget(self, *, older_than_s: float = KEPT_S) -> int:
        """Removes events that were delivered or given up so long ago; returns how many."""
        ended = webhook_outbox.c.status != "pending"
        old = webhook_outbox.c.created_at < self.clock() - older_than_s
        with self.engine.begin() as connection:
            return connection.execute(delete(webhook_outbox).where(ended, old)).rowcount

    def list(
        self, *, tenant: str | None = None, video_id: str | None = None, status: str | None = None, limit: int = 100
    ) -> list[Event]:
        """The latest events, newest first."""
        table = webhook_outbox
        query = select(table).order_by(table.c.place.desc()).limit(limit)
        for column, value in ((table.c.tenant, tenant), (table.c.video_id, video_id), (table.c.status, status)):
            if value is not None:
                query = query.where(column == value)
        with self.engine.connect() as connection:
            return [_shown(row) for row in connection.execute(query).mappings()]

    def counts(self) -> dict[str, int]:
        """Events by status."""
        query = select(webhook_outbox.c.status, func.count()).group_by(webhook_outbox.c.status)
        with self.engine.connect() as connection:
            found = {status: count for status, count in connection.execute(query)}
        return {status: found.get(status, 0) for status in ("pending", "delivered", "dead")}

    def _write(self, event: Event, **values: Any) -> bool:  # noqa: ANN401
        mine = (webhook_outbox.c.id == event.id) & (webhook_outbox.c.claim == event.claim)
        with self.engine.begin() as connection:
            change = update(webhook_outbox).where(mine).values(claimed_until=0.0, **values)
            return connection.execute(change).rowcount == 1


def _event(row: Mapping[Any, Any], now: float) -> dict[str, Any]:
    event_id, name = f"evt_{secrets.token_hex(16)}", f"video.{row['status']}"
    # OpenAI's envelope. It says which job, and not what was in it: the receiver asks with its own key.
    payload = {"id": event_id, "object": "event", "type": name, "created_at": int(now), "data": {"id": row["id"]}}
    return {
        "id": event_id, "tenant": row["tenant"], "video_id": row["id"], "event": name, "url": row["webhook_url"],
        "host": (urlsplit(row["webhook_url"]).netloc or "")[:255], "payload": json.dumps(payload), "status": "pending",
        "created_at": now, "gives_up_at": now + GIVE_UP_S, "next_at": now, "tries": 0, "claim": 0,
        "claimed_until": 0.0, "traceparent": row["traceparent"]
    }  # fmt: skip


def _shown(row: Mapping[Any, Any]) -> Event:
    return Event(**{name: row[name] for name in Event.__dataclass_fields__})
