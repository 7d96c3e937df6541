"""Who did what, when, from where, and what came of it. A table that is only ever added to; never a prompt or a medium.

Every request that makes, changes, downloads or deletes, every refused key, and every `python -m serving key` is a row.
The answer to a request is sent once its row is committed. Rows of requests that come together are committed together,
so that a busy service pays for one commit and not for fifty.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import Engine, insert, select

from serving.tenants.tables import audit_log

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row."""

    tenant: str
    action: str
    """POST /v1/videos/{video_id}/cancel, or key.create"""
    key_id: str = ""
    target: str = ""
    """An id of ours that it was about."""
    address: str = ""
    status: int = 0
    """HTTP's; 0 for the command line."""
    code: str = ""
    """The error's code, where there was one."""
    request_id: str = ""
    at: float = 0.0
    """Unix seconds."""


class AuditLog:
    """The audit_log table."""

    def __init__(self, engine: Engine):
        self.engine = engine

    def add(self, entries: Sequence[Entry]) -> None:
        rows = [{**asdict(entry), "at": entry.at or time.time()} for entry in entries]
        with self.engine.begin() as connection:
            connection.execute(insert(audit_log), rows)

    def read(
        self, *, tenant: str | None = None, since: float = 0.0, action: str = "", limit: int = 100
    ) -> list[Entry]:  # fmt: skip
        """The latest rows, oldest first."""
        query = select(audit_log).where(audit_log.c.at >= since).order_by(audit_log.c.place.desc()).limit(limit)
        if tenant is not None:
            query = query.where(audit_log.c.tenant == tenant)
        if action:
            query = query.where(audit_log.c.action.contains(action, autoescape=True))
        names = Entry.__dataclass_fields__
        with self.engine.connect() as connection:
            rows = connection.execute(query).mappings().all()
        return [Entry(**{name: row[name] for name in names}) for row in reversed(rows)]


class AuditWriter:
    """An AuditLog for an event loop: whoever comes while a commit runs goes into the next one."""

    def __init__(self, log: AuditLog):
        self._log = log
        self._waiting: list[tuple[Entry, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None

    async def add(self, entry: Entry) -> None:
        """Returns once the row is committed, or could not be: then the log says so, and the service goes on."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((entry, done))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.get_running_loop().create_task(self._write())
        await done

    async def _write(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                await asyncio.to_thread(self._log.add, [entry for entry, _ in batch])
            except Exception:
                logger.exception("%d rows of the audit log could not be written", len(batch))
            for _, done in batch:
                if not done.done():
                    done.set_result(None)
