"""Work that is begun before its turn, so that whoever uses the results does not wait for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(items: Iterable[Item], begin: Callable[[Item], Future[Result]], depth: int) -> Iterator[Result]:
    """Yields the results in the items' order; up to `depth` further ones are under way meanwhile, and no more."""
    under_way: deque[Future[Result]] = deque()
    for item in items:
        under_way.append(begin(item))
        if len(under_way) > depth:
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()
