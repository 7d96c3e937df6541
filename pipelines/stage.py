"""What a step of a pipeline is, and how steps are applied to a clip: in a loop here, on a cluster in `ray_runner`."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

from dynamictrl.errors import CheckpointError, ConfigError, DynamiCtrlError
from pipelines.clip import Clip

logger = logging.getLogger(__name__)

Per = Literal["source", "clip", "dataset"]

LONGEST_MESSAGE = 400
"""Characters of an exception's text that are kept in a row."""


def resource(default: float) -> float:
    """A setting that says how fast and not what: a rerun may change it, and no result is named after it."""
    return field(default=default, metadata={"resource": True})


@dataclass(frozen=True)
class Stage:
    """One step: a frozen dataclass of settings with one method, `process` (or `decide`). One file in `stages/` each.

    Settings are part of the data set's identity, those made by `resource` aside.
    """

    per: ClassVar[Per] = "clip"
    """What this stage sees: a whole source video or a stretch of it not yet cut, a cut clip, or all clips at once."""
    version: ClassVar[int] = 1
    """Raised when the same settings give another result: what was cached is then done again."""
    reads: ClassVar[tuple[str, ...] | None] = None
    """The member files and fields that a clip's result depends on: "mp4", "pose.npz", "mask.npz", "caption".
    None = all that was decided before. A change of what is not read redoes nothing here."""

    @property
    def name(self) -> str:
        """As rows and reports call it: the class name in snake case."""
        return "".join(f"_{c.lower()}" if c.isupper() else c for c in type(self).__name__).lstrip("_")

    @property
    def active(self) -> bool:
        """False leaves the stage out, as where an optional model is not named."""
        return True

    @property
    def weights(self) -> tuple[str, ...]:
        """Folders, hub ids or mini names of the weights that shape the result; a local folder's content counts."""
        return ()

    @property
    def num_cpus(self) -> float:
        """Processor cores that one worker of this stage keeps busy."""
        return 1.0

    @property
    def num_gpus(self) -> float:
        """Share of a GPU that one worker of this stage needs."""
        return 0.0

    @property
    def memory_gib(self) -> float:
        """Main memory that one worker of this stage needs, as the cluster is told; 0 = little."""
        return 0.0

    def check(self) -> None:
        """Raises what can be known to be wrong before any work is done: weights that are not there, for example."""

    def setup(self) -> None:
        """Loads what is heavy (weights, sessions). Runs once in each worker, before the first `process`."""

    def process(self, clip: Clip) -> Iterable[Clip]:
        """Yields what becomes of one clip: itself with more known, or itself with a refusal.

        A source stage may yield several clips and yields at least one row; a clip stage yields exactly one. May be
        killed at any moment and run again: files are written under a temporary name and renamed.
        """
        raise AssertionError(f"{type(self).__name__} defines no process")

    def process_many(self, clips: Sequence[Clip]) -> Iterable[Clip]:
        """One result per clip, in order: for stages that are faster with several clips at once.

        Where it raises, the clips are taken one by one by `process`, so that one bad clip costs no other.
        """
        for clip in clips:
            yield from self.process(clip)

    def decide(self, clips: Sequence[Clip]) -> Iterable[Clip]:
        """For stages that see the whole data set: every clip back, some now refused, whatever order they come in."""
        raise AssertionError(f"{type(self).__name__} defines no decide")


def check_weights(name: str, files: Iterable[str] = ()) -> None:
    """Raises CheckpointError where a local folder or a mini family name holds no such weights.

    A hub id is not looked up: each node does that once, when its first worker starts.
    """
    from dynamictrl.weights import resolve

    if name.startswith(("mini/", ".", "/", "~")) or name.count("/") != 1 or Path(name).is_dir():
        resolve(name, files)


def apply(stages: Sequence[Stage], clip: Clip) -> list[Clip]:
    """Takes one clip through the stages. Whatever a stage raises about the clip becomes a refusal on record.

    Only what is nobody's clip's fault is raised: wrong settings, missing weights, a full disk.
    """
    clips = [clip]
    for stage in stages:
        clips = [result for one in clips for result in _step(stage, one)]
    return clips


def run_local(stages: Sequence[Stage], clips: Iterable[Clip]) -> list[Clip]:
    """The whole pipeline in a loop: the same stages, the same result as on a cluster."""
    for stage in stages:
        stage.setup()
    return [result for clip in clips for result in apply(stages, clip)]


def _step(stage: Stage, clip: Clip) -> list[Clip]:
    if clip.rejected:
        return [clip]
    try:
        results = list(stage.process(clip))
    except (ConfigError, CheckpointError):
        raise
    except Exception as problem:
        if isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        results = [_refused(stage, clip, problem)]
    if not results:
        results = [clip.reject("nothing_found", f"{stage.name} found nothing in it")]
    return [replace(r, stage=stage.name) if r.rejected and not r.stage else r for r in results]


def _refused(stage: Stage, clip: Clip, problem: Exception) -> Clip:
    if isinstance(problem, DynamiCtrlError):
        code, message = problem.code, str(problem)
    elif isinstance(problem, MemoryError):
        code, message = "out_of_memory", f"{stage.name} ran out of memory"
    else:
        logger.warning("%s failed on %s", stage.name, clip.key or clip.source, exc_info=problem)
        code, message = "stage_error", f"{type(problem).__name__}: {problem}"
    message = message[:LONGEST_MESSAGE]
    return clip.quarantine(code, message) if stage.per == "source" else clip.reject(code, message)
