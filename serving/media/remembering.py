"""Answers kept by key, so many and no more; who asks while another finds out waits for him."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class Remembered(Generic[T]):
    """The `most` last used answers; those that `keeps` is false of go only to who asked together."""

    def __init__(self, most: int, keeps: Callable[[T], bool]):
        self._most, self._keeps = most, keeps
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Future[T]] = OrderedDict()

    def get(self, key: str, find: Callable[[], T]) -> T:
        """The answer of `key`; what `find` raises is raised by everyone who waits, and forgotten."""
        with self._lock:
            known = self._known.get(key)
            if known is None:
                future = self._known[key] = Future()
            else:
                future = known
                self._known.move_to_end(key)
            while len(self._known) > self._most:
                self._known.popitem(last=False)
        if known is not None:
            return future.result()
        try:
            answer = find()
        except BaseException as problem:
            self._forget(key, future)
            future.set_exception(problem)
            raise
        if not self._keeps(answer):
            self._forget(key, future)
        future.set_result(answer)
        return answer

    def __len__(self) -> int:
        return len(self._known)

    def _forget(self, key: str, future: Future[T]) -> None:
        with self._lock:
            if self._known.get(key) is future:
                del self._known[key]
