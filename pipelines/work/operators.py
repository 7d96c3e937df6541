"""Stages bundled for one worker: what is set up together, killed together and recorded together.

A source goes through all its stages in one isolated child (`source_operator`); a clip goes through operators that share
a worker unless a GPU is at stake (`clip_operator`). Either way what was decided before, under the same keys, is taken
from the record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from dynamictrl.errors import CheckpointError, DynamiCtrlError
from pipelines.clip import Clip
from pipelines.files import claim
from pipelines.records import keys
from pipelines.records.ledger import Ledger, Record
from pipelines.stage import Stage
from pipelines.watching.meter import Meter


class Operator(Protocol):
    """What a runner needs to know of either kind."""

    @property
    def name(self) -> str: ...
    @property
    def stages(self) -> tuple[Stage, ...]: ...
    @property
    def folder(self) -> Path:
        """Names this operator with these settings in this run's folder."""
        ...

    @property
    def work(self) -> Path:
        """The run's work folder."""
        ...

    @property
    def run_id(self) -> str:
        """Of this start of the command: attempts at units are counted by it; "" = not counted."""
        ...

    @property
    def meter(self) -> Meter:
        """What this process has done with it."""
        ...

    @property
    def num_cpus(self) -> float: ...
    @property
    def num_gpus(self) -> float: ...
    @property
    def memory_gib(self) -> float: ...

    def setup(self) -> None:
        """Once in each worker; raises CheckpointError, or what a stage raised on purpose."""
        ...

    def close(self) -> None: ...
    def run_many(self, units: Sequence[Clip]) -> list[Clip]:
        """What becomes of units: recalled where it is on record, else done and recorded. Refused ones pass by."""
        ...


@dataclass(frozen=True)
class StageGroup:
    """What both kinds of operator are: named stages with keys, in one run's folder."""

    name: str
    stages: tuple[Stage, ...]
    work: Path
    """The run's work folder."""
    run_id: str = field(default="", compare=False)
    """Of this start of the command: attempts at units are counted by it; "" = not counted."""

    @property
    def meter(self) -> Meter:
        """What this process has done with it."""
        return self.__dict__.setdefault("_meter", Meter())

    def __getstate__(self) -> dict[str, Any]:
        # Keys go along, so that weights are hashed once; what belongs to a process stays in it.
        return {name: value for name, value in self.__dict__.items() if name not in ("_meter", "_child", "_places")}

    @cached_property
    def stage_keys(self) -> tuple[str, ...]:
        return tuple(keys.stage_key(stage) for stage in self.stages)

    @property
    def folder(self) -> Path:
        return self.work / "operators" / f"{self.name}-{keys.chain_key(self.stage_keys)[:12]}"

    def _check_claim(self) -> None:
        """Raises DatasetError where another run has claimed the folder: this worker's driver is dead."""
        claim.check(self.work, self.run_id)

    def _save(self, ledger: Ledger, unit: str, record: Record) -> None:
        """Records what became of a unit, unless another run has claimed the folder."""
        self._check_claim()
        ledger.save(unit, record)

    @property
    def num_cpus(self) -> float:
        return max(stage.num_cpus for stage in self.stages)

    @property
    def num_gpus(self) -> float:
        return sum(stage.num_gpus for stage in self.stages)


def set_up(stages: Sequence[Stage]) -> None:
    """Sets stages up; raises CheckpointError, or what a stage raised on purpose."""
    for stage in stages:
        try:
            stage.setup()
        except DynamiCtrlError:
            raise
        except Exception as problem:
            raise CheckpointError(
                f"{stage.name} cannot load what it needs ({type(problem).__name__}: {problem}). Check its weights.",
                code="setup_failed",
            ) from problem


def unit_name(clip: Clip) -> str:
    """What a unit is recorded under: its key once it is a clip, its fingerprint while it is a source."""
    return clip.key or clip.fingerprint
