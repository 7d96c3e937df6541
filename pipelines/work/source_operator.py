"""What happens to a whole source: all its stages in one isolated worker, its bytes read by nobody else."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from pipelines.clip import Clip
from pipelines.files import storage
from pipelines.records import attempts, keys
from pipelines.records.ledger import Ledger, Record, Result
from pipelines.stage import Stage, Work, apply
from pipelines.stages.fetch import Fetch
from pipelines.work import clip_states
from pipelines.work.isolation import Child
from pipelines.work.operators import StageGroup, set_up

PASSING = ("unreachable",)
"""Reasons that may be gone by the next run, which takes such a source again."""
SOURCE, PLAN = "source", "plan"
"""What a source's results are recorded under: all its stages, or those before the first that cuts."""


@dataclass(frozen=True)
class SourceOperator(StageGroup):
    """All that happens to a whole source, in one isolated worker: its bytes are read by nobody else."""

    time_limit: float = 0.0
    """Seconds; above 0 the stages run in a child process that is killed at this limit."""
    cpu_limit: float = 0.0
    """Seconds of processor time that one source may take; 0 = no limit."""
    memory_limit: float = 0.0
    """GiB that the child may take; 0 = no limit."""
    plan_only: bool = False
    """Stop before the first stage that cuts."""

    @property
    def memory_gib(self) -> float:
        return max(stage.memory_gib for stage in self.stages)

    @property
    def _before_cut(self) -> int:
        """How many stages come before the first that cuts; all where none does."""
        return next((i for i, stage in enumerate(self.stages) if stage.cuts), len(self.stages))

    @property
    def _fetched(self) -> int:
        """How many stages it takes to have the bytes here."""
        return next((i + 1 for i, stage in enumerate(self.stages) if isinstance(stage, Fetch)), 1)

    @cached_property
    def _child(self) -> Child:
        return Child(self._used, self.time_limit, self.memory_limit, cpu_limit=self.cpu_limit)

    @property
    def _used(self) -> tuple[Stage, ...]:
        return self.stages[: self._before_cut] if self.plan_only else self.stages

    @cached_property
    def result_keys(self) -> dict[str, str]:
        """By what it is recorded under; of a source whose rights no stage reads."""
        return {
            PLAN: keys.chain_key(self.stage_keys[: self._before_cut]),
            SOURCE: keys.chain_key(self.stage_keys),
        }

    def _key(self, name: str, unit: Clip) -> str:
        if not any("rights" in (type(stage).reads or ()) for stage in self.stages):
            return self.result_keys[name]
        said = [unit.licence, unit.consent, sorted(unit.rights.items())]
        return keys.digest_of([self.result_keys[name], said])

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger(self.work, "sources")

    def setup(self) -> None:
        # An isolated operator sets up in its child instead.
        if not self.time_limit:
            set_up(self._used)

    def close(self) -> None:
        if self.time_limit:
            self._child.stop()

    def recall(self, unit: Clip, record: Record | None = None) -> list[Clip] | None:
        """What was decided about a source, whether or not its clips' files are still there."""
        name = PLAN if self.plan_only else SOURCE
        known = (record or self.ledger.load(unit.fingerprint)).find(name, self._key(name, unit))
        return None if known is None else self._rows(known, unit)

    def run_many(self, units: Sequence[Clip]) -> list[Clip]:
        return [row for unit in units for row in self._run(unit)]

    def _run(self, unit: Clip) -> list[Clip]:
        if unit.rejected:
            return [unit]
        record = self.ledger.load(unit.fingerprint)
        known = self.recall(unit, record)
        if known is not None and all(c.rejected or _has_files(c) for c in known) and not _may_pass(known):
            return known
        work = self._attempted(unit, record)
        self.meter.add(work)
        if storage.is_remote(unit.source):
            self._check_claim()  # the next run may be reading there
            shutil.rmtree(storage.downloads(unit), ignore_errors=True)
        whole = work.planned is not None and not any(c.quarantined for c in work.clips)
        if whole and record.find(PLAN, self._key(PLAN, unit)) is None:
            record.put(self._result(PLAN, unit, work.planned or [], Work([])))
        record.put(self._result(PLAN if self.plan_only else SOURCE, unit, work.clips, work))
        self._save(self.ledger, unit.fingerprint, record)
        return self._rows(record.results[PLAN if self.plan_only else SOURCE], unit)

    def _attempted(self, unit: Clip, record: Record) -> Work:
        self._check_claim()
        name = unit.fingerprint
        if attempts.made(self.work, self.run_id, name) >= attempts.MOST:
            attempts.forget(self.work, self.run_id, [name])
            refused = unit.quarantine(attempts.CRASHED, attempts.sentence())
            return Work([replace(refused, stage=self.stages[0].name)])
        with attempts.attempt(self.work, self.run_id, [name]):
            return self._work(unit, record)

    def _work(self, unit: Clip, record: Record) -> Work:
        """The stages that are still to be done; from the plan on, where there is one and the bytes are here."""
        planned = record.find(PLAN, self._key(PLAN, unit))
        if planned is None or self.plan_only or self._before_cut == len(self.stages):
            return self._apply([unit], 0)
        rows = self._rows(planned, unit)
        if all(row.rejected for row in rows):
            return Work(rows)
        if storage.is_remote(unit.source):
            fetched = apply(self.stages[: self._fetched], [unit])
            if fetched.clips[0].rejected:
                return fetched
        return self._apply(rows, self._before_cut)

    def _apply(self, rows: Sequence[Clip], first: int) -> Work:
        return self._child.apply(rows, first) if self.time_limit else apply(self._used[first:], rows)

    def _result(self, name: str, unit: Clip, rows: Sequence[Clip], work: Work) -> Result:
        costs = {stage: [c.units, round(c.seconds, 4), round(c.cpu_seconds, 4)] for stage, c in work.costs.items()}
        return Result(name, self._key(name, unit), rows=tuple(clip_states.stored(row) for row in rows), costs=costs)

    def _rows(self, result: Result, unit: Clip) -> list[Clip]:
        """The rows on record, with what the list of sources says of them now."""
        carried: dict[str, Any] = {"work": str(self.work), "fingerprint": unit.fingerprint}
        if unit.source:
            carried |= {"source": unit.source, "licence": unit.licence, "consent": unit.consent, "rights": unit.rights}
        if unit.path:
            carried["path"] = unit.path
        lineage = {SOURCE: result.key}
        return [replace(Clip.from_row(row), **carried, lineage=lineage) for row in result.rows]


def _may_pass(rows: Sequence[Clip]) -> bool:
    """Whether what a source was put aside for may be gone by now."""
    return any(row.rejected in PASSING for row in rows)


def _has_files(clip: Clip) -> bool:
    return all(clip.file(extension).is_file() for extension in clip.files)
