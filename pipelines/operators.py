"""Stages bundled for one worker: what is set up together, killed together and recorded together."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dynamictrl.errors import CheckpointError, DynamiCtrlError
from pipelines import storage
from pipelines.clip import Clip
from pipelines.isolation import Child
from pipelines.ledger import Ledger, chain_digest
from pipelines.stage import Stage, apply


@dataclass(frozen=True)
class Operator:
    """Consecutive stages that run in one worker, with the record of what they decided."""

    name: str
    stages: tuple[Stage, ...]
    ledger: Ledger
    time_limit: float = 0.0
    """Seconds; above 0 the stages run in a child process that is killed at this limit."""
    memory_gib: float = 0.0
    """Limit of the child's memory; 0 = none."""

    @property
    def num_cpus(self) -> float:
        return max(stage.num_cpus for stage in self.stages)

    @property
    def num_gpus(self) -> float:
        return sum(stage.num_gpus for stage in self.stages)

    @cached_property
    def _child(self) -> Child:
        return Child(self.stages, self.time_limit, self.memory_gib)

    def setup(self) -> None:
        """Once in each worker. An isolated operator sets up in its child instead.

        Raises CheckpointError, or what a stage raised on purpose, where a stage cannot be set up.
        """
        for stage in () if self.time_limit else self.stages:
            try:
                stage.setup()
            except DynamiCtrlError:
                raise
            except Exception as problem:
                raise CheckpointError(
                    f"{stage.name} cannot load what it needs ({type(problem).__name__}: {problem}). Check its weights.",
                    code="setup_failed",
                ) from problem

    def close(self) -> None:
        if self.time_limit:
            self._child.stop()

    def recall(self, clip: Clip) -> list[Clip] | None:
        """What was decided about a unit, if the files that go with it are still there."""
        known = self.ledger.load(unit_name(clip))
        if known is None or not all(c.rejected or _has_files(c) for c in known):
            return None
        return known

    def run(self, clip: Clip) -> list[Clip]:
        """One unit through the stages, unless it has been decided before."""
        if clip.rejected:
            return [clip]
        known = self.recall(clip)
        if known is not None:
            return known
        work = self._child.apply([clip]) if self.time_limit else apply(self.stages, [clip])
        clips = work.clips
        if storage.is_remote(clip.source) and not clip.key:
            shutil.rmtree(storage.downloads(clip), ignore_errors=True)
        self.ledger.save(unit_name(clip), clips)
        return clips


def unit_name(clip: Clip) -> str:
    """What a unit is recorded under: its key once it is a clip, its fingerprint while it is a source."""
    return clip.key or clip.fingerprint


def _has_files(clip: Clip) -> bool:
    return all(clip.file(extension).is_file() for extension in clip.files)


def source_operator(stages: Sequence[Stage], work: Path, *, time_limit: float, memory_gib: float) -> Operator:
    """All that happens to a whole source, in one isolated worker: its bytes are read by nobody else."""
    digest = chain_digest(stages)
    return Operator("sources", tuple(stages), Ledger(work, "sources", digest), time_limit, memory_gib)


def clip_operators(stages: Sequence[Stage], before: Sequence[Stage], work: Path) -> list[Operator]:
    """What happens to each clip, as few operators: stages share a worker unless a GPU is at stake.

    A model on a GPU gets workers of its own, with the light stages that follow it; models on the CPU share one.
    """
    groups: list[list[Stage]] = []
    for stage in stages:
        loads = type(stage).setup is not Stage.setup
        apart = loads and (stage.num_gpus > 0 or any(s.num_gpus > 0 for s in groups[-1])) if groups else False
        if not groups or apart:
            groups.append([])
        groups[-1].append(stage)
    operators, done = [], list(before)
    for group in groups:
        done += group
        name = next((s.name for s in group if s.num_gpus > 0), group[0].name if len(groups) > 1 else "clips")
        operators.append(Operator(name, tuple(group), Ledger(work, name, chain_digest(done))))
    return operators
