"""Work ahead in threads: same order, bounded, and errors where they belong."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from dynamictrl.lookahead import Prefetched, ahead, grouped, prefetched_in_turn


def test_results_come_in_the_order_of_the_items_whichever_is_done_first():
    def slow_first(item: int) -> int:
        time.sleep(0.05 if item % 3 == 0 else 0)
        return item * item

    with ThreadPoolExecutor(4) as pool:
        assert list(ahead(slow_first, range(12), pool, 5)) == [k * k for k in range(12)]
    assert list(ahead(slow_first, range(4), None, 5)) == [0, 1, 4, 9]


def test_no_more_items_are_taken_than_was_said():
    taken = []

    def items() -> Iterator[int]:
        for k in range(50):
            taken.append(k)
            yield k

    with ThreadPoolExecutor(2) as pool:
        results = ahead(str, items(), pool, 3)
        next(results)
        assert len(taken) == 4
        next(results)
        assert len(taken) == 5


def test_an_error_comes_up_where_its_result_would_have():
    def work(item: int) -> int:
        if item == 2:
            raise ValueError("two")
        return item

    with ThreadPoolExecutor(2) as pool:
        results = ahead(work, range(5), pool, 4)
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(ValueError, match="two"):
            next(results)


def test_groups_count_items_and_keep_riders_in_their_places():
    items = [1, 2, "end", 3, "end", "end", 4, 5]
    is_end = lambda item: item == "end"  # noqa: E731
    assert list(grouped(items, 3, rides=is_end)) == [[1, 2, "end", 3], ["end", "end", 4, 5]]
    assert list(grouped(items, 3, rides=is_end, ends=True)) == [[1, 2, "end"], [3, "end"], ["end"], [4, 5]]
    assert list(grouped([], 3)) == []


def test_a_prefetched_iterable_gives_its_items_and_then_its_error():
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("broken")

    taken = iter(Prefetched(items(), 1))
    assert [next(taken), next(taken)] == [1, 2]
    with pytest.raises(ValueError, match="broken"):
        next(taken)


def test_an_iterable_left_in_the_middle_ends_its_thread():
    before = threading.active_count()
    for item in Prefetched(iter(range(1000)), 2):
        if item == 3:
            break
    for _ in range(50):
        if threading.active_count() == before:
            break
        time.sleep(0.05)
    assert threading.active_count() == before


def test_sources_are_read_in_turn_while_the_next_ones_are_begun():
    begun: list[str] = []

    def source(name: str) -> Iterator[str]:
        begun.append(name)
        yield from (f"{name}{k}" for k in range(3))

    turns = prefetched_in_turn((source(name) for name in "abcd"), 2, 1)
    first = next(turns)
    assert list(first) == ["a0", "a1", "a2"]
    for _ in range(50):
        if len(begun) == 2:
            break
        time.sleep(0.02)
    assert sorted(begun) == ["a", "b"]
    assert [list(turn) for turn in turns] == [[f"{name}{k}" for k in range(3)] for name in "bcd"]
