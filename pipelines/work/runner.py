"""Where operators run: here in a loop, or on Ray (`ray_runner`). Both give the same results."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from pipelines.clip import Clip
from pipelines.publishing.publication import Publication
from pipelines.watching import metrics
from pipelines.work.operators import Operator, unit_name

Advance = Callable[[int, Sequence[Clip]], None]
"""Called with the number of units done and the rows they became."""

SECONDS_BETWEEN_WORDS = 1.0


class Runner(Protocol):
    """Takes units through operators and commits shards. Results are on disk; what is returned is for the eye."""

    def run(self, operators: Sequence[Operator], units: Sequence[Clip], advance: Advance) -> None:
        """Takes every unit through the operators in turn; each operator records its outcomes."""
        ...

    def commit(self, publication: Publication, shards: Sequence[str], advance: Advance) -> None:
        """Writes planned shards."""
        ...

    def close(self) -> None:
        """Gives back what the runner holds."""
        ...


class LocalRunner:
    """One process, one unit after another. A unit that kills the process kills the run."""

    def run(self, operators: Sequence[Operator], units: Sequence[Clip], advance: Advance) -> None:
        for operator in operators:
            operator.setup()
        began = said = time.monotonic()
        try:
            for unit in units:
                clips = [unit]
                for operator in operators:
                    step = time.monotonic()
                    clips = operator.run_many(clips)
                    operator.meter.busy_seconds += time.monotonic() - step
                    operator.meter.blocks += 1
                advance(1, clips)
                if time.monotonic() - said > SECONDS_BETWEEN_WORDS:
                    said = time.monotonic()
                    _say(operators, said - began)
        finally:
            for operator in operators:
                operator.close()
        _say(operators, time.monotonic() - began)

    def commit(self, publication: Publication, shards: Sequence[str], advance: Advance) -> None:
        for shard in shards:
            publication.commit(shard)
            say_committed(publication, [shard])
            advance(1, ())

    def close(self) -> None:
        pass


def _say(operators: Sequence[Operator], seconds: float) -> None:
    for operator in operators:
        operator.meter.save(operator.work, operator.name, now=True)
    states = {o.name: {"workers": 1, "seconds": seconds, "queue": 0, "blocked": 0.0} for o in operators}
    metrics.say_operators(operators[0].work, {"operators": states})


def say_committed(publication: Publication, shards: Sequence[str]) -> None:
    """Counts the bytes of shards that were written just now."""
    records = [publication.plans.record(shard) for shard in shards]
    metrics.say_written(publication.work, sum(record["bytes"] for record in records if record))


def units_of(rows: Sequence[Clip], *, by_source: bool) -> int:
    """How many units became these rows. A unit's rows come back together, so no memory of earlier ones is needed."""
    return len({row.fingerprint if by_source else unit_name(row) for row in rows})
