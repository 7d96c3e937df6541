"""The plan of a run: which sources become which clips in which shards, and what it will cost.

Making it opens every source (its hash, its header, its shots) and cuts nothing. What was read is on record, so the run
that follows does not read it again, and the plan's keys are the run's keys. Shards are planned for every clip, since
no filter has judged yet: the run freezes its own, smaller, mapping once all clips are decided.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from dynamictrl.samples.shards import SCHEMA_VERSION, SHARD_NAME
from pipelines import job
from pipelines.clip import Clip
from pipelines.files import storage
from pipelines.pipeline import Pipeline
from pipelines.records import costs, keys
from pipelines.stage import Cost, Stage
from pipelines.watching.progress import Progress

NAME = "plan.json"
MIB = 2**20
BYTES_PER_PIXEL = 0.03
"""Of an H.264 clip at crf 18, rough: people moving before quiet backgrounds."""
BYTES_PER_FRAME = 2600
"""Of poses, masks and tar headers, rough: one person."""


@dataclass(frozen=True)
class Estimate:
    """What a stage is expected to take."""

    stage: str
    units: int
    cpu_hours: float
    gpu_hours: float
    measured: bool
    """From this folder's own records; otherwise from the stage's rough rate."""


def make(recipe: str, pipeline: Pipeline) -> dict[str, Any]:
    """Reads all sources, writes `OUT/plan.json` and returns its content; continues where it was stopped."""
    sources = job.found_sources(pipeline)
    with job.opened(recipe, pipeline) as work:
        sources = [replace(source, work=str(work)) for source in sources]
        operator = job.source_operator(pipeline, work, plan_only=True)
        todo = [source for source in sources if operator.recall(source) is None]
        if todo:
            _read(pipeline, operator, todo)
        rows = job.without_copies([row for source in sources for row in operator.recall(source) or ()])
        read: dict[str, list[Clip]] = {source.source: [] for source in sources}
        for row in rows:
            read[row.source].append(row)
        content = _content(recipe, pipeline, read, costs.of_run(work))
        storage.Store(pipeline.root).put(NAME, _text(content))
        return content


def _text(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def _read(pipeline: Pipeline, operator: Any, todo: Sequence[Clip]) -> None:  # noqa: ANN401
    runner = job.runner_of(pipeline)
    try:
        with Progress("plan", len(todo), "sources") as progress:
            runner.run([operator], todo, progress.advance)
    finally:
        runner.close()


def _content(recipe: str, pipeline: Pipeline, read: dict[str, list[Clip]], spent: dict[str, Cost]) -> dict[str, Any]:
    cutting = [stage for stage in pipeline.stages("source") if stage.cuts]
    clips = {uri: _foreseen(cutting, rows) for uri, rows in read.items()}
    kept = sorted((c for rows in clips.values() for c in rows if not c.rejected), key=lambda c: c.key)
    estimates = estimate(pipeline, list(read), kept, spent)
    return {
        "schema_version": SCHEMA_VERSION,
        "recipe": recipe,
        "settings": json.loads(json.dumps(pipeline.settings(), default=str)),
        "stages": keys.digest_of([keys.stage_key(stage) for stage in pipeline.all_stages()]),
        "sources": [_source(uri, rows) for uri, rows in sorted(clips.items())],
        "shards": _shards(kept, pipeline.shard_size),
        "counts": {"sources": len(read), "clips": len(kept), "seconds": round(sum(c.duration for c in kept), 1)},
        "estimate": {
            "bytes": sum(_bytes(clip) for clip in kept),
            "cpu_hours": round(sum(e.cpu_hours for e in estimates), 3),
            "gpu_hours": round(sum(e.gpu_hours for e in estimates), 3),
            "stages": [e.__dict__ for e in estimates],
        },
    }


def _foreseen(cutting: Sequence[Stage], rows: Sequence[Clip]) -> list[Clip]:
    """The clips that the cutting stages will make of a source's shots."""
    clips = list(rows)
    for stage in cutting:
        clips = [found for clip in clips for found in ([clip] if clip.rejected else stage.foresee(clip))]
    return clips


def _source(uri: str, rows: Sequence[Clip]) -> dict[str, Any]:
    kept = [row.key for row in rows if not row.rejected]
    said = {"uri": uri, "sha256": rows[0].source_sha256 if rows else "", "clips": kept}
    refused = sorted({row.rejected for row in rows if row.rejected})
    return {**said, "refused": refused} if refused else said


def _shards(clips: Sequence[Clip], size: float) -> list[dict[str, Any]]:
    """Every clip in order of key, in shards of `size` MiB by estimate."""
    shards: list[dict[str, Any]] = []
    filled = 0.0
    for clip in clips:
        if not shards or filled + _bytes(clip) / 2 > size * MIB:
            shards.append({"name": SHARD_NAME.format(len(shards)), "clips": []})
            filled = 0.0
        shards[-1]["clips"].append(clip.key)
        filled += _bytes(clip)
    return shards


def _bytes(clip: Clip) -> int:
    return round(clip.frames * (clip.width * clip.height * BYTES_PER_PIXEL + BYTES_PER_FRAME))


def estimate(
    pipeline: Pipeline, sources: Sequence[str], clips: Sequence[Clip], spent: dict[str, Cost]
) -> list[Estimate]:
    """What each stage will take if every clip comes to it, in order of work."""
    frames = sum(clip.frames for clip in clips)
    found = []
    for stage in pipeline.all_stages():
        if stage.per == "dataset":
            continue
        units = len(sources) if stage.per == "source" else len(clips)
        cost = spent.get(stage.name)
        seconds = cost.cpu_seconds / cost.units * units if cost and cost.units else stage.seconds_per_frame * frames
        on_gpu = stage.num_gpus > 0
        hours = seconds / 3600
        measured = bool(cost and cost.units)
        found.append(Estimate(stage.name, units, 0.0 if on_gpu else hours, hours if on_gpu else 0.0, measured))
    return found


def text(content: dict[str, Any], path: str) -> str:
    """The plan as people read it."""
    counts, total = content["counts"], content["estimate"]
    refused = sum(bool(source.get("refused")) and not source["clips"] for source in content["sources"])
    lines = [
        f"{counts['sources']} sources ({refused} give no clip), {counts['clips']} clips, "
        f"{counts['seconds'] / 3600:.2f} h, about {total['bytes'] / MIB:,.0f} MiB in {len(content['shards'])} shards",
        "",
        f"{'stage':<22}{'units':>9}{'CPU h':>10}{'GPU h':>10}",
    ]
    for e in total["stages"]:
        note = "" if e["measured"] else "  rough" if e["cpu_hours"] + e["gpu_hours"] else "  not known"
        lines.append(f"{e['stage']:<22}{e['units']:>9}{e['cpu_hours']:>10.3f}{e['gpu_hours']:>10.3f}{note}")
    lines += [f"{'in all, at most':<22}{'':>9}{total['cpu_hours']:>10.3f}{total['gpu_hours']:>10.3f}", "", path]
    return "\n".join(lines)
