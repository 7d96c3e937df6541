"""What happens to a clip: stages that share a worker, each result recorded under its own key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from pipelines.clip import Clip
from pipelines.publishing.publication import Publication
from pipelines.records import attempts
from pipelines.records.ledger import Ledger, Record, Result
from pipelines.stage import Cost, Stage, Work, step
from pipelines.work import previews
from pipelines.work.clip_states import ClipState
from pipelines.work.operators import StageGroup, set_up


@dataclass(frozen=True)
class ClipOperator(StageGroup):
    """Consecutive stages of a clip that run in one worker."""

    publication: Publication | None = None
    """Where files of clips that are in a shard already come from."""

    @property
    def memory_gib(self) -> float:
        return sum(stage.memory_gib for stage in self.stages)

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger(self.work, "clips")

    def setup(self) -> None:
        set_up(self.stages)

    def close(self) -> None:
        pass

    def recall(self, clip: Clip, record: Record | None = None) -> Clip | None:
        """What was decided about a clip by all these stages, from the record alone; None where one has not."""
        state = ClipState(clip, self.ledger.load(clip.key) if record is None else record)
        for stage, key in zip(self.stages, self.stage_keys, strict=True):
            if state.clip.rejected:
                break
            if not state.recall(stage, state.key(stage, key)):
                return None
        return state.clip

    def run_many(self, units: Sequence[Clip]) -> list[Clip]:
        live = [unit.key for unit in units if not unit.rejected]
        alone, together = attempts.split(self.work, self.run_id, live)
        done = {clip.key: clip for key in alone for clip in self._attempted([u for u in units if u.key == key])}
        chosen = set(together)
        done |= {clip.key: clip for clip in self._attempted([u for u in units if u.key in chosen])}
        return [done.get(unit.key, unit) for unit in units]

    def lacking(self, stage: Stage, clips: Sequence[Clip]) -> list[Clip]:
        """Of clips that come to one of these stages those without a result of it, their files brought here."""
        found = []
        for clip in (clip for clip in clips if not clip.rejected):
            state, key = self._at(stage, clip)
            known = state.record.find(stage.name, key)
            if not state.clip.rejected and (known is None or not self._has(state.clip, stage.name, known)):
                self._make_ready(stage, state)
                found.append(state.clip)
        return found

    def take(self, stage: Stage, clip: Clip, result: Clip, seconds: float = 0.0) -> None:
        """Records what a stage, run by somebody else, made of a clip that was `lacking`."""
        state, key = self._at(stage, clip)
        state.put(stage, key, result, seconds, 0.0)
        self._save(self.ledger, clip.key, state.record)

    def _at(self, stage: Stage, clip: Clip) -> tuple[ClipState, str]:
        """A clip as it comes to a stage, and the key of what is made of it there."""
        state = ClipState(clip, self.ledger.load(clip.key))
        for before, key in zip(self.stages, self.stage_keys, strict=True):
            if before is stage:
                break
            state.recall(before, state.key(before, key))
        return state, state.key(stage, self.stage_keys[self.stages.index(stage)])

    def _attempted(self, units: Sequence[Clip]) -> list[Clip]:
        """Units whose process died too often are refused; the others are worked on."""
        self._check_claim()
        names = [unit.key for unit in units]
        if len(names) == 1 and attempts.made(self.work, self.run_id, names[0]) >= attempts.MOST:
            attempts.forget(self.work, self.run_id, names)
            return [self._crashed(units[0])]
        with attempts.attempt(self.work, self.run_id, names):
            return self._run(units)

    def _crashed(self, unit: Clip) -> Clip:
        """Charged to the first stage that is not on record: the one that was under way."""
        state = ClipState(unit, self.ledger.load(unit.key))
        for stage, stage_key in zip(self.stages, self.stage_keys, strict=True):
            key = state.key(stage, stage_key)
            if not state.recall(stage, key):
                refused = state.clip.reject(attempts.CRASHED, attempts.sentence())
                state.put(stage, key, replace(refused, stage=stage.name), 0.0, 0.0)
                break
        self._save(self.ledger, unit.key, state.record)
        return state.clip

    def _run(self, units: Sequence[Clip]) -> list[Clip]:
        states = [ClipState(unit, self.ledger.load(unit.key)) for unit in units]
        for stage, key in zip(self.stages, self.stage_keys, strict=True):
            self._advance(stage, key, [state for state in states if not state.clip.rejected])
        for state in states:
            if state.dirty:
                self._save(self.ledger, state.clip.key, state.record)
        return [state.clip for state in states]

    def _advance(self, stage: Stage, stage_key: str, states: Sequence[ClipState]) -> None:
        """One stage over clips: recalled where it can be, the others done together or one by one."""
        todo: list[tuple[ClipState, str]] = []
        for state in states:
            key = state.key(stage, stage_key)
            known = state.record.find(stage.name, key)
            if known is not None and self._has(state.clip, stage.name, known):
                state.recall(stage, key)
            else:
                self._make_ready(stage, state)
                todo.append((state, key))
        together = type(stage).process_many is not Stage.process_many
        for group in [todo] if together and todo else [[one] for one in todo]:
            self._do(stage, group)

    def _do(self, stage: Stage, group: Sequence[tuple[ClipState, str]]) -> None:
        began = Cost.now()
        results = step(stage, [state.clip for state, _ in group])
        cost = replace(Cost.now().minus(began), units=len(group))
        self.meter.add(Work(results, costs={stage.name: cost}))
        frames = sum(state.clip.frames for state, _ in group) or 1
        for (state, key), result in zip(group, results, strict=True):
            share = state.clip.frames / frames if len(group) > 1 else 1.0
            state.put(stage, key, result, cost.seconds * share, cost.cpu_seconds * share)
            if result.rejected:
                previews.write_preview(result)

    def _has(self, clip: Clip, stage: str, known: Result) -> bool:
        """Whether the files that go with a result are there, in the work folder or in a shard."""
        missing = [e for e, size in known.change.get("files", {}).items() if not _is_file(clip.file(e), size)]
        return not missing or (self.publication is not None and self._places.get(clip.key, {}).get(stage) == known.key)

    @cached_property
    def _places(self) -> dict[str, Mapping[str, str]]:
        """Lineage by key of the clips that are in shards, read when it is first asked for."""
        found = self.publication.committed() if self.publication else {}
        return {key: place.lineage for key, place in found.items()}

    def _make_ready(self, stage: Stage, state: ClipState) -> None:
        """Forgets an older result, whose files are about to be replaced; brings the files that the stage reads."""
        stale = state.record.results.get(stage.name)
        if stale is not None and stale.change.get("files"):
            state.record.results.pop(stage.name)
            self._save(self.ledger, state.clip.key, state.record)
        reads = type(stage).reads
        for extension in state.clip.files:
            if (reads is None or extension in reads) and not state.clip.file(extension).is_file() and self.publication:
                self.publication.restore(state.clip, extension)


def _is_file(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def clip_operators(
    stages: Sequence[Stage], work: Path, publication: Publication | None = None, run_id: str = ""
) -> list[ClipOperator]:
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
    return [ClipOperator(_group_name(g), tuple(g), work, run_id, publication=publication) for g in groups]


def _group_name(group: Sequence[Stage]) -> str:
    return next((stage.name for stage in group if stage.num_gpus > 0), group[0].name)
