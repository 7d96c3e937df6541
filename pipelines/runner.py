"""Where operators run: here in a loop, or on Ray (`ray_runner`). Both give the same results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from pipelines.clip import Clip
from pipelines.operators import Operator, unit_name
from pipelines.publication import Publication

Advance = Callable[[int, Sequence[Clip]], None]
"""Called with the number of units done and the rows they became."""


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
    """One process, one unit after another."""

    def run(self, operators: Sequence[Operator], units: Sequence[Clip], advance: Advance) -> None:
        for operator in operators:
            operator.setup()
        try:
            for unit in units:
                clips = [unit]
                for operator in operators:
                    clips = operator.run_many(clips)
                advance(1, clips)
        finally:
            for operator in operators:
                operator.close()

    def commit(self, publication: Publication, shards: Sequence[str], advance: Advance) -> None:
        for shard in shards:
            publication.commit(shard)
            advance(1, ())

    def close(self) -> None:
        pass


class Seen:
    """Counts units by the rows that come back, in any order and number."""

    def __init__(self) -> None:
        self._names: set[str] = set()

    def new(self, clips: Sequence[Clip], *, by_source: bool) -> int:
        """How many units among these rows were not seen before."""
        before = len(self._names)
        self._names |= {clip.fingerprint if by_source else unit_name(clip) for clip in clips}
        return len(self._names) - before
