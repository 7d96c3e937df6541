"""Many small commits as one: what several threads want to write at the same moment shares a transaction.

On SQLite every durable commit waits for the disk, one after the other: with 50 clients the last would wait for 50
flushes. Here whoever comes while a transaction is being committed goes into the next one, each in a savepoint of its
own, so that one's refusal undoes nobody else's work. Nobody is told of success before the disk has it. A database that
groups commits itself (PostgreSQL) is left to do so.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine

from serving.jobs.database import writing

T = TypeVar("T")


class Grouped:
    """Writes of one engine's threads."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self._waiting: list[_Work] = []
        self._queue = threading.Lock()
        self._leading = threading.Lock()

    def run(self, work: Callable[[Connection], T]) -> T:
        """What `work` returns, once it is committed; whatever it raises, with nothing of it written."""
        if self._engine.dialect.name != "sqlite":
            with writing(self._engine) as connection:
                return work(connection)
        mine = _Work(work)
        with self._queue:
            self._waiting.append(mine)
        with self._leading:
            if not mine.done:
                with self._queue:
                    group, self._waiting = self._waiting, []
                self._commit(group)
        if mine.problem is not None:
            raise mine.problem
        return mine.value

    def _commit(self, group: list[_Work]) -> None:
        try:
            with writing(self._engine) as connection:
                for one in group:
                    one.try_it(connection, alone=len(group) == 1)
        except BaseException as problem:
            for one in group:
                one.problem = one.problem or problem
            if not isinstance(problem, Exception):
                raise
        finally:
            for one in group:
                one.done = True


class _Work:
    def __init__(self, work: Callable[[Connection], Any]):
        self._work = work
        self.value: Any = None
        self.problem: BaseException | None = None
        self.done = False

    def try_it(self, connection: Connection, *, alone: bool) -> None:
        if alone:
            self.value = self._work(connection)
            return
        try:
            with connection.begin_nested():
                self.value = self._work(connection)
        except Exception as problem:
            if not connection.in_transaction() or connection.invalidated:
                raise
            self.problem = problem
