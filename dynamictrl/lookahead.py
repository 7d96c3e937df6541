"""Work done ahead of who asks for it: in order, in threads, and never further ahead than said.

    with ThreadPoolExecutor(4) as pool:
        for answer in ahead(ask, grouped(ahead(prepare, items, pool, 16), 8), pool, 2): ...

Each step is a generator over the one before. Results come in the order of the items, and what a function raises comes
up where its result would have.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import suppress
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_POLL = 0.1
"""Seconds between a full queue's looks at whether anyone still wants what is in it."""


def ahead(function: Callable[[T], R], items: Iterable[T], pool: Executor | None, depth: int) -> Iterator[R]:
    """`map`, with up to `depth` further calls under way in `pool`; None calls here and now."""
    if pool is None:
        yield from map(function, items)
        return
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def grouped(
    items: Iterable[T], size: int, *, rides: Callable[[T], bool] = lambda _: False, ends: bool = False
) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter; items that ride along are not counted and keep their place.

    With `ends` a group is closed behind each item that rides along.
    """
    group: list[T] = []
    count = 0
    for item in items:
        group.append(item)
        riding = rides(item)
        count += not riding
        if count == size or (ends and riding):
            yield group
            group, count = [], 0
    if group:
        yield group


class Prefetched(Generic[T]):
    """An iterable run through by a thread of its own, at most `depth` items ahead. Iterate once, or close."""

    def __init__(self, items: Iterable[T], depth: int):
        self._items = items
        self._queue: queue.Queue[tuple[bool, T | BaseException | None]] = queue.Queue(depth)
        self._unwanted = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for item in self._items:
                if not self._put(True, item):
                    return
            self._put(False, None)
        except BaseException as problem:  # noqa: BLE001 - raised again where the items are taken
            self._put(False, problem)

    def _put(self, more: bool, what: T | BaseException | None) -> bool:
        while not self._unwanted.is_set():
            with suppress(queue.Full):
                self._queue.put((more, what), timeout=_POLL)
                return True
        return False

    def __iter__(self) -> Iterator[T]:
        try:
            while True:
                more, what = self._queue.get()
                if more:
                    yield what  # pyright: ignore[reportReturnType] - an item where there is more
                elif isinstance(what, BaseException):
                    raise what
                else:
                    return
        finally:
            self.close()

    def close(self) -> None:
        """Stops the thread after the item it is at, whether or not all was taken."""
        self._unwanted.set()


def prefetched_in_turn(sources: Iterable[Iterable[T]], at_once: int, depth: int) -> Iterator[Iterable[T]]:
    """Yields each source as an iterable that `at_once` threads run ahead of, also into the next sources."""
    open_: deque[Prefetched[T]] = deque()
    try:
        for source in sources:
            open_.append(Prefetched(source, depth))
            if len(open_) == at_once:
                yield open_[0]
                open_.popleft().close()
        while open_:
            yield open_[0]
            open_.popleft().close()
    finally:
        for one in open_:
            one.close()
