"""What happens to clips, in phases: operators that see one clip each, then decisions that see them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.clip import Clip
from pipelines.publishing.publication import Publication
from pipelines.stage import Stage
from pipelines.work.clip_operator import ClipOperator, clip_operators


@dataclass(frozen=True)
class Phase:
    """Work on single clips, and what is decided over all of them afterwards."""

    operators: tuple[ClipOperator, ...]
    decisions: tuple[Stage, ...]

    @property
    def on_cpu(self) -> bool:
        """It may ride in the task that cuts the clips: it needs no GPU and loads nothing that takes time."""
        stages = [stage for operator in self.operators for stage in operator.stages]
        return bool(self.decisions) and all(type(s).setup is Stage.setup and not s.num_gpus for s in stages)


def phases_of(
    stages: Sequence[Stage], work: Path, publication: Publication | None = None, *, run_id: str = ""
) -> list[Phase]:
    """The clip and data set stages of a pipeline as phases, in order; at least one."""
    found: list[Phase] = []
    single: list[Stage] = []
    decisions: list[Stage] = []
    for stage in (s for s in stages if s.per != "source"):
        if stage.per == "clip" and decisions:
            found.append(Phase(tuple(clip_operators(single, work, publication, run_id)), tuple(decisions)))
            single, decisions = [], []
        (decisions if stage.per == "dataset" else single).append(stage)
    return [*found, Phase(tuple(clip_operators(single, work, publication, run_id)), tuple(decisions))]


def recalled(operators: Sequence[ClipOperator], clip: Clip) -> Clip | None:
    """What is on record about a clip after some operators; None where one has not decided."""
    result: Clip | None = clip
    record = operators[0].ledger.load(clip.key) if operators and not clip.rejected else None
    for operator in operators:
        if result is None or result.rejected:
            break
        result = operator.recall(result, record)
    return result
