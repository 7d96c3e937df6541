"""What a step of a pipeline is, and how steps are applied to a clip: in a loop here, on a cluster in `ray_runner`."""

from __future__ import annotations

import errno
import logging
import time
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

    Settings are part of the data set's identity, those made by `resource` aside. A stage that weights shape has
    `weights`, as a setting or a property: a folder, hub id or mini name, or several; a local folder's content counts.
    """

    per: ClassVar[Per] = "clip"
    """What this stage sees: a whole source video or a stretch of it not yet cut, a cut clip, or all clips at once."""
    version: ClassVar[int] = 1
    """Raised when the same settings give another result: what was cached is then done again."""
    reads: ClassVar[tuple[str, ...] | None] = None
    """What a clip's result depends on: member files ("mp4", "pose.npz", "mask.npz"), "caption", "scores".
    None = all that was decided before, files too. A change of what is not read redoes nothing here. A source stage
    that judges licence or consent reads "rights"."""
    cuts: ClassVar[bool] = False
    """A source stage that writes clips: what comes before it is the plan, which the command `plan` makes alone."""

    seconds_per_frame: ClassVar[float] = 0.0
    """Rough seconds of a core, or of a GPU where it has one, per frame of a clip: for the plan's estimate."""

    @property
    def name(self) -> str:
        """As rows and reports call it: the class name in snake case."""
        return "".join(f"_{c.lower()}" if c.isupper() else c for c in type(self).__name__).lstrip("_")

    @property
    def active(self) -> bool:
        """False leaves the stage out, as where an optional model is not named."""
        return True

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

    def foresee(self, clip: Clip) -> Iterable[Clip]:
        """Of a stage that cuts: the clips it will make of a shot, with size and frames, before it reads a picture."""
        yield clip

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


@dataclass
class Cost:
    """What a stage has taken so far."""

    units: int = 0
    """Rows that it saw."""
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    """Of all threads of the process that it ran in."""

    @classmethod
    def now(cls) -> Cost:
        """The clocks of this process."""
        return cls(0, time.perf_counter(), time.process_time())

    def minus(self, earlier: Cost) -> Cost:
        return Cost(self.units, self.seconds - earlier.seconds, self.cpu_seconds - earlier.cpu_seconds)

    def add(self, other: Cost) -> None:
        self.units += other.units
        self.seconds += other.seconds
        self.cpu_seconds += other.cpu_seconds


@dataclass
class Work:
    """What stages made of some rows, and what it cost."""

    clips: list[Clip]
    planned: list[Clip] | None = None
    """The rows before the first stage that cuts; None where no stage does."""
    costs: dict[str, Cost] = field(default_factory=dict)
    """By stage."""


def apply(stages: Sequence[Stage], clips: Sequence[Clip]) -> Work:
    """Takes rows through the stages. Whatever a stage raises about a row becomes a refusal on record.

    Only what is nobody's clip's fault is raised: wrong settings, missing weights, a full disk, a dead store.
    """
    work = Work(list(clips))
    for stage in stages:
        if stage.cuts and work.planned is None:
            work.planned = list(work.clips)
        began, seen = Cost.now(), sum(not clip.rejected for clip in work.clips)
        work.clips = step(stage, work.clips)
        cost = replace(Cost.now().minus(began), units=seen)
        work.costs.setdefault(stage.name, Cost()).add(cost)
    return work


def run_local(stages: Sequence[Stage], clips: Iterable[Clip]) -> list[Clip]:
    """The stages in a loop, one clip after another: for tests and for trying a stage out."""
    for stage in stages:
        stage.setup()
    return [result for clip in clips for result in apply(stages, [clip]).clips]


def step(stage: Stage, clips: Sequence[Clip]) -> list[Clip]:
    """One stage over rows, several at once where it can; refused rows pass by, in their places."""
    live = [clip for clip in clips if not clip.rejected]
    if len(live) > 1 and type(stage).process_many is not Stage.process_many:
        try:
            done = list(stage.process_many(live))
            if len(done) == len(live):
                results = iter(done)
                return [clip if clip.rejected else placed(stage, next(results)) for clip in clips]
            logger.warning("%s gave %d results for %d clips; taking them one by one", stage.name, len(done), len(live))
        except Exception as problem:
            _raise_if_nobodys(problem)
            logger.warning("%s failed on %d clips at once; taking them one by one", stage.name, len(live))
    return [result for clip in clips for result in _step(stage, clip)]


def _step(stage: Stage, clip: Clip) -> list[Clip]:
    if clip.rejected:
        return [clip]
    try:
        results = list(stage.process(clip))
    except Exception as problem:
        _raise_if_nobodys(problem)
        results = [_refused(stage, clip, problem)]
    if not results:
        results = [clip.reject("nothing_found", f"{stage.name} found nothing in it")]
    return [placed(stage, result) for result in results]


def placed(stage: Stage, clip: Clip) -> Clip:
    """A refused row with the stage that refused it on it."""
    return replace(clip, stage=stage.name) if clip.rejected and not clip.stage else clip


def _raise_if_nobodys(problem: Exception) -> None:
    """Raises what no clip is to blame for."""
    if isinstance(problem, (ConfigError, CheckpointError)) or getattr(problem, "code", "") == "store_unreachable":
        raise problem
    if isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT):
        raise problem


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
