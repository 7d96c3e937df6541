"""Writes a run's checkpoints behind its steps and goes on from the newest that is whole.

Every worker calls its methods together; what one worker alone knows (a failure, a notice to leave) crosses the workers
with each step's numbers: `say` before, `hear` after.
"""

from __future__ import annotations

import errno
import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from dynamictrl.errors import CheckpointError, DynamiCtrlError
from training.checkpoints import on_disk
from training.checkpoints.notice import IsLeaving, Notice
from training.checkpoints.on_disk import STATE, Checkpoint, Written
from training.config import Recipe
from training.engine.parallel import Place
from training.run_folder import RunFolder

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from training.checkpoints.ema import MovingAverage
    from training.checkpoints.writing import Writing

logger = logging.getLogger(__name__)

LAST_CHANCE_SECONDS = 20.0
"""How long a session that ends in an error waits for the other workers' part of a checkpoint."""


class Saver:
    """The checkpoints of one run, in one worker."""

    def __init__(self, folder: RunFolder, recipe: Recipe, place: Place, is_leaving: IsLeaving | None = None):
        """`is_leaving` is asked once a step whether this worker's machine will be taken away."""
        from training.checkpoints.snapshot import HostMemory

        self._root, self._recipe, self._place = folder.checkpoints, recipe, place
        self._notice = Notice(on_signal=recipe.checkpoints.checkpoint_on_signal, is_leaving=is_leaving)
        self._memory = HostMemory()
        self._writing: Writing | None = None
        self._session = ""
        self.last: Path | None = None
        """The newest whole checkpoint that this session knows of."""
        self._whole: list[tuple[int, Path]] = []
        self._told: dict[str, float] = {}
        self._blocked, self._failures = 0.0, 0
        self.leaving = False
        """Whether any worker was told to leave; known after `hear`, on all workers alike."""

    def ask(self) -> None:
        """Asks all workers to make a checkpoint at the end of this step and to leave."""
        self._notice.give()

    def resume(self, engine: DeepSpeedEngine, average: MovingAverage | None) -> int:
        """Puts the newest undamaged checkpoint into the engine; returns the steps done, 0 where there is none.

        Damaged ones are passed by with a warning and set aside. Raises CheckpointError where all are damaged.
        """
        if self._place.is_first:
            on_disk.collect(self._root)
        self._session, *claimed = self._as_first_sees([token_hex(4), *map(str, on_disk.folders(self._root))])
        damages: list[str] = []
        for folder in map(Path, claimed):
            damage = self._damage(folder)
            if damage:
                logger.warning("checkpoint %s is damaged and passed by: %s", folder, damage)
                damages.append(f"{folder.name}: {damage}")
                continue
            self._tidy(claimed, folder)
            self.last = folder
            return self._load(engine, average, Checkpoint.read(folder))
        if damages:
            raise CheckpointError(
                f"all checkpoints in {self._root} are damaged ({'; '.join(damages)}); bring one back from a copy, or "
                f"delete {self._root} to start again from step 0",
                code="checkpoint_damaged",
            )
        return 0

    def save(self, engine: DeepSpeedEngine, average: MovingAverage | None, done: int) -> None:
        """Copies the states aside and has them written; `arrived` tells when the checkpoint is whole."""
        from training.checkpoints.writing import Target, Writing

        started = time.perf_counter()
        self._finish()
        place, settings = self._place, self._recipe.checkpoints
        facts = {"step": done, "workers": place.size, "zero_stage": self._recipe.workers.zero_stage}
        target = Target(self._root, done, place.rank, place.size, facts, settings.keep_checkpoints, self._session)
        if place.is_first:
            shutil.rmtree(target.temporary, ignore_errors=True)
        files, written, problem = self._take(engine, average, done, target.temporary)
        self._writing = Writing(target, files, written, problem).start()
        self._blocked = time.perf_counter() - started
        if not settings.checkpoint_in_background:
            self._finish()
            self._blocked = time.perf_counter() - started

    def say(self) -> list[float]:
        """What the other workers must know at the end of this step; `hear` takes every worker's."""
        problem = self._writing.problem if self._writing is not None else None
        is_whole = self._writing is not None and self._writing.is_whole
        refused, broken = isinstance(problem, OSError), problem is not None and not isinstance(problem, OSError)
        return [float(flag) for flag in (self._notice.given, refused, broken, is_whole)]

    def hear(self, said: Sequence[Sequence[float]]) -> None:
        """Takes what every worker has said, one row a worker; all act alike on it.

        A disk that refuses costs this checkpoint: training goes on and tries again at the next. Any other error raises
        DynamiCtrlError on all workers.
        """
        leaving, refused, broken, whole = (any(column) for column in zip(*said, strict=True))
        self.leaving = self.leaving or leaving
        if refused or broken:
            self._give_up()
        elif whole:
            self._settle()
        if broken:
            raise DynamiCtrlError(
                f"a checkpoint could not be written; the last whole one is {self.last or 'none'}, the reason is in "
                "the log of the worker that failed",
                code="run_failed",
            )

    def arrived(self) -> list[tuple[int, Path]]:
        """Checkpoints (step, folder) that have become whole since this was last asked, on all workers alike."""
        arrived, self._whole = self._whole, []
        return arrived

    def metrics(self) -> dict[str, float]:
        """Of the checkpoint that has just become whole: seconds until then, and how many the steps were blocked.

        Also how many have failed in this session, where any has.
        """
        told, self._told = self._told, {}
        return told | ({"checkpoint_failures": float(self._failures)} if self._failures else {})

    def close(self) -> None:
        """Waits for what is still being written, on all workers; listens to no signal any more."""
        self._finish()
        self._notice.close()

    def abandon(self) -> None:
        """Ends this session after an error, without the other workers: what is being written gets a last chance."""
        self._notice.close()
        if self._writing is not None:
            self._writing.wait(LAST_CHANCE_SECONDS)
            self._writing.give_up()
            self._writing = None

    def _take(
        self, engine: DeepSpeedEngine, average: MovingAverage | None, done: int, temporary: Path
    ) -> tuple[dict[str, Any], dict[str, Written], Exception | None]:
        """Copies of this worker's states by file; those written at once for want of memory, and what went wrong."""
        from training.checkpoints.average import file_of
        from training.checkpoints.snapshot import SnapshotEngine, led_aside
        from training.checkpoints.writing import write_state

        written: dict[str, Written] = {}
        problems: list[Exception] = []

        def write_now(name: str, state: Any) -> None:  # noqa: ANN401 - nested containers
            try:
                written[name] = write_state(temporary / name, state)
            except OSError as problem:  # the others wait in a collective, and must not for ever
                problems.append(problem)

        self._memory.rewind()
        snapshot = SnapshotEngine(self._memory, temporary, write_now)
        with led_aside(engine, snapshot):
            engine.save_checkpoint(
                str(temporary),
                tag=STATE,
                client_state={"step": done},
                save_latest=False,
                exclude_frozen_parameters=_has_adapter(engine),  # what a LoRA run leaves alone is in its base
            )
        if average is not None:
            snapshot.add(file_of(self._place.rank), average.fragments())
        if self._place.device.type == "cuda":
            torch.cuda.synchronize()
        return snapshot.files, written, problems[0] if problems else None

    def _load(self, engine: DeepSpeedEngine, average: MovingAverage | None, found: Checkpoint) -> int:
        from training.checkpoints import elastic
        from training.checkpoints.average import fill

        if found.workers != self._place.size:
            logger.info("%s was written by %d workers and %d go on", found.folder, found.workers, self._place.size)
            state = elastic.load(engine, found)
        else:
            strict = not _has_adapter(engine)
            _, state = engine.load_checkpoint(str(found.folder), tag=STATE, load_module_strict=strict)
        if state is None or state.get("step") != found.step:
            raise CheckpointError(
                f"{found.folder} is not of step {found.step}; delete it to go on from the one before",
                code="checkpoint_damaged",
            )
        if average is not None:
            fill(average.fragments(), found.folder, found.workers)
        return found.step

    def _damage(self, folder: Path) -> str:
        """What any worker finds wrong with a checkpoint; each reads its share of the files."""
        try:
            mine = Checkpoint.read(folder).damage(self._place.rank, self._place.size)
        except CheckpointError as problem:
            mine = str(problem)
        found: list[str] = [""] * self._place.size
        dist.all_gather_object(found, mine)
        return next(filter(None, found), "")

    def _tidy(self, claimed: list[str], taken: Path) -> None:
        """What lies after the checkpoint that is gone on from is of a course that will not come again.

        What a kill kept from being removed before goes as well.
        """
        if self._place.is_first:
            for folder in map(Path, claimed[: claimed.index(str(taken))]):
                on_disk.set_aside(folder)
            on_disk.prune(self._root, self._recipe.checkpoints.keep_checkpoints)
        dist.barrier()

    def _as_first_sees(self, names: list[str]) -> list[str]:
        """The first worker's names; of a shared folder, other machines may see less at this moment."""
        both: list[Any] = [names]
        dist.broadcast_object_list(both, 0)
        return both[0]

    def _finish(self) -> None:
        """Waits until the checkpoint on its way is whole or given up, on all workers alike."""
        if self._writing is None:
            return
        self._writing.wait_for_own()
        self.hear(self._everyone())
        if self._writing is not None:
            if self._place.is_first:
                self._writing.wait()
            self.hear(self._everyone())

    def _everyone(self) -> list[list[float]]:
        mine = torch.tensor(self.say(), dtype=torch.float64, device=self._place.device)
        everyone = torch.empty(self._place.size * mine.numel(), dtype=torch.float64, device=self._place.device)
        dist.all_gather_into_tensor(everyone, mine)
        return everyone.view(self._place.size, -1).tolist()

    def _settle(self) -> None:
        """The checkpoint on its way is whole."""
        writing, self._writing = self._writing, None
        assert writing is not None
        self.last = writing.target.folder
        self._whole.append((writing.target.step, writing.target.folder))
        self._told = {"checkpoint_seconds": writing.seconds, "checkpoint_blocked_seconds": self._blocked}

    def _give_up(self) -> None:
        """Ends the checkpoint on its way, on all workers, and removes what there is of it."""
        writing, self._writing = self._writing, None
        assert writing is not None
        writing.give_up()
        self._failures += 1
        problem = writing.problem
        if problem is not None:
            logger.error(
                "checkpoint of step %d could not be written: %s. Training goes on and tries again at the next one; the "
                "last whole one is %s", writing.target.step, _in_words(problem), self.last or "none",
                exc_info=None if isinstance(problem, OSError) else problem,
            )  # fmt: skip
        dist.barrier()  # nobody writes any more
        if self._place.is_first:
            shutil.rmtree(writing.target.temporary, ignore_errors=True)


def _in_words(problem: Exception) -> str:
    if isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"no space is left for it ({problem}); free some, or keep fewer with --keep-checkpoints"
    return str(problem)


def _has_adapter(engine: DeepSpeedEngine) -> bool:
    return bool(getattr(engine.module, "peft_config", None))
