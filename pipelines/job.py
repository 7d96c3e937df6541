"""One run of a pipeline, from what a user named to a finished data set folder.

Decisions lie on disk, one record per source and per clip (`ledger`), and so does the plan of the shards
(`publication`). The driver only asks what is missing, has it done, and publishes: killed anywhere and started again, it
ends with the same folder.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dynamictrl.errors import ConfigError, DatasetError
from pipelines import licences
from pipelines.clip import Clip
from pipelines.datasets import derived_files
from pipelines.datasets.stage_list import stage_list
from pipelines.files import claim, run_folder
from pipelines.pipeline import Pipeline
from pipelines.publishing import dataset_files, tombstones
from pipelines.publishing.publication import Publication
from pipelines.records import attempts, keys
from pipelines.records.ledger import FORGOTTEN
from pipelines.stage import placed
from pipelines.watching import metrics, progress
from pipelines.work import phases
from pipelines.work.clip_operator import ClipOperator
from pipelines.work.runner import LocalRunner, Runner
from pipelines.work.source_operator import PASSING, SOURCE, SourceOperator

logger = logging.getLogger(__name__)

COPY_MARK = "-copy-"
"""In the key of a clip that came again, from a source with the same bytes."""


@dataclass(frozen=True)
class Outcome:
    """What a run ended with."""

    description: dict[str, Any]
    """`dataset.json`."""
    changed: bool
    """False where all was done before."""


def run(recipe: str, pipeline: Pipeline) -> Outcome:
    """Runs a pipeline to its end, or continues it; raises before any work where its settings cannot be met."""
    sources = found_sources(pipeline)
    with opened(recipe, pipeline) as work:
        return _Job(recipe, pipeline, work).run([replace(source, work=str(work)) for source in sources])


def found_sources(pipeline: Pipeline) -> list[Clip]:
    """One row per source, each once, in the order they were named; raises where settings or names are wrong."""
    if not pipeline.videos:
        raise ConfigError("no videos are named; give --videos SRC [SRC ...]", param="videos")
    for stage in pipeline.all_stages():
        stage.check()
    found = [source for name in pipeline.videos for source in pipeline.find.process(Clip(source=name))]
    return licences.agreed({source.fingerprint: source for source in found}.values())


def opened(recipe: str, pipeline: Pipeline) -> Any:  # noqa: ANN401
    """The work folder of this run, locked; says what changed since the last one."""
    return run_folder.opened(pipeline.root, recipe, pipeline.settings(), work=pipeline.work, videos=pipeline.videos)


class _Job:
    """One run under way."""

    def __init__(self, recipe: str, pipeline: Pipeline, work: Path):
        self.recipe, self.pipeline, self.work = recipe, pipeline, work
        self.publication = Publication(pipeline.root, work)
        self.run_id = claim.holder(work)
        self.source_operator = source_operator(pipeline, work, run_id=self.run_id)
        self.phases = phases.phases_of(pipeline.all_stages(), work, self.publication, run_id=self.run_id)
        self._numbers: metrics.RunMetrics | None = None
        self._runner: Runner | None = None

    def run(self, sources: Sequence[Clip]) -> Outcome:
        removed = self.publication.tombstones()
        sources = [s for s in sources if not tombstones.covers(removed, s.source, s.source_sha256)]
        known = self._finished(sources)
        if known is not None:
            return Outcome(known, changed=False)
        attempts.sweep(self.work)
        with metrics.exported(self.work, self.pipeline.metrics_port) as self._numbers:
            try:
                clips = self._decide(sources)
                kept = [clip for clip in clips if not clip.rejected]
                missing = self.publication.plan(kept, self.pipeline.shard_size)
                self._work_on("shards", len(missing), lambda r, p: r.commit(self.publication, missing, p.advance))
            finally:
                if self._runner is not None:
                    self._runner.close()
            progress.say_summary(self._numbers)
            return self._finish(sources, clips)

    def _finished(self, sources: Sequence[Clip]) -> dict[str, Any] | None:
        """The description of the data set, where it is what these sources and settings make and all of it is there."""
        known = self.publication.description()
        if known is None or (self.work / FORGOTTEN).exists() or known.get("inputs") != self._inputs(sources):
            return None
        return known if self.publication.is_whole() else None

    def _inputs(self, sources: Sequence[Clip]) -> str:
        """Names all that the data set is made from: the sources as they lie there, and the stages as they stand."""
        rows = sorted([s.fingerprint, s.licence, s.consent, *sorted(s.rights.items())] for s in sources)
        stages = [keys.stage_key(stage) for stage in self.pipeline.all_stages()]
        return keys.digest_of([rows, stages, sorted(self.publication.tombstones())])

    def _decide(self, sources: Sequence[Clip]) -> list[Clip]:
        """Every row there is in the end: kept and rejected clips, rejected and quarantined sources."""
        self._cut([source for source in sources if not self._source_settled(source)])
        read = [row for source in sources for row in self._rows(source)]
        clips = without_copies(self._without_removed([*read, *self._left_behind(sources, read)]))
        for phase in self.phases:
            clips = self._through(phase.operators, clips, sources)
            for stage in phase.decisions:
                clips = [placed(stage, clip) for clip in stage.decide(clips)]
        return clips

    def _cut(self, todo: Sequence[Clip]) -> None:
        """Sources to clips, and these through what needs no other clip, in the same task."""
        chain = [self.source_operator, *(self.phases[0].operators if self.phases[0].on_cpu else ())]
        self._work_on("sources", len(todo), lambda r, p: r.run(chain, todo, p.advance))

    def _rows(self, source: Clip) -> list[Clip]:
        rows = self.source_operator.recall(source)
        if rows is None:
            raise _undecided(source.source, self.work)
        return rows

    def _left_behind(self, sources: Sequence[Clip], rows: Sequence[Clip]) -> list[Clip]:
        """Published clips of sources that are not named any more: they stay until they are removed on purpose."""
        gone = self.publication.committed().keys() - {row.key for row in rows}
        if not gone:
            return []
        named = {source.fingerprint for source in sources}
        found: dict[str, Clip] = {}
        for unit in self.source_operator.ledger.units():
            if unit not in named:
                found |= {row.key: row for row in self.source_operator.recall(Clip(fingerprint=unit)) or ()}
        lost = sorted(gone - found.keys())
        if lost:
            raise DatasetError(
                f"{len(lost)} published clips ({lost[0]} ...) come from sources that are not named and that these "
                f"settings would cut anew. Name the sources again, or take them out by `remove`.",
                code="sources_missing",
            )
        return [found[key] for key in sorted(gone)]

    def _source_settled(self, source: Clip) -> bool:
        """Whether a source need not be opened again, as far as is known before its clips are decided."""
        rows = self.source_operator.recall(source)
        if rows is None or any(row.rejected in PASSING for row in rows):
            return False
        first = self.phases[0].operators
        return all(row.rejected or self._has_picture(row) or phases.recalled(first, row) is not None for row in rows)

    def _has_picture(self, clip: Clip) -> bool:
        """Whether a clip's mp4 is in the work folder, or in a shard as it would be cut now."""
        if clip.file("mp4").is_file() or not clip.files:
            return True
        place = self.publication.committed().get(clip.key)
        return place is not None and place.lineage.get(SOURCE) == clip.lineage.get(SOURCE)

    def _through(self, operators: Sequence[ClipOperator], clips: list[Clip], sources: Sequence[Clip]) -> list[Clip]:
        """All clips through some operators: from the record, or by having the work done."""
        if not operators:
            return clips
        waiting = [clip for clip in clips if not clip.rejected and not self._settled(operators, clip)]
        gone = {clip.fingerprint for clip in waiting if not self._has_picture(clip)}
        self._cut([source for source in sources if source.fingerprint in gone])
        self._work_on("clips", len(waiting), lambda r, p: r.run(list(operators), waiting, p.advance))
        return [self._recalled(operators, clip) for clip in clips]

    def _settled(self, operators: Sequence[ClipOperator], clip: Clip) -> bool:
        """Decided by these operators, with the files that go on from here in the work folder or in a shard."""
        result = phases.recalled(operators, clip)
        if result is None:
            return False
        if result.rejected or all(result.file(e).is_file() for e in result.files):
            return True
        place = self.publication.committed().get(result.key)
        return place is not None and result.lineage.items() <= place.lineage.items()

    def _recalled(self, operators: Sequence[ClipOperator], clip: Clip) -> Clip:
        result = clip if clip.rejected else phases.recalled(operators, clip)
        if result is None:
            raise _undecided(clip.key, self.work)
        return result

    def _without_removed(self, rows: Sequence[Clip]) -> list[Clip]:
        """Sources that were taken down stay out, whatever name they come under."""
        removed = self.publication.tombstones()
        return [row for row in rows if not tombstones.covers(removed, row.source, row.source_sha256)]

    def _work_on(self, units: str, count: int, work: Callable[[Runner, progress.Progress], None]) -> None:
        if count:
            with progress.Progress(units, count, units, self._numbers) as shown:
                work(self._running(), shown)

    def _running(self) -> Runner:
        """The runner, started when there is work: a finished run starts no cluster."""
        if self._runner is None:
            _check_gpus([operator for phase in self.phases for operator in phase.operators])
            self._runner = runner_of(self.pipeline)
        return self._runner

    def _finish(self, sources: Sequence[Clip], clips: list[Clip]) -> Outcome:
        content = dataset_files.description(self.recipe, self.pipeline.settings(), len(sources), clips, {})
        content |= {"stages": stage_list(self.pipeline.named_stages()), "inputs": self._inputs(sources)}
        outcome = self.publication.finish(content, clips, derived_files.derived(self.pipeline.root, self.work, True))
        (self.work / FORGOTTEN).unlink(missing_ok=True)
        shutil.rmtree(self.work / "clips", ignore_errors=True)
        return Outcome(dict(outcome.description), outcome.changed)


def runner_of(pipeline: Pipeline) -> Runner:
    """Where a pipeline runs: in this process, or on Ray, which is started or joined here."""
    if pipeline.local:
        return LocalRunner()
    from pipelines.cluster.ray_runner import RayRunner

    return RayRunner(pipeline.workers)


def source_operator(pipeline: Pipeline, work: Path, *, plan_only: bool = False, run_id: str = "") -> SourceOperator:
    """What happens to whole sources in a pipeline."""
    return SourceOperator(
        "sources",
        tuple(pipeline.stages("source")),
        work,
        run_id,
        time_limit=pipeline.time_limit,
        cpu_limit=pipeline.cpu_limit,
        memory_limit=pipeline.memory_gib,
        plan_only=plan_only,
    )


def _undecided(unit: str, work: Path) -> DatasetError:
    """Nothing may leave the ledger unseen."""
    return DatasetError(
        f"{unit} was worked on and no decision about it lies in {work}. Is that folder on a disk that all workers "
        f"share? The same command goes on with what is missing.",
        code="undecided",
    )


def _check_gpus(operators: Sequence[ClipOperator]) -> None:
    """Refuses to start on this machine what needs a GPU that it has not; a cluster says so itself."""
    needy = [operator.name for operator in operators if operator.num_gpus]
    signs = ("/dev/nvidia0", "/proc/driver/nvidia/gpus", "/dev/dxg")
    if needy and not os.environ.get("RAY_ADDRESS") and not any(Path(sign).exists() for sign in signs):
        raise ConfigError(
            f"{', '.join(needy)} need a GPU and this machine has none. Name a cluster by RAY_ADDRESS, set their device "
            f"to cpu, or use the recipe curate-mini.",
            code="no_gpu",
        )


def without_copies(clips: Sequence[Clip]) -> list[Clip]:
    """The same bytes under several names are one source: its clips are taken once, the copies put on record."""
    taken: dict[str, Clip] = {}
    result = []
    for clip in sorted(clips, key=lambda c: c.source):
        if clip.quarantined:
            result.append(clip)
            continue
        first = taken.setdefault(clip.key, clip)
        if first is not clip:
            copy = replace(clip, key=f"{clip.key}{COPY_MARK}{clip.fingerprint[:8]}", stage="find")
            clip = copy if clip.rejected else copy.reject("duplicate_source", f"the same bytes as {first.source}")
        result.append(clip)
    return result
