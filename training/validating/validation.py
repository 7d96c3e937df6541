"""Validation beside the training: watches a run's checkpoints and has those that are due sampled, one at a time.

It runs in the command's own process, which outlives the workers' restarts, and its whole state is on disk
(`checkpoints/`, `validation/`): a session that was killed is caught up with by the next. The steps are never waited
for; only the end of a run waits for what is on its way, and no longer than `validation_wait_minutes`.
"""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from training.checkpoints import leases, on_disk
from training.config import Run
from training.release.tracking import TrackedRun
from training.run_folder import RunFolder
from training.validating.validation_checks import workers_here
from training.validating.validation_results import folder_of, record, result_at

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
RENEW_SECONDS = 60.0
RECORD_AGAIN_SECONDS = 30.0
MAX_WAITING = 2
"""Checkpoints held for validations to come; where more are due, the oldest are left out, as disks are not endless."""
TRIES = 2


class Sampler(Protocol):
    """Where validations run, one at a time."""

    def start(self, run: Run, step: int) -> None:
        """Begins a validation."""

    def problem(self) -> str | None:
        """None while it runs, then "" or why it failed."""

    def stop(self) -> None:
        """Ends what runs."""


class ChildProcess:
    """Samples in a process of this machine, at a low priority."""

    def __init__(self):
        self._child: subprocess.Popen[bytes] | None = None
        self._log: Path | None = None

    def start(self, run: Run, step: int) -> None:
        """Begins a validation; what it says goes to `RUN/validation/step-X.log`."""
        self._log = folder_of(run.out, step).with_suffix(".log")
        self._log.parent.mkdir(parents=True, exist_ok=True)
        words = [sys.executable, "-m", "training.validating.validation_sampling", str(run.out), str(step)]
        with self._log.open("wb") as log:
            self._child = self._open(words, run, log)
        os.setpriority(os.PRIO_PROCESS, self._child.pid, 10)

    @staticmethod
    def _open(words: list[str], run: Run, log: IO[bytes]) -> subprocess.Popen[bytes]:
        here = str(Path(__file__).resolve().parents[2])
        paths = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
        threads = str(max(1, (os.cpu_count() or 1) // 4))
        environment = {"OMP_NUM_THREADS": threads} | os.environ | {"PYTHONPATH": paths}
        environment["CUDA_VISIBLE_DEVICES"] = free_gpus(run)
        if not run.recipe.validation.validation_gpus:
            environment["DS_ACCELERATOR"] = "cpu"
        # It ends with us: what we hold of its input closes.
        return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment)

    def problem(self) -> str | None:
        """None while it runs, then "" or why it failed."""
        assert self._child is not None
        assert self._log is not None
        code = self._child.poll()
        if not code:
            return None if code is None else ""
        last = self._log.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
        return f"exit code {code}, {last[0][:300]}; all is in {self._log}"

    def stop(self) -> None:
        """Ends what runs."""
        if self._child is not None and self._child.poll() is None:
            self._child.kill()
            self._child.wait()


def free_gpus(run: Run) -> str:
    """CUDA_VISIBLE_DEVICES of a validation in a process of this machine: those behind its workers', which have theirs
    by their local rank; none where it samples on CPUs."""
    wanted, taken = math.ceil(run.recipe.validation.validation_gpus), workers_here(run.recipe)
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = shown.split(",") if shown else [str(index) for index in range(taken + wanted)]
    return ",".join(names[taken : taken + wanted])


@dataclass
class Validator:
    """The validations of one session of a run."""

    run: Run
    tracked: TrackedRun | None
    sampler: Sampler
    _waiting: dict[int, Path] = field(default_factory=dict)
    _current: tuple[int, Path] | None = None
    _failures: Counter[int] = field(default_factory=Counter)
    _left_out: set[int] = field(default_factory=set)
    _renewed: float = 0.0
    _recorded: float = 0.0
    _unrecorded: bool = True

    def look(self) -> None:
        """One look at all there is: never raises, as a validation must not end a training."""
        try:
            self._collect()
            self._find()
            self._renew()
            self._start_next()
            self._record()
        except Exception:
            logger.exception("validation has a problem; it goes on")

    def is_done(self) -> bool:
        """Whether nothing is due that could still be had."""
        return self._current is None and not self._waiting

    def stop(self) -> None:
        """Ends what runs; a later session takes it up."""
        self.sampler.stop()
        for folder in (*self._waiting.values(), *([self._current[1]] if self._current else [])):
            leases.release(folder)

    def _collect(self) -> None:
        if self._current is None:
            return
        problem = self.sampler.problem()
        if problem is None:
            return
        step, folder = self._current
        self._current = None
        leases.release(folder)
        result = result_at(self.run.out, step)
        if problem or result is None:
            self._failures[step] += 1
            logger.warning("validation of step %d failed: %s", step, problem or "it left no metrics")
            return
        self._unrecorded = True
        values = ", ".join(f"{name} {value:.4g}" for name, value in result.values.items())
        logger.info("validation of step %d: %s (%.0f s)", step, values, result.seconds)

    def _find(self) -> None:
        """Holds the checkpoints that are due; leaves the oldest out where too many wait."""
        for found in reversed(on_disk.whole(RunFolder(self.run.out).checkpoints)):
            if self._is_due(found.step):
                try:
                    leases.hold(found.folder)
                except FileNotFoundError:  # pruned this moment
                    continue
                self._waiting[found.step] = found.folder
        while len(self._waiting) > MAX_WAITING:
            step = min(self._waiting)
            leases.release(self._waiting.pop(step))
            self._left_out.add(step)
            logger.warning(
                "step %d is not validated: validations take longer than training does from one to the next; raise "
                "validate_every, lower validation_clips or validation_steps, or give validation_gpus", step,
            )  # fmt: skip

    def _is_due(self, step: int) -> bool:
        settings, last = self.run.recipe.validation, self.run.recipe.optimization.steps
        known = step in self._waiting or step in self._left_out or (self._current and self._current[0] == step)
        return (
            settings.is_due(step, last)
            and not known
            and self._failures[step] < TRIES
            and result_at(self.run.out, step) is None
        )

    def _renew(self) -> None:
        """Marks anew what is held, and drops what was set aside (a restart may go back beyond it)."""
        for step, folder in list(self._waiting.items()):
            if not (folder / on_disk.COMPLETE).is_file():
                del self._waiting[step]
        if time.monotonic() - self._renewed < RENEW_SECONDS:
            return
        self._renewed = time.monotonic()
        for folder in (*self._waiting.values(), *([self._current[1]] if self._current else [])):
            with suppress(FileNotFoundError):
                leases.hold(folder)

    def _start_next(self) -> None:
        if self._current is None and self._waiting:
            step = min(self._waiting)
            self._current = (step, self._waiting.pop(step))
            self.sampler.start(self.run, step)

    def _record(self) -> None:
        """To MLflow; a server that does not answer is asked again later, at the latest by `registering.finish`."""
        if self.tracked is None or not self._unrecorded:
            return
        if self._recorded and time.monotonic() - self._recorded < RECORD_AGAIN_SECONDS:
            return
        try:
            record(self.tracked, self.run.out)
        except Exception as problem:  # MLflow's own, and any of the network's
            self._recorded = time.monotonic()
            logger.warning("the validation could not be recorded, trying again: %s", str(problem)[:200])
            return
        self._recorded, self._unrecorded = 0.0, False


@contextmanager
def alongside(run: Run, tracked: TrackedRun | None, sampler: Sampler) -> Iterator[None]:
    """Validates while the block runs, and after it what is left, where the run was brought to its end."""
    if not run.recipe.validation.validate_every:
        yield
        return
    validator, ending = Validator(run, tracked, sampler), threading.Event()
    thread = threading.Thread(target=_watch, args=(validator, ending), name="validation", daemon=True)
    thread.start()
    try:
        yield
        ending.set()
        thread.join()
        if RunFolder(run.out).model.is_dir():
            _drain(validator, run.recipe.validation.validation_wait_minutes * 60)
    finally:
        ending.set()
        thread.join()
        validator.stop()


def _watch(validator: Validator, ending: threading.Event) -> None:
    while not ending.wait(POLL_SECONDS):
        validator.look()


def _drain(validator: Validator, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    validator.look()
    if not validator.is_done():
        logger.info("waiting for validation, %.0f minutes at most", seconds / 60)
    while not validator.is_done() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        validator.look()
    if not validator.is_done():
        logger.warning(
            "validation did not end in %.0f minutes (validation_wait_minutes); the same command takes it up",
            seconds / 60,
        )


def is_behind(run: Run) -> bool:
    """Whether the validation of the run's last step is due and not there."""
    last = run.recipe.optimization.steps
    return run.recipe.validation.validate_every > 0 and result_at(run.out, last) is None
