"""Stages run in a child process that may hang, crash or eat memory without taking the job along.

Decoders see strangers' bytes. One child serves many sources, is killed at a time limit, and is started again on demand.
Messages are pickles over its stdin and stdout: our own process's, never a stranger's.
"""

from __future__ import annotations

import logging
import os
import pickle
import queue
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from pipelines.clip import Clip
from pipelines.stage import Stage, Work, apply

logger = logging.getLogger(__name__)

ATTEMPTS = 2
"""A crash may be the machine's fault once; the second one is the source's."""


@dataclass
class Child:
    """A process that applies stages to clips, one at a time."""

    stages: Sequence[Stage]
    time_limit: float
    """Seconds that one source may take."""
    memory_gib: float
    """Address space of the child; 0 = no limit."""
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _answers: queue.Queue[bytes | None] = field(default_factory=queue.Queue, init=False)

    def apply(self, clips: Sequence[Clip], first: int = 0) -> Work:
        """As `stage.apply`, of the stages from number `first` on, to the rows of one source.

        A hang or a crash becomes a quarantine with the code `time_limit` or `crashed`.

        What the stages raise on purpose (wrong settings, missing weights) is raised here.
        """
        code = 0
        for attempt in range(1, ATTEMPTS + 1):
            process = self._running()
            try:
                _send(process.stdin, pickle.dumps((list(clips), first)))
                answer = self._answers.get(timeout=self.time_limit)
            except queue.Empty:
                self.stop()
                return self._refused(clips, "time_limit", f"took longer than {self.time_limit:g} s")
            except BrokenPipeError:
                answer = None
            if answer is not None:
                return _opened(answer)
            code = process.wait()
            self.stop()
            source = clips[0].source
            logger.warning("the process that read %s died with exit code %s (attempt %s)", source, code, attempt)
        return self._refused(clips, "crashed", f"the process that read it died {ATTEMPTS} times (exit code {code})")

    def stop(self) -> None:
        """Kills the child, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
        self._process, self._answers = None, queue.Queue()

    def _refused(self, clips: Sequence[Clip], code: str, message: str) -> Work:
        """The whole source, whichever of its shots was being read."""
        return Work([replace(clips[0].quarantine(code, message), key="", stage=self.stages[0].name)])

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.stop()
            root = str(Path(__file__).parents[1])
            path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pipelines.isolation"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": path},
            )
            _send(self._process.stdin, pickle.dumps((tuple(self.stages), self.memory_gib)))
            reader = threading.Thread(target=_read_answers, args=(self._process.stdout, self._answers), daemon=True)
            reader.start()
        return self._process


def _opened(answer: bytes) -> Work:
    result = pickle.loads(answer)
    if isinstance(result, Exception):
        raise result
    return result


def _read_answers(pipe: IO[bytes], answers: queue.Queue[bytes | None]) -> None:
    while (answer := _receive(pipe)) is not None:
        answers.put(answer)
    answers.put(None)


def _send(pipe: IO[bytes] | None, message: bytes) -> None:
    assert pipe is not None
    pipe.write(struct.pack("!Q", len(message)) + message)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> bytes | None:
    """The next message; None at the end of the pipe."""
    try:
        header = pipe.read(8)
        if len(header) < 8:
            return None
        (length,) = struct.unpack("!Q", header)
        message = pipe.read(length)
    except (OSError, ValueError):
        return None
    return message if len(message) == length else None


def _serve() -> None:
    """The child's life: stages first, then one clip after another, until the parent is gone."""
    answers = os.fdopen(os.dup(1), "wb")
    # Whatever a library prints must not be read as an answer.
    os.dup2(2, 1)
    threading.Thread(target=_leave_with_parent, args=(os.getppid(),), daemon=True).start()
    first = _receive(sys.stdin.buffer)
    if first is None:
        return
    stages, memory_gib = pickle.loads(first)
    _limit_memory(memory_gib)
    failure = _set_up(stages)
    while (message := _receive(sys.stdin.buffer)) is not None:
        try:
            clips, first = pickle.loads(message)
            result: Work | Exception = failure or apply(stages[first:], clips)
        except Exception as problem:
            result = problem
        _send(answers, pickle.dumps(result))


def _set_up(stages: Sequence[Stage]) -> Exception | None:
    """What went wrong in setting up is the answer to every clip: the parent raises it."""
    try:
        for stage in stages:
            stage.setup()
    except Exception as problem:
        return problem
    return None


def _limit_memory(gib: float) -> None:
    if gib > 0 and sys.platform == "linux":
        import resource

        limit = int(gib * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _leave_with_parent(parent: int) -> None:
    # A killed job must not leave a decoder behind that writes while the next run starts.
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    _serve()
