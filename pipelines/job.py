"""One run of a pipeline, from what a user named to a finished data set folder.

Decisions lie on disk, one file per source and per clip (`ledger`), and so does the plan of the shards (`shard_plan`).
The driver only asks what is missing, has it done, and writes the summary: killed anywhere and started again, it ends
with the same folder.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dynamictrl.errors import ConfigError, DatasetError
from pipelines import dataset_files, operators, report, run_folder
from pipelines.clip import Clip
from pipelines.operators import Operator
from pipelines.pipeline import Pipeline
from pipelines.progress import Progress
from pipelines.runner import LocalRunner, Runner
from pipelines.shard_plan import ShardPlan

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
    if not pipeline.videos:
        raise ConfigError("no videos are named; give --videos SRC [SRC ...]", param="videos")
    for stage in (*pipeline.stages("source"), *pipeline.stages("clip")):
        stage.check()
    sources = [found for name in pipeline.videos for found in pipeline.find.process(Clip(source=name))]
    sources = list({source.fingerprint: source for source in sources}.values())
    with run_folder.opened(pipeline.out.absolute(), recipe, pipeline.settings()) as work:
        return _Job(recipe, pipeline, work).run([replace(source, work=str(work)) for source in sources])


class _Job:
    """One run under way."""

    def __init__(self, recipe: str, pipeline: Pipeline, work: Path):
        self.recipe, self.pipeline, self.work = recipe, pipeline, work
        per_source, per_clip = pipeline.stages("source"), pipeline.stages("clip")
        limits = {"time_limit": pipeline.time_limit, "memory_gib": pipeline.memory_gib}
        self.source_operator = operators.source_operator(per_source, work, **limits)
        self.clip_operators = operators.clip_operators(per_clip, per_source, work)
        self.plan = ShardPlan(work.parent)
        self._runner: Runner | None = None
        self._worked = False

    def run(self, sources: Sequence[Clip]) -> Outcome:
        try:
            clips = self._decide(sources)
            kept = [clip for clip in clips if not clip.rejected]
            planned = self.plan.extend(kept, self.pipeline.shard_size)
            missing = [shard for shard in planned if self.plan.record(shard) is None]
            self._work_on("shards", "shards", len(missing), lambda r, p: r.commit(self.plan, missing, p.advance))
        finally:
            if self._runner is not None:
                self._runner.close()
        return self._finish(sources, clips)

    def _decide(self, sources: Sequence[Clip]) -> list[Clip]:
        """Every row there is in the end: kept and rejected clips, rejected and quarantined sources."""
        committed = self.plan.committed_keys()
        todo = [source for source in sources if not self._settled(source, committed)]
        self._work_on("sources", "sources", len(todo), lambda r, p: r.run([self.source_operator], todo, p.advance))
        read = [self._decided(self.source_operator.ledger.load(source.fingerprint), source) for source in sources]
        cut = _without_copies([clip for clips in read for clip in clips])
        waiting = [clip for clip in cut if not self._clip_settled(clip, committed)]
        self._work_on("clips", "clips", len(waiting), lambda r, p: r.run(self.clip_operators, waiting, p.advance))
        decided = [c for clip in cut for c in self._decided(self._outcome(clip, self.clip_operators), clip)]
        # Sources may have gone since their clips were committed; the clips are still in the data set.
        gone = committed - {clip.key for clip in decided}
        return decided + [clip for key in sorted(gone) for clip in self.clip_operators[-1].ledger.load(key) or ()]

    def _decided(self, clips: list[Clip] | None, unit: Clip) -> list[Clip]:
        """What became of a unit; nothing may leave the ledger unseen."""
        if clips is None:
            raise DatasetError(
                f"{unit.key or unit.source} was worked on and no decision about it lies in {self.work}. Is that folder "
                f"on a disk that all workers share? The same command goes on with what is missing.",
                code="undecided",
            )
        return clips

    def _work_on(self, phase: str, unit: str, count: int, work: Any) -> None:  # noqa: ANN401
        if count == 0:
            return
        self._worked = True
        with Progress(phase, count, unit) as progress:
            work(self._running(), progress)

    def _running(self) -> Runner:
        """The runner, started when there is work: a finished run starts no cluster."""
        if self._runner is None:
            _check_gpus(self.clip_operators)
            if self.pipeline.local:
                self._runner = LocalRunner()
            else:
                from pipelines.ray_runner import RayRunner

                self._runner = RayRunner(self.pipeline.workers)
        return self._runner

    def _settled(self, source: Clip, committed: set[str]) -> bool:
        """Whether a source need not be opened again: decided, and its clips' files there as long as they are needed."""
        clips = self.source_operator.ledger.load(source.fingerprint)
        if clips is None:
            return False
        return self.source_operator.recall(source) is not None or all(
            clip.rejected or self._clip_settled(clip, committed) for clip in clips
        )

    def _clip_settled(self, clip: Clip, committed: set[str]) -> bool:
        results = self._outcome(clip, self.clip_operators)
        return results is not None and all(
            c.rejected or c.key in committed or all(c.file(e).is_file() for e in c.files) for c in results
        )

    def _outcome(self, clip: Clip, remaining: Sequence[Operator]) -> list[Clip] | None:
        """What became of a clip in the remaining operators, or None where that is not decided."""
        if clip.rejected or not remaining:
            return [clip]
        known = remaining[0].ledger.load(clip.key)
        further = [self._outcome(result, remaining[1:]) for result in known] if known is not None else [None]
        return None if any(f is None for f in further) else [c for f in further for c in f or ()]

    def _finish(self, sources: Sequence[Clip], clips: list[Clip]) -> Outcome:
        out, shards = self.pipeline.out, self.plan.records()
        content = dataset_files.description(self.recipe, self.pipeline.settings(), len(sources), clips, shards)
        if not self._worked and (out / "report" / "index.html").is_file() and _says(out / "dataset.json", content):
            return Outcome(content, changed=False)
        dataset_files.write_manifest(out / "manifest.parquet", [c for c in clips if not c.quarantined], shards)
        dataset_files.write_quarantine(out / "quarantine.jsonl", [c for c in clips if c.quarantined])
        report.write_report(out, content)
        dataset_files.write_description(out / "dataset.json", content)
        shutil.rmtree(self.work / "clips", ignore_errors=True)
        return Outcome(content, changed=True)


def _check_gpus(clip_operators: Sequence[Operator]) -> None:
    """Refuses to start on this machine what needs a GPU that it has not; a cluster says so itself."""
    needy = [operator.name for operator in clip_operators if operator.num_gpus]
    signs = ("/dev/nvidia0", "/proc/driver/nvidia/gpus", "/dev/dxg")
    if needy and not os.environ.get("RAY_ADDRESS") and not any(Path(sign).exists() for sign in signs):
        raise ConfigError(
            f"{', '.join(needy)} need a GPU and this machine has none. Name a cluster by RAY_ADDRESS, set their device "
            f"to cpu, or use the recipe curate-mini.",
            code="no_gpu",
        )


def _says(path: Path, content: dict[str, Any]) -> bool:
    """Whether a description says this already; packages may have changed since without changing the data."""
    if not path.is_file():
        return False
    old, new = json.loads(path.read_text()), json.loads(json.dumps(content, default=str))
    return all(old.get(name) == value for name, value in new.items() if name != "packages")


def _without_copies(clips: Sequence[Clip]) -> list[Clip]:
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
