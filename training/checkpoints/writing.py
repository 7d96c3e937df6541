"""Writes a snapshot behind the steps: each worker its own files, the first worker the marker that makes them count.

No collective is called here (the steps use them at the same time). Workers say through small files in the shared folder
that their part is safe; failures cross the workers with the steps' own numbers (`saver.Saver.say`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any, BinaryIO

import torch

from training.checkpoints import on_disk
from training.checkpoints.on_disk import PARTS, Written

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Target:
    """Which checkpoint, and which worker writes its part."""

    root: Path
    """The run's checkpoints."""
    step: int
    rank: int
    workers: int
    facts: Mapping[str, Any]
    """For the marker."""
    keep: int
    """Newest checkpoints kept once this one is whole."""
    session: str = ""
    """Of the same name on all workers: one that was killed with its launcher may still write when the next begins."""

    @property
    def folder(self) -> Path:
        """Where it will be."""
        return self.root / on_disk.name_of(self.step)

    @property
    def temporary(self) -> Path:
        """Where it is until it is whole."""
        return self.root / f".{on_disk.name_of(self.step)}.{self.session}.tmp"

    def part(self, rank: int) -> Path:
        """What a worker says of its files."""
        return self.temporary / PARTS / f"{rank:05d}.json"


class Abandoned(Exception):
    """The checkpoint was given up while it was written."""


class Writing:
    """One checkpoint on its way to the disk, in one worker.

    `problem` says why this worker's share failed; its partial files are gone then.
    """

    def __init__(
        self, target: Target, files: Mapping[str, Any], written: Mapping[str, Written], problem: Exception | None = None
    ):
        """`files` are states by name, `written` those that are on disk already, `problem` what went wrong there."""
        self.target = target
        self.problem = problem
        self.is_whole = False
        """Known on the first worker alone."""
        self.seconds = 0.0
        """From the start until it was whole, or on other workers until their files were safe."""
        self._files, self._written = files, dict(written)
        self._started = time.perf_counter()
        self._own_safe, self._given_up = Event(), Event()
        self._thread = Thread(target=self._work, name="checkpoint", daemon=True)

    def start(self) -> Writing:
        """Begins to write."""
        self._thread.start()
        return self

    def wait_for_own(self) -> None:
        """Until this worker's files are safe, or cannot be."""
        self._own_safe.wait()

    def wait(self, seconds: float | None = None) -> None:
        """Until nothing is left to do here; on the first worker that takes all workers' files."""
        self._thread.join(seconds)

    def give_up(self) -> None:
        """Ends the writing soon; what this worker wrote is removed."""
        self._given_up.set()
        self._thread.join()

    def _work(self) -> None:
        try:
            if self.problem is not None:
                raise self.problem
            self._write_own()
            self._own_safe.set()
            if self.target.rank == 0:
                self._make_whole()
        except Abandoned:
            self._remove_own()
        except Exception as problem:
            self.problem = problem  # first: the other workers wait for this one's part until they hear of it
            self._remove_own()
        finally:
            self.seconds = time.perf_counter() - self._started
            self._own_safe.set()

    def _write_own(self) -> None:
        target = self.target
        for name, state in self._files.items():
            self._written[name] = write_state(target.temporary / name, state, self._given_up.is_set)
        target.part(0).parent.mkdir(parents=True, exist_ok=True)
        files = {name: [written.size, written.crc32] for name, written in self._written.items()}
        on_disk.write_safely(target.part(target.rank), {"files": files})

    def _make_whole(self) -> None:
        target = self.target
        files: dict[str, Written] = {}
        for rank in range(target.workers):
            files |= self._part_of(rank)
        on_disk.seal(target.temporary, target.folder, target.facts, files)
        try:
            on_disk.prune(target.root, target.keep)
            on_disk.collect(target.root)
        except OSError as problem:
            logger.warning("older checkpoints could not be removed: %s", problem)
        # Last, as the next checkpoint may begin now, and its folder looks like a left-over.
        self.is_whole = True

    def _part_of(self, rank: int) -> dict[str, Written]:
        path = self.target.part(rank)
        while not path.is_file():
            if self._given_up.wait(POLL_SECONDS):
                raise Abandoned
        said = json.loads(path.read_text())["files"]
        return {name: Written(size, crc32) for name, (size, crc32) in said.items()}

    def _remove_own(self) -> None:
        for name in (*self._files, *self._written):
            with contextlib.suppress(OSError):  # as where a disk that failed can only be read any more
                (self.target.temporary / name).unlink(missing_ok=True)


def write_state(path: Path, state: Any, given_up: Callable[[], bool] = lambda: False) -> Written:  # noqa: ANN401
    """Writes a state with `torch.save`, down to the disk; raises OSError, and Abandoned where `given_up` says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        counted: Any = _Counted(stream, given_up)
        torch.save(state, counted)
        if counted.problem is not None:
            raise counted.problem
        stream.flush()
        os.fsync(stream.fileno())
    return Written(counted.size, counted.crc32)


class _Counted:
    """A stream that keeps its own size and checksum.

    Errors are kept, not raised: torch's writer is C++ and ends the process where a write throws while it closes.
    """

    def __init__(self, stream: BinaryIO, given_up: Callable[[], bool]):
        self.size = self.crc32 = 0
        self.problem: Exception | None = None
        self._stream, self._given_up = stream, given_up

    def write(self, chunk: bytes | memoryview) -> int:
        size = memoryview(chunk).nbytes
        if self.problem is None:
            try:
                if self._given_up():
                    raise Abandoned
                self._stream.write(chunk)
                self.size += size
                self.crc32 = zlib.crc32(chunk, self.crc32)
            except Exception as problem:
                self.problem = problem
        return size

    def flush(self) -> None:
        if self.problem is None:
            try:
                self._stream.flush()
            except OSError as problem:
                self.problem = problem
