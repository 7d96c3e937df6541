"""What those who work on jobs do with the store.

Whoever works on a job holds a *lease*: it names an owner, ends unless renewed, and carries a fencing token that grows
with every lease. Each write of a worker says "if the token is still mine", so that one who was thought dead and comes
back late cannot overwrite what his successor did. While the database is away a worker goes on rendering, and its last
word is said again until it is heard.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, RowMapping, and_, case, exists, func, or_, select, update

from serving.jobs import estimates
from serving.jobs.database import videos, writing
from serving.jobs.job import Status
from serving.jobs.patience import get_through, or_else
from serving.jobs.record import Video, Where, change, to_video
from serving.jobs.turns import RECENT_S, Cap, next_job, used_since
from serving.watching.metrics import LEASES_EXPIRED

LATE_S = 30.0
"""Seconds beyond the longest job after which its lease is no longer kept: its worker hangs."""


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
    """The job is another's now, past its deadline, or deleted: stop and leave no trace."""


class JobQueue:
    """The part of the store that dispatchers and workers use. Safe for many threads and processes."""

    def __init__(
        self, engine: Engine, *, clock: Callable[[], float] = time.time, cap: Cap = lambda tenant: None,
        gpus: float = 1.0
    ):  # fmt: skip
        """`gpus` are those of one engine: what a second of it costs."""
        self.engine = engine
        self.gpus = gpus
        self.clock = clock
        self.cap = cap
        self._used: tuple[float, dict[str, float]] = (float("-inf"), {})

    # A dispatcher

    def lease(
        self, owner: str, lease_s: float, max_attempts: int, *, versions: Collection[str] | None = None,
        sweep: bool = True
    ) -> Lease | None:  # fmt: skip
        """Takes the job whose turn it is; None where none may run.

        `versions` are the model versions that the owner's workers have: a job that is pinned to another one waits.
        `sweep` first, unless the owner does so itself.
        """
        now = self.clock()
        if not self._anything_waits(now):
            return None
        if sweep:
            self.sweep(max_attempts)
        with writing(self.engine) as connection:
            chosen = next_job(connection, now=now, used=self._recent_use(connection), cap=self.cap, versions=versions)
            if chosen is None:
                return None
            taken = self._change(
                connection,
                and_(videos.c.id == chosen.id, videos.c.lease_token == chosen.lease_token),
                status=Status.IN_PROGRESS,
                stage="starting",
                progress=0,
                step=None,
                steps=None,
                started_at=now,
                attempts=videos.c.attempts + 1,
                lease_owner=owner,
                lease_token=chosen.lease_token + 1,
                lease_expires_at=now + lease_s,
            )
        return Lease(to_video(taken[0]), chosen.lease_token + 1) if taken else None

    def renew(self, video_id: str, token: int, lease_s: float, *, longest_s: float | None = None) -> bool:
        """The heartbeat; False where the lease is no longer his, or the attempt has lasted longer than it ever may."""
        now = self.clock()
        held = _held(video_id, token)
        if longest_s is not None:
            held = and_(held, videos.c.started_at > now - longest_s)
        # No event: a heartbeat is of no interest to a client.
        statement = update(videos).where(held).values(lease_expires_at=now + lease_s)
        with self.engine.begin() as connection:
            return connection.execute(statement).rowcount == 1

    def release(self, video_id: str, token: int, *, refund: bool, wait_s: float = 0.0) -> bool:
        """Gives a job back to the queue, or ends it where it was to be cancelled.

        With `refund` (a drain, no fault of its own) the attempt is not counted. It is not leased for `wait_s` seconds.
        """
        now = self.clock()

        def give_back(connection: Connection) -> bool:
            held, cancel = _held(video_id, token), videos.c.cancel_requested
            ended = self._end(connection, and_(held, cancel), Status.CANCELLED)
            back = self._requeue(
                connection, held, attempts=videos.c.attempts - 1 if refund else videos.c.attempts,
                not_before=now + wait_s if wait_s else None
            )  # fmt: skip
            return bool(ended or back)

        return get_through(lambda: self._written(give_back))

    def running(self) -> int:
        """Jobs whose lease is alive, whoever holds it."""
        alive = and_(videos.c.status == Status.IN_PROGRESS, videos.c.lease_expires_at >= self.clock())
        with self.engine.connect() as connection:
            return connection.execute(select(func.count()).where(alive)).scalar_one()

    def sweep(self, max_attempts: int) -> None:
        """Ends what is past its deadlines, and gives the jobs of silent owners back to the queue."""
        now = self.clock()
        unserved, *late = _late(now)
        silent = _silent(now)
        with self.engine.connect() as connection:
            due = [exists().where(where) for where in (unserved, *late, silent)]
            if not connection.execute(select(or_(*due))).scalar():
                return
        with writing(self.engine) as connection:
            self._end(
                connection, unserved, Status.FAILED, error_code="queue_timeout",
                error_message="no worker was free before the job's queue deadline"
            )  # fmt: skip
            for where in late:
                self._end(
                    connection, where, Status.FAILED, error_code="deadline_exceeded",
                    error_message="the job was not done before its deadline"
                )  # fmt: skip
            self._end(connection, and_(silent, videos.c.cancel_requested), Status.CANCELLED)
            self._end(
                connection, and_(silent, videos.c.attempts >= max_attempts), Status.FAILED,
                **too_many_attempts(max_attempts)
            )  # fmt: skip
            taken_up = self._requeue(connection, silent)
        LEASES_EXPIRED.inc(len(taken_up))

    # A worker

    def report(
        self, video_id: str, token: int, *, stage: str, progress: int, step: int | None = None, steps: int | None = None
    ) -> Verdict:
        """Records how far a worker is, and tells it whether to go on."""

        def tell(connection: Connection) -> Verdict:
            held = _held(video_id, token)
            rows = self._change(connection, held, stage=stage, progress=progress, step=step, steps=steps)
            return _verdict(rows[0]["cancel_requested"] if rows else None)

        return or_else(lambda: self._written(tell), Verdict.GO_ON)

    def verdict(self, video_id: str, token: int) -> Verdict:
        """Whether a worker should go on; reads only, so it may be asked at every step."""

        def ask() -> Verdict:
            with self.engine.connect() as connection:
                query = select(videos.c.cancel_requested).where(_held(video_id, token))
                return _verdict(connection.execute(query).scalar())

        return or_else(ask, Verdict.GO_ON)

    def complete(self, video_id: str, token: int, *, model_version: str, expires_at: float, **values: Any) -> bool:  # noqa: ANN401
        """Commits this attempt's files as the result, once; False where the lease is no longer the worker's.

        `values` are further columns of the job that the result determines, such as `manifest`.
        """

        def commit(connection: Connection) -> bool:
            rows = self._end(
                connection, _held(video_id, token), Status.COMPLETED, progress=100, model_version=model_version,
                expires_at=expires_at, result_token=token, **values
            )  # fmt: skip
            for row in rows:
                estimates.learn(
                    connection, model=row["model"], settings=row["settings"], inputs=row["inputs"],
                    seconds=row["completed_at"] - row["started_at"], at=row["completed_at"]
                )  # fmt: skip
            # A commit whose answer was lost with the connection is heard at the second time.
            mine = and_(videos.c.id == video_id, videos.c.result_token == token)
            return bool(rows) or connection.execute(select(videos.c.id).where(mine)).first() is not None

        return get_through(lambda: self._written(commit))

    def fail(self, video_id: str, token: int, *, code: str, message: str) -> bool:
        return self._finish(video_id, token, Status.FAILED, error_code=code, error_message=message)

    def cancelled(self, video_id: str, token: int) -> bool:
        """The worker has stopped: only now does the job say so."""
        return self._finish(video_id, token, Status.CANCELLED)

    # Within

    def _finish(self, video_id: str, token: int, status: Status, **values: Any) -> bool:  # noqa: ANN401
        def end(connection: Connection) -> bool:
            rows = self._end(connection, _held(video_id, token), status, **values)
            again = and_(videos.c.id == video_id, videos.c.lease_token == token, videos.c.status == status)
            return bool(rows) or connection.execute(select(videos.c.id).where(again)).first() is not None

        return get_through(lambda: self._written(end))

    def _written(self, write: Callable[[Connection], Any]) -> Any:  # noqa: ANN401
        with writing(self.engine) as connection:
            return write(connection)

    def _change(self, connection: Connection, where: Where, **values: Any) -> list[RowMapping]:  # noqa: ANN401
        return change(connection, where, now=self.clock(), **values)

    def _end(self, connection: Connection, where: Where, status: Status, **values: Any) -> list[RowMapping]:  # noqa: ANN401
        """Ends jobs; what the attempt that ran has cost is added up."""
        now = self.clock()
        return self._change(
            connection, where, ends=True, status=status, stage=str(status), completed_at=now, lease_owner=None,
            lease_expires_at=None, gpu_seconds=cost(now, self.gpus), **values
        )  # fmt: skip

    def _requeue(self, connection: Connection, where: Where, **values: Any) -> list[RowMapping]:  # noqa: ANN401
        return self._change(
            connection, where, status=Status.QUEUED, stage="queued", progress=0, step=None, steps=None, started_at=None,
            lease_owner=None, lease_expires_at=None, gpu_seconds=cost(self.clock(), self.gpus), **values
        )  # fmt: skip

    def _anything_waits(self, now: float) -> bool:
        """Asked ten times a second: reads only, so that an idle dispatcher disturbs no writer."""
        queued = exists().where(videos.c.status == Status.QUEUED)
        with self.engine.connect() as connection:
            return bool(connection.execute(select(or_(queued, exists().where(_silent(now))))).scalar())

    def _recent_use(self, connection: Connection) -> dict[str, float]:
        """GPU-seconds that each tenant has used of late; read once a second, for it only orders equals."""
        now = self.clock()
        if not 0 <= now - self._used[0] < 1.0:
            self._used = (now, used_since(connection, now - RECENT_S))
        return self._used[1]


def too_many_attempts(limit: int) -> dict[str, str]:
    """Why a job over which so many workers died is not tried again."""
    message = f"{limit} workers were lost while rendering this job; it will not be tried again"
    return {"error_code": "too_many_attempts", "error_message": message}


def _verdict(cancel: bool | None) -> Verdict:
    return Verdict.LOST if cancel is None else Verdict.CANCEL if cancel else Verdict.GO_ON


def _held(video_id: str, token: int) -> Where:
    return and_(
        videos.c.id == video_id, videos.c.lease_token == token, videos.c.status == Status.IN_PROGRESS
    )  # fmt: skip


def _silent(now: float) -> Where:
    return and_(videos.c.status == Status.IN_PROGRESS, videos.c.lease_expires_at < now)


def _late(now: float) -> list[Where]:
    """Jobs that no worker has taken in time, then those that are not done in time; each along an index of its own."""
    unserved = and_(videos.c.status == Status.QUEUED, videos.c.queue_deadline_at < now, videos.c.attempts == 0)
    undone = [
        and_(videos.c.status == status, videos.c.deadline_at < now) for status in (Status.QUEUED, Status.IN_PROGRESS)
    ]
    return [unserved, *undone]


def cost(now: float, gpus: float) -> ColumnElement[float]:
    """GPU-seconds of all attempts, with the one that ends now, on an engine of so many GPUs."""
    attempt = case((videos.c.started_at.is_not(None), (now - videos.c.started_at) * gpus), else_=0.0)
    return func.coalesce(videos.c.gpu_seconds, 0.0) + attempt
