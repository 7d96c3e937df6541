"""Stages run in a child process that may hang, crash, flood or eat memory without taking the job along.

Decoders see strangers' bytes. One child (`isolated`) serves many sources, is watched while it works, killed at a limit,
and started again on demand. Messages are pickles over its stdin and stdout: our own process's, never a stranger's.

What happens to the process is charged to the source that it was reading:

| code | the child |
|---|---|
| time_limit | took longer than the limit, working or not |
| cpu_limit | used more processor time than the limit, of all its threads |
| out_of_memory | held more memory than the limit, or asked for it |
| output_flood | wrote more text, or a longer answer, than any source is worth |
| crashed | died of itself, twice |
"""

from __future__ import annotations

import logging
import os
import pickle
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from dynamictrl.errors import ConfigError
from pipelines.clip import Clip
from pipelines.stage import Stage, Work
from pipelines.work.isolated import HEADER, READY, framed

logger = logging.getLogger(__name__)

ATTEMPTS = 2
"""A crash may be the machine's fault once; the second one is the source's."""
WATCH = 0.1
"""Seconds between two looks at the child's memory."""
START_LIMIT = 600.0
"""Seconds that a child may take to load what its stages need; no source is charged for that."""
LONGEST_ANSWER = 256 * 2**20
MOST_TEXT = 64 * 2**20
"""Bytes that a source may make libraries print before it is charged for it."""
PASSED_ON = 64 * 2**10
"""Bytes of a source's text that are passed on to this process's stderr; the rest is dropped."""


@dataclass(frozen=True)
class _End:
    """How a child ended that gave no answer."""

    code: str
    message: str
    final: bool = True
    """False where another try may go well."""


@dataclass
class Child:
    """A process that applies stages to the rows of one source at a time."""

    stages: Sequence[Stage]
    time_limit: float
    """Seconds that one source may take."""
    memory_gib: float
    """GiB of main memory that the child may hold; 0 = no limit."""
    cpu_limit: float = 0.0
    """Seconds of processor time, of all threads, that one source may take; 0 = no limit."""
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _text: int = field(default=0, init=False)
    """Bytes that the child has printed over the present source."""

    def apply(self, clips: Sequence[Clip], first: int = 0) -> Work:
        """As `stage.apply`, of the stages from number `first` on, to the rows of one source.

        What befalls the child becomes a quarantine of the source (table above). What the stages raise on purpose
        (wrong settings, missing weights) is raised here, and ConfigError where no child can be started.
        """
        request = framed(pickle.dumps((list(clips), first)))
        end = _End("crashed", "")
        for attempt in range(1, ATTEMPTS + 1):
            fresh = self._process is None
            answer = self._asked(request)
            if isinstance(answer, bytes):
                self._retire_if_fat()
                return self._named(_opened(answer))
            self.stop()
            end = answer
            logger.warning("%s: the process that read it %s (attempt %s)", clips[0].source, end.message, attempt)
            # What a child had kept from other sources must not be charged to this one.
            if end.final and (fresh or end.code != "out_of_memory"):
                break
        return self._refused(clips, end)

    def stop(self) -> None:
        """Kills the child, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with suppress(BrokenPipeError):  # what it never read is still to be written
                        pipe.close()

    def _refused(self, clips: Sequence[Clip], end: _End) -> Work:
        """The whole source, whichever of its shots was being read."""
        message = f"the process that read it {end.message}"
        return Work([replace(clips[0].quarantine(end.code, message), key="", stage=self.stages[0].name)])

    def _named(self, work: Work) -> Work:
        """Where the child itself was refused memory, says by which limit."""
        said = f"; the limit is {self.memory_gib:g} GiB (--memory-gib raises it)"
        work.clips = [
            replace(c, message=c.message + said) if c.rejected == "out_of_memory" and self.memory_gib else c
            for c in work.clips
        ]
        return work

    def _asked(self, request: bytes) -> bytes | _End:
        """The child's answer, or its end."""
        process = self._running()
        self._text = 0
        try:
            _write(process, request)
        except BrokenPipeError:
            return self._death(process)
        return self._answer(process, self.time_limit)

    def _answer(self, process: subprocess.Popen[bytes], limit: float) -> bytes | _End:
        """Waits for one message, with an eye on the child."""
        assert process.stdout is not None
        assert process.stderr is not None
        answer, text = process.stdout.fileno(), process.stderr.fileno()
        open_pipes = [answer, text]
        received = bytearray()
        deadline = time.monotonic() + limit
        looked = 0.0
        while True:
            ready, _, _ = select.select(open_pipes, [], [], WATCH)
            if text in ready and not self._pass_on(text):
                open_pipes.remove(text)
            if answer in ready:
                part = os.read(answer, 1 << 20)
                received += part
                if not part:
                    return self._death(process)
                if len(received) >= HEADER.size:
                    (length,) = HEADER.unpack_from(received)
                    if length > LONGEST_ANSWER:
                        return _End("output_flood", f"gave an answer of {length} bytes; at most {LONGEST_ANSWER}")
                    if len(received) == HEADER.size + length:
                        return bytes(received[HEADER.size :])
                continue
            now = time.monotonic()
            if now - looked >= WATCH:
                looked = now
                if end := self._verdict(process, now > deadline, limit):
                    return end

    def _verdict(self, process: subprocess.Popen[bytes], late: bool, limit: float) -> _End | None:
        if late:
            return _End("time_limit", f"took longer than {limit:g} s (--time-limit raises it)")
        held = _resident_gib(process.pid)
        if 0 < self.memory_gib < held:
            return _End("out_of_memory", f"held {held:.1f} GiB; at most {self.memory_gib:g} (--memory-gib raises it)")
        if self._text > MOST_TEXT:
            return _End("output_flood", f"printed more than {MOST_TEXT // 2**20} MiB of text")
        return None

    def _pass_on(self, pipe: int) -> bool:
        """False at the end of the pipe."""
        part = os.read(pipe, 1 << 16)
        room = PASSED_ON - self._text
        self._text += len(part)
        if room > 0 and part:
            sys.stderr.write(part[:room].decode(errors="replace"))
            sys.stderr.flush()
        return bool(part)

    def _death(self, process: subprocess.Popen[bytes]) -> _End:
        """What a child died of that nobody here killed."""
        try:
            code = process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return _End("crashed", "closed its pipe and did not end", final=False)
        if code == -signal.SIGXCPU:
            return _End("cpu_limit", f"used {self.cpu_limit:g} s of processor time (--cpu-limit raises it)")
        how = f"exit code {code}"
        if code < 0:
            how = signal.Signals(-code).name
        if code == -signal.SIGKILL:
            how += ", by the kernel for want of memory, most likely"
        return _End("crashed", f"died {ATTEMPTS} times ({how})", final=False)

    def _retire_if_fat(self) -> None:
        # Memory that libraries do not give back would be charged to the next source.
        if self._process is not None and 0 < self.memory_gib < 2 * _resident_gib(self._process.pid):
            self.stop()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.stop()
            self._process = self._started()
        return self._process

    def _started(self) -> subprocess.Popen[bytes]:
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p)
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.work.isolated"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )
        self._process, self._text = process, 0
        try:
            _write(process, framed(pickle.dumps((tuple(self.stages), self.memory_gib, self.cpu_limit))))
            said = self._answer(process, START_LIMIT)
        except BrokenPipeError:
            said = self._death(process)
        if said != READY:
            self.stop()
            what = said.message if isinstance(said, _End) else "said something else than that it is ready"
            raise ConfigError(f"the process that reads sources cannot start: it {what}", code="isolation_failed")
        return process


def _write(process: subprocess.Popen[bytes], message: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(message)
    process.stdin.flush()


def _opened(answer: bytes) -> Work:
    result = pickle.loads(answer)
    if isinstance(result, Exception):
        raise result
    return result


def _resident_gib(process: int) -> float:
    """Main memory that a process holds; 0 where the system does not say."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**30
