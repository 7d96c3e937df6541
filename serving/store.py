"""Durable jobs. A job is committed before its sender is answered, and then it is never forgotten.

Whoever works on a job holds a *lease*: it names an owner, ends unless renewed, and carries a fencing token that grows
with every lease. Each write of a worker says "if the token is still mine", so that one who was thought dead and comes
back late cannot overwrite what his successor did. Every such write is one conditional UPDATE, which SQLite and
PostgreSQL both do atomically; nothing here needs a lock of its own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from sqlalchemy import Connection, Engine, RowMapping, and_, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from serving.blobs import new_id
from serving.database import videos
from serving.jobs import Settings, Status

Where = Any  # SQLAlchemy's boolean expression


@dataclass(frozen=True, kw_only=True)
class Video:
    """One job as the store has it. Times are Unix seconds."""

    id: str
    place: int
    status: Status
    stage: str
    progress: int
    version: int
    created_at: float
    started_at: float | None
    completed_at: float | None
    expires_at: float | None
    model: str
    model_version: str | None
    settings: Settings
    inputs: dict[str, str]
    remixed_from: str | None
    error_code: str | None
    error_message: str | None
    content_hash: str
    cancel_requested: bool
    attempts: int
    lease_owner: str | None
    lease_token: int
    lease_expires_at: float | None
    result_token: int | None


@dataclass(frozen=True)
class Lease:
    """The right to work on one job until `token` is outdated."""

    video: Video
    token: int


class Verdict(Enum):
    """What a worker should do next."""

    GO_ON = "go_on"
    CANCEL = "cancel"
    LOST = "lost"
    """The job is another's now, or deleted: stop and leave no trace."""


class IdempotencyError(Exception):
    """An Idempotency-Key was used before for another request."""


class JobStore:
    """The videos table. Safe to use from many threads and processes."""

    def __init__(self, engine: Engine, *, clock: Callable[[], float] = time.time):
        self.engine = engine
        self.clock = clock

    # What a client does

    def add(
        self, *, video_id: str, model: str, settings: Settings, inputs: dict[str, str], content_hash: str,
        idempotency_key: str | None = None, remixed_from: str | None = None
    ) -> tuple[Video, bool]:  # fmt: skip
        """Commits a job and returns it with True, or the job that its idempotency key already stands for with False.

        Raises IdempotencyError where the key stands for other content.
        """
        row = {
            "id": video_id,
            "status": Status.QUEUED,
            "stage": "queued",
            "created_at": self.clock(),
            "model": model,
            "settings": json.dumps(settings.to_dict()),
            "inputs": json.dumps(inputs),
            "content_hash": content_hash,
            "idempotency_key": idempotency_key,
            "remixed_from": remixed_from,
        }
        try:
            with self.engine.begin() as connection:
                connection.execute(insert(videos).values(row))
        except IntegrityError:
            earlier = self.find_by_key(idempotency_key, content_hash) if idempotency_key else None
            if earlier is None:
                raise
            return earlier, False
        return self._must_get(video_id), True

    def find_by_key(self, idempotency_key: str, content_hash: str) -> Video | None:
        """The job that a key stands for; IdempotencyError where that job is of other content."""
        earlier = self._one(videos.c.idempotency_key == idempotency_key)
        if earlier is not None and earlier.content_hash != content_hash:
            raise IdempotencyError(idempotency_key)
        return earlier

    def find_recent(self, content_hash: str, within_s: float) -> Video | None:
        """The latest job of the same content; what a client's automatic retry means without saying so."""
        recent = and_(videos.c.content_hash == content_hash, videos.c.created_at >= self.clock() - within_s)
        return self._one(recent, latest=True)

    def get(self, video_id: str) -> Video | None:
        return self._one(videos.c.id == video_id)

    def page(self, *, after: str | None, limit: int, descending: bool) -> tuple[list[Video], bool]:
        """Up to `limit` jobs beyond the cursor, and whether there are more. KeyError where the cursor is unknown."""
        query = select(videos).order_by(videos.c.place.desc() if descending else videos.c.place).limit(limit + 1)
        with self.engine.connect() as connection:
            if after is not None:
                place = connection.execute(select(videos.c.place).where(videos.c.id == after)).scalar()
                if place is None:
                    raise KeyError(after)
                query = query.where(videos.c.place < place if descending else videos.c.place > place)
            rows = connection.execute(query).mappings().all()
        return [_video(row) for row in rows[:limit]], len(rows) > limit

    def delete(self, video_id: str) -> bool:
        """Forgets a job; a worker on it learns so at its next report."""
        with self.engine.begin() as connection:
            return connection.execute(delete(videos).where(videos.c.id == video_id)).rowcount == 1

    def cancel(self, video_id: str) -> Video | None:
        """Ends a queued job at once; asks the worker of a running one to stop. A finished one stays as it is."""
        with self.engine.begin() as connection:
            changed = _set(
                connection,
                and_(videos.c.id == video_id, videos.c.status == Status.QUEUED),
                status=Status.CANCELLED,
                stage="cancelled",
                completed_at=self.clock(),
            )
            if not changed:
                running = and_(videos.c.id == video_id, videos.c.status == Status.IN_PROGRESS)
                _set(connection, running, cancel_requested=True)
        return self.get(video_id)

    # What a worker does

    def lease(self, owner: str, lease_s: float, max_attempts: int) -> Lease | None:
        """Takes the oldest job that waits, or whose worker has fallen silent; None where there is none."""
        self._bury(max_attempts)
        now = self.clock()
        free = (videos.c.status == Status.QUEUED) | _abandoned(now)
        query = select(videos.c.id, videos.c.lease_token).where(free).order_by(videos.c.place).limit(8)
        with self.engine.connect() as connection:
            candidates = connection.execute(query).all()
        for video_id, seen in candidates:
            with self.engine.begin() as connection:
                taken = _set(
                    connection,
                    and_(videos.c.id == video_id, videos.c.lease_token == seen, free),
                    status=Status.IN_PROGRESS,
                    stage="starting",
                    progress=0,
                    started_at=now,
                    attempts=videos.c.attempts + 1,
                    lease_owner=owner,
                    lease_token=seen + 1,
                    lease_expires_at=now + lease_s,
                )
            if taken:
                return Lease(self._must_get(video_id), seen + 1)
        return None

    def renew(self, video_id: str, token: int, lease_s: float) -> bool:
        """The dispatcher's heartbeat; False where the lease is no longer his."""
        with self.engine.begin() as connection:
            return _renew(connection, _held(video_id, token), self.clock() + lease_s)

    def report(self, video_id: str, token: int, *, stage: str, progress: int) -> Verdict:
        """Records how far a worker is, and tells it whether to go on."""
        with self.engine.begin() as connection:
            if not _set(connection, _held(video_id, token), stage=stage, progress=progress):
                return Verdict.LOST
        return self.verdict(video_id, token)

    def verdict(self, video_id: str, token: int) -> Verdict:
        """Whether a worker should go on; reads only, so it may be asked at every step."""
        with self.engine.connect() as connection:
            cancel = connection.execute(select(videos.c.cancel_requested).where(_held(video_id, token))).scalar()
        return Verdict.LOST if cancel is None else Verdict.CANCEL if cancel else Verdict.GO_ON

    def complete(self, video_id: str, token: int, *, model_version: str, expires_at: float) -> bool:
        """Commits this attempt's files as the result, once; False where the lease is no longer the worker's."""
        return self._finish(
            video_id, token, Status.COMPLETED, progress=100, model_version=model_version, expires_at=expires_at,
            result_token=token
        )  # fmt: skip

    def fail(self, video_id: str, token: int, *, code: str, message: str) -> bool:
        return self._finish(video_id, token, Status.FAILED, error_code=code, error_message=message)

    def cancelled(self, video_id: str, token: int) -> bool:
        """The worker has stopped: only now does the job say so."""
        return self._finish(video_id, token, Status.CANCELLED)

    def release(self, video_id: str, token: int, *, refund: bool) -> bool:
        """Gives a job back to the queue; with `refund` (a drain, no fault of its own) the attempt is not counted."""
        with self.engine.begin() as connection:
            attempts = videos.c.attempts - 1 if refund else videos.c.attempts
            return _set(
                connection, _held(video_id, token), status=Status.QUEUED, stage="queued", progress=0, started_at=None,
                attempts=attempts, lease_owner=None, lease_expires_at=None
            )  # fmt: skip

    # What the service asks

    def ids(self) -> list[str]:
        with self.engine.connect() as connection:
            return list(connection.execute(select(videos.c.id)).scalars())

    def queue_position(self, video: Video) -> int | None:
        """How many queued jobs are before it, plus one; None where it does not wait."""
        if video.status is not Status.QUEUED:
            return None
        before = and_(videos.c.status == Status.QUEUED, videos.c.place < video.place)
        with self.engine.connect() as connection:
            return connection.execute(select(func.count()).where(before)).scalar_one() + 1

    def counts(self) -> dict[Status, int]:
        query = select(videos.c.status, func.count()).group_by(videos.c.status)
        with self.engine.connect() as connection:
            found = {status: count for status, count in connection.execute(query)}
        return {status: found.get(status, 0) for status in Status}

    def render_seconds(self, last: int = 20) -> list[float]:
        """How long the last completed jobs took, newest first."""
        query = select(videos.c.completed_at - videos.c.started_at).where(videos.c.status == Status.COMPLETED)
        with self.engine.connect() as connection:
            return list(connection.execute(query.order_by(videos.c.completed_at.desc()).limit(last)).scalars())

    def expired(self) -> list[str]:
        """Finished jobs whose clips have outlived their time."""
        with self.engine.connect() as connection:
            over = and_(videos.c.expires_at < self.clock(), videos.c.result_token.is_not(None))
            return list(connection.execute(select(videos.c.id).where(over)).scalars())

    def expire(self, video_id: str) -> None:
        """The clip's bytes are gone; the job stays on record."""
        with self.engine.begin() as connection:
            _set(connection, videos.c.id == video_id, result_token=None, stage="expired")

    def _finish(self, video_id: str, token: int, status: Status, **values: Any) -> bool:  # noqa: ANN401
        with self.engine.begin() as connection:
            return _set(
                connection, _held(video_id, token), status=status, stage=str(status), completed_at=self.clock(),
                lease_owner=None, lease_expires_at=None, **values
            )  # fmt: skip

    def _bury(self, max_attempts: int) -> None:
        """Ends jobs over which too many workers have died, and cancelled ones whose worker has died."""
        now = self.clock()
        with self.engine.connect() as connection:
            if connection.execute(select(videos.c.id).where(_abandoned(now)).limit(1)).first() is None:
                return
        end: dict[str, Any] = {"completed_at": now, "lease_owner": None, "lease_expires_at": None}
        with self.engine.begin() as connection:
            _set(
                connection, and_(_abandoned(now), videos.c.cancel_requested), status=Status.CANCELLED,
                stage="cancelled", **end
            )  # fmt: skip
            _set(
                connection, and_(_abandoned(now), videos.c.attempts >= max_attempts), status=Status.FAILED,
                stage="failed", error_code="too_many_attempts",
                error_message=f"{max_attempts} workers were lost while rendering this job; it will not be tried again",
                **end
            )  # fmt: skip

    def _one(self, where: Where, *, latest: bool = False) -> Video | None:
        order = videos.c.place.desc() if latest else videos.c.place
        with self.engine.connect() as connection:
            row = connection.execute(select(videos).where(where).order_by(order).limit(1)).mappings().first()
        return _video(row) if row else None

    def _must_get(self, video_id: str) -> Video:
        video = self.get(video_id)
        assert video is not None, video_id
        return video


def new_video_id() -> str:
    return new_id("video")


def _held(video_id: str, token: int) -> Where:
    return and_(
        videos.c.id == video_id, videos.c.lease_token == token, videos.c.status == Status.IN_PROGRESS
    )  # fmt: skip


def _abandoned(now: float) -> Where:
    return and_(videos.c.status == Status.IN_PROGRESS, videos.c.lease_expires_at < now)


def _set(connection: Connection, where: Where, **values: Any) -> bool:  # noqa: ANN401
    """One conditional UPDATE, which clients see as one event; whether it changed anything."""
    values["version"] = videos.c.version + 1
    return connection.execute(update(videos).where(where).values(values)).rowcount >= 1


def _renew(connection: Connection, where: Where, expires_at: float) -> bool:
    # No event: a heartbeat is of no interest to a client.
    return connection.execute(update(videos).where(where).values(lease_expires_at=expires_at)).rowcount == 1


def _video(row: RowMapping) -> Video:
    names: Iterable[str] = Video.__dataclass_fields__
    values = {name: row[name] for name in names}
    values["status"] = Status(row["status"])
    values["settings"] = Settings(**json.loads(row["settings"]))
    values["inputs"] = json.loads(row["inputs"])
    return Video(**values)
