"""The life of an isolated child: limits first, then stages, then the rows of one source after another.

Started by `isolation.Child`; it imports no more than its stages need, so that starting one is cheap.
"""

from __future__ import annotations

import faulthandler
import math
import os
import pickle
import struct
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from pipelines.stage import Stage, Work, apply

HEADER = struct.Struct("!Q")
"""Before each message: its length in bytes."""
READY = b"ready"
"""The first message: stages are set up, or have failed to, which is then the answer to everything."""
HEADROOM_GIB = 4.0
"""Of address space above the memory limit: threads' stacks and mapped libraries take it and hold nothing."""
LARGEST_FILE = 64 * 2**30
"""Bytes; a clip that grows longer is no clip."""


def framed(message: bytes) -> bytes:
    """A message as it travels."""
    return HEADER.pack(len(message)) + message


def received(pipe: IO[bytes]) -> bytes | None:
    """The next message; None at the end of the pipe."""
    header = pipe.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    (length,) = HEADER.unpack(header)
    message = pipe.read(length)
    return message if len(message) == length else None


def serve() -> None:
    """Answers until the parent is gone."""
    answers = os.fdopen(os.dup(1), "wb")
    # Whatever a library prints must not be read as an answer.
    os.dup2(2, 1)
    faulthandler.enable()
    threading.Thread(target=_leave_with_parent, args=(os.getppid(),), daemon=True).start()
    first = received(sys.stdin.buffer)
    if first is None:
        return
    stages, memory_gib, cpu_limit = pickle.loads(first)
    _limit_process(memory_gib)
    failure = _set_up(stages)
    _say(answers, READY)
    while (message := received(sys.stdin.buffer)) is not None:
        _limit_cpu(cpu_limit)
        _say(answers, pickle.dumps(failure or _applied(stages, *pickle.loads(message))))


def _say(pipe: IO[bytes], message: bytes) -> None:
    pipe.write(framed(message))
    pipe.flush()


def _applied(stages: Sequence[Stage], clips: Sequence, first: int) -> Work | Exception:
    try:
        return apply(stages[first:], clips)
    except Exception as problem:
        return problem


def _set_up(stages: Sequence[Stage]) -> Exception | None:
    """What went wrong in setting up is the answer to every source: the parent raises it."""
    try:
        for stage in stages:
            stage.setup()
    except Exception as problem:
        return problem
    return None


def _limit_process(memory_gib: float) -> None:
    if sys.platform != "linux":
        return
    import resource

    if memory_gib > 0:
        most = int((memory_gib + HEADROOM_GIB) * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if hard == resource.RLIM_INFINITY or hard > LARGEST_FILE:
        resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, hard))
    try:
        # Where the machine runs out of memory, the kernel takes this process and not the one that keeps the record.
        Path("/proc/self/oom_score_adj").write_text("1000")
    except OSError:
        return


def _limit_cpu(seconds: float) -> None:
    """The kernel ends the process with SIGXCPU, in C code as well, when a source has had its seconds."""
    if seconds > 0 and sys.platform == "linux":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time() + seconds), hard))


def _leave_with_parent(parent: int) -> None:
    # A killed job must not leave a decoder behind that writes while the next run starts.
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    serve()
