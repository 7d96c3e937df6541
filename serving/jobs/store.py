"""Durable jobs. A job is committed before its sender is answered, and then it is never forgotten.

Every change is one transaction: a conditional UPDATE, its event, and what follows from a job's end (its cost is booked,
its webhook written). SQLite and PostgreSQL both do that atomically.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Collection, Mapping

from sqlalchemy import Connection, Engine, and_, case, delete, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError

from serving.jobs.database import videos, writing
from serving.jobs.ending import FACTS, after_deletion
from serving.jobs.estimates import Estimates, remaining
from serving.jobs.grouping import Grouped
from serving.jobs.idempotency import LOCAL, IdempotencyError, key_of
from serving.jobs.job import Settings, Status
from serving.jobs.leasing import JobQueue, Lease, Verdict, cost
from serving.jobs.queue_view import QueueView
from serving.jobs.record import Event, Video, Where, events, record, to_event, to_video
from serving.jobs.turns import AGEING_S, Cap
from serving.results.blobs import new_id

__all__ = ["JobStore", "Lease", "Verdict", "Video", "new_video_id"]

EVENTS_KEPT_S = 24 * 3600.0
"""Seconds for which a client that comes back is told every change that it has missed."""
_ADD = insert(videos).returning(*videos.c)
_RETRY_LOCK = 0x44595254
"""PostgreSQL's number of the locks under which requests of one content are told apart."""


Pin = Callable[[str, str], str | None]


class JobStore(JobQueue):
    """The videos table. Safe to use from many threads and processes."""

    def __init__(
        self, engine: Engine, *, clock: Callable[[], float] = time.time, cap: Cap = lambda tenant: None,
        gpus: float = 1.0, fresh_s: float = 0.5, pin: Pin = lambda tenant, video_id: None
    ):  # fmt: skip
        """`pin` says which version of the model a tenant's new job has to be rendered with, where that matters."""
        super().__init__(engine, clock=clock, cap=cap, gpus=gpus)
        self.pin = pin
        self.estimates = Estimates(engine)
        self._grouped = Grouped(engine)
        self.queue = QueueView(engine, fresh_s=fresh_s, clock=clock)

    # What a client does

    def add(
        self, *, video_id: str, model: str, settings: Settings, inputs: dict[str, str], content_hash: str,
        idempotency_key: str | None = None, remixed_from: str | None = None, tenant: str = LOCAL, priority: int = 0,
        queue_deadline_at: float | None = None, deadline_at: float | None = None, not_before: float | None = None,
        gpu_seconds_estimate: float | None = None, traceparent: str | None = None, webhook_url: str | None = None,
        target_version: str | None = None, stored_bytes: int = 0, received_at: float | None = None,
        retry_within_s: float | None = None, admit: Callable[[Connection, float], None] | None = None
    ) -> tuple[Video, bool]:  # fmt: skip
        """Commits a job and returns it with True, or with False the job that the same request has made before.

        The same request is one with the same idempotency key; or, given `received_at`, an SDK's automatic retry (it
        says how long back to look: `retry_within_s`) and what it retries, whichever comes first. Raises
        IdempotencyError where the key stands for other content.

        `admit`, given the job's estimate in GPU seconds, may raise to refuse it, in the transaction that would add it.
        """
        now = self.clock()
        row = {
            "id": video_id,
            "status": Status.QUEUED,
            "stage": "queued",
            "created_at": now,
            "rank": now - AGEING_S * priority,
            "model": model,
            "settings": json.dumps(settings.to_dict()),
            "inputs": json.dumps(inputs),
            "content_hash": content_hash,
            "idempotency_key": key_of(tenant, idempotency_key) if idempotency_key else None,
            "by_retry": retry_within_s is not None,
            "remixed_from": remixed_from,
            "tenant": tenant,
            "priority": priority,
            "queue_deadline_at": queue_deadline_at,
            "deadline_at": deadline_at,
            "not_before": not_before,
            "gpu_seconds_estimate": gpu_seconds_estimate or self.estimates.seconds(model, settings, inputs),
            "traceparent": traceparent,
            "webhook_url": webhook_url,
            "target_version": target_version or self.pin(tenant, video_id),
            "stored_bytes": stored_bytes,
        }

        def write(connection: Connection) -> tuple[Video, bool]:
            if received_at is not None and idempotency_key is None:
                twin = self._twin(connection, content_hash, tenant, received_at, retry_within_s)
                if twin is not None:
                    return twin, False
            if admit is not None:
                admit(connection, (row["gpu_seconds_estimate"] or 0.0) * self.gpus)
            added = connection.execute(_ADD, row).mappings().one()
            record(connection, [added], now=now)
            return to_video(added), True

        try:
            return self._grouped.run(write)
        except IntegrityError:
            earlier = self.find_by_key(idempotency_key, content_hash, tenant) if idempotency_key else None
            if earlier is None:
                raise
            return earlier, False

    def find_by_key(self, idempotency_key: str, content_hash: str, tenant: str = LOCAL) -> Video | None:
        """The job that a tenant's key stands for; IdempotencyError where that job is of other content."""
        earlier = self._one(videos.c.idempotency_key == key_of(tenant, idempotency_key))
        if earlier is not None and earlier.content_hash != content_hash:
            raise IdempotencyError(idempotency_key)
        return earlier

    def find_recent(self, content_hash: str, within_s: float, tenant: str = LOCAL) -> Video | None:
        """A tenant's latest job of the same content; what a client's automatic retry means without saying so."""
        return self._one(_same(content_hash, tenant, self.clock() - within_s), latest=True)

    def get(self, video_id: str, tenant: str | None = None) -> Video | None:
        """One job; with a tenant only where it is his."""
        return self._one(and_(videos.c.id == video_id, *_of(tenant)))

    def page(
        self, *, after: str | None, limit: int, descending: bool, tenant: str | None = None
    ) -> tuple[list[Video], bool]:
        """Up to `limit` jobs beyond the cursor, and whether there are more. KeyError where the cursor is unknown."""
        query = select(videos).order_by(videos.c.place.desc() if descending else videos.c.place).limit(limit + 1)
        query = query.where(*_of(tenant))
        with self.engine.connect() as connection:
            if after is not None:
                cursor = select(videos.c.place).where(videos.c.id == after, *_of(tenant))
                place = connection.execute(cursor).scalar()
                if place is None:
                    raise KeyError(after)
                query = query.where(videos.c.place < place if descending else videos.c.place > place)
            rows = connection.execute(query).mappings().all()
        return [to_video(row) for row in rows[:limit]], len(rows) > limit

    def delete(self, video_id: str) -> bool:
        """Forgets a job; a worker on it learns so at its next report."""
        with self.engine.begin() as connection:
            now = self.clock()
            facts = [column for column in FACTS if column.name != "gpu_seconds"]
            gone = (
                delete(videos)
                .where(videos.c.id == video_id)
                .returning(*facts, cost(now, self.gpus).label("gpu_seconds"))
            )
            rows = connection.execute(gone).mappings().all()
            connection.execute(delete(events).where(events.c.video_id == video_id))
            after_deletion(connection, rows, now)
            return len(rows) == 1

    def cancel(self, video_id: str) -> Video | None:
        """Ends a queued job at once; asks the worker of a running one to stop. A finished one stays as it is."""
        with writing(self.engine) as connection:
            now = self.clock()
            queued = videos.c.status == Status.QUEUED
            # One statement: a job must not slip from the one state to the other between two.
            self._change(
                connection,
                and_(videos.c.id == video_id, videos.c.status.in_([Status.QUEUED, Status.IN_PROGRESS])),
                ends=True,
                cancel_requested=True,
                status=case((queued, Status.CANCELLED.value), else_=videos.c.status),
                stage=case((queued, "cancelled"), else_=videos.c.stage),
                completed_at=case((queued, now), else_=videos.c.completed_at),
            )
        return self.get(video_id)

    # What a listener asks

    def versions(self, video_ids: Collection[str]) -> dict[str, int]:
        """The latest version of each job that there is."""
        found: dict[str, int] = {}
        with self.engine.connect() as connection:
            for some in _chunks(list(video_ids)):
                query = select(videos.c.id, videos.c.version).where(videos.c.id.in_(some))
                found.update({video_id: version for video_id, version in connection.execute(query)})
        return found

    def many(self, video_ids: Collection[str]) -> dict[str, Video]:
        found: dict[str, Video] = {}
        with self.engine.connect() as connection:
            for some in _chunks(list(video_ids)):
                rows = connection.execute(select(videos).where(videos.c.id.in_(some))).mappings()
                found.update({row["id"]: to_video(row) for row in rows})
        return found

    def events(self, video_id: str, after: int) -> list[Event]:
        """A job's changes beyond a version, oldest first, as far back as they are kept."""
        query = select(events).where(events.c.video_id == video_id, events.c.version > after)
        with self.engine.connect() as connection:
            return [to_event(row) for row in connection.execute(query.order_by(events.c.version)).mappings()]

    def events_beyond(self, seen: Mapping[str, int]) -> dict[str, list[Event]]:
        """Several jobs' changes, each beyond a version of its own."""
        found: dict[str, list[Event]] = {}
        with self.engine.connect() as connection:
            for some in _chunks(list(seen)):
                lowest = min(seen[video_id] for video_id in some)
                query = select(events).where(events.c.video_id.in_(some), events.c.version > lowest)
                for row in connection.execute(query.order_by(events.c.version)).mappings():
                    if row["version"] > seen[row["video_id"]]:
                        found.setdefault(row["video_id"], []).append(to_event(row))
        return found

    def queue_position(self, video: Video) -> int | None:
        """How many queued jobs come before it, plus one; None where it does not wait."""
        if video.status is not Status.QUEUED:
            return None
        return self.queue.outlook(video.tenant, video.rank, video.place).position

    def eta_s(self, video: Video) -> float | None:
        """Seconds until a job is done; None where nothing is known yet, or it is over."""
        if video.status is Status.IN_PROGRESS and video.started_at is not None:
            left = remaining(video.gpu_seconds_estimate, self.clock() - video.started_at, video.progress)
            return None if left is None else round(left, 1)
        if video.status is not Status.QUEUED:
            return None
        wait = self.queue.outlook(video.tenant, video.rank, video.place).wait_s
        own = video.gpu_seconds_estimate or self.estimates.seconds(video.model, video.settings, video.inputs)
        return None if wait is None or own is None else round(wait + own, 1)

    def forecast(
        self, *, model: str, settings: Settings, media: Collection[str], tenant: str = LOCAL, priority: int = 0
    ) -> tuple[float | None, float | None]:
        """What a job that came now would cost in GPU-seconds, and in how many seconds it would be done."""
        cost_s = self.estimates.seconds(model, settings, list(media))
        wait_s = self.queue.outlook(tenant, self.clock() - AGEING_S * priority, 2**62).wait_s
        return cost_s, None if cost_s is None or wait_s is None else round(cost_s + wait_s, 1)

    # What the service asks

    def ids(self) -> list[str]:
        with self.engine.connect() as connection:
            return list(connection.execute(select(videos.c.id)).scalars())

    def counts(self) -> dict[Status, int]:
        query = select(videos.c.status, func.count()).group_by(videos.c.status)
        with self.engine.connect() as connection:
            found = {status: count for status, count in connection.execute(query)}
        return {status: found.get(status, 0) for status in Status}

    def queued_gpu_seconds(self) -> tuple[float, int]:
        """Estimated GPU-seconds that wait, and how many waiting jobs have no estimate yet."""
        unknown = case((videos.c.gpu_seconds_estimate.is_(None), 1), else_=0)
        query = select(func.coalesce(func.sum(videos.c.gpu_seconds_estimate), 0.0), func.coalesce(func.sum(unknown), 0))
        with self.engine.connect() as connection:
            seconds, count = connection.execute(query.where(videos.c.status == Status.QUEUED)).one()
        return float(seconds), int(count)

    def fill_estimates(self, limit: int = 200) -> int:
        """Estimates waiting jobs that came before anything was known; returns how many."""
        unknown = and_(videos.c.status == Status.QUEUED, videos.c.gpu_seconds_estimate.is_(None))
        with self.engine.connect() as connection:
            rows = connection.execute(select(videos).where(unknown).limit(limit)).mappings().all()
        filled = 0
        for video in map(to_video, rows):
            seconds = self.estimates.seconds(video.model, video.settings, video.inputs)
            if seconds is not None:
                mine = and_(videos.c.id == video.id, videos.c.gpu_seconds_estimate.is_(None))
                with self.engine.begin() as connection:
                    connection.execute(update(videos).where(mine).values(gpu_seconds_estimate=seconds))
                filled += 1
        return filled

    def expired(self) -> list[str]:
        """Finished jobs whose clips have outlived their time."""
        with self.engine.connect() as connection:
            over = and_(videos.c.expires_at < self.clock(), videos.c.result_token.is_not(None))
            return list(connection.execute(select(videos.c.id).where(over)).scalars())

    def expire(self, video_id: str) -> None:
        """The clip's bytes are gone; the job stays on record."""
        with writing(self.engine) as connection:
            self._change(connection, videos.c.id == video_id, result_token=None, stage="expired", stored_bytes=0)

    def outlived(self, kept_s: float, limit: int = 500) -> list[str]:
        """Jobs that ended so long ago that their record may go, the oldest first."""
        ended = videos.c.status.in_([status for status in Status if status.is_final])
        over = and_(ended, videos.c.completed_at < self.clock() - kept_s, videos.c.result_token.is_(None))
        with self.engine.connect() as connection:
            query = select(videos.c.id).where(over).order_by(videos.c.completed_at).limit(limit)
            return list(connection.execute(query).scalars())

    def forget_events(self, events_kept_s: float = EVENTS_KEPT_S) -> None:
        """Removes events that are past their time."""
        with self.engine.begin() as connection:
            connection.execute(delete(events).where(events.c.at < self.clock() - events_kept_s))

    # Within

    def _twin(
        self, connection: Connection, content_hash: str, tenant: str, received_at: float, retry_within_s: float | None
    ) -> Video | None:
        """The job of the same request: for a retry any recent one, for the request itself one that its retry made."""
        if connection.dialect.name == "postgresql":
            key = {"space": _RETRY_LOCK, "content": zlib.crc32(f"{tenant} {content_hash}".encode()) - 2**31}
            connection.execute(text("SELECT pg_advisory_xact_lock(:space, :content)"), key)
        if retry_within_s is not None:
            same = _same(content_hash, tenant, self.clock() - retry_within_s)
        else:
            same = and_(_same(content_hash, tenant, received_at), videos.c.by_retry)
        row = connection.execute(select(videos).where(same).order_by(videos.c.place.desc()).limit(1)).mappings().first()
        return to_video(row) if row else None

    def _one(self, where: Where, *, latest: bool = False) -> Video | None:
        order = videos.c.place.desc() if latest else videos.c.place
        with self.engine.connect() as connection:
            row = connection.execute(select(videos).where(where).order_by(order).limit(1)).mappings().first()
        return to_video(row) if row else None


def new_video_id() -> str:
    return new_id("video")


def _of(tenant: str | None) -> list[Where]:
    return [] if tenant is None else [videos.c.tenant == tenant]


def _same(content_hash: str, tenant: str, since: float) -> Where:
    return and_(videos.c.content_hash == content_hash, videos.c.created_at >= since, videos.c.tenant == tenant)


def _chunks(ids: list[str], size: int = 500) -> list[list[str]]:
    return [ids[start : start + size] for start in range(0, len(ids), size)]
