"""What a run has cost so far, by stage, from its records: seconds that were spent once, whoever spent them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipelines.records.ledger import Ledger, Result
from pipelines.stage import Cost


def of_run(work: Path) -> dict[str, Cost]:
    """By stage, over all sources and clips on record in a work folder."""
    total: dict[str, Cost] = {}
    for stage, cost in _spent(work):
        total.setdefault(stage, Cost()).add(cost)
    return total


def _spent(work: Path) -> Iterator[tuple[str, Cost]]:
    for ledger in (Ledger(work, "sources"), Ledger(work, "clips")):
        for unit in ledger.units():
            for result in ledger.load(unit).results.values():
                yield from _of_result(result)


def _of_result(result: Result) -> Iterator[tuple[str, Cost]]:
    if result.costs:
        yield from ((stage, Cost(*numbers)) for stage, numbers in result.costs.items())
    elif not result.rows:
        yield result.stage, Cost(1, result.seconds, result.cpu_seconds)
