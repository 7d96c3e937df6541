"""Our side of `media_prober.py`: asks it about one file, watches who answers, and kills him when he goes too far."""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from dynamictrl.errors import StoreError
from serving.config import Limits

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
START_S = 60.0
"""Seconds that a fresh prober may take to load its decoders."""
LONGEST_ANSWER = 2**20
WATCH_S = 0.02
"""Seconds between two looks at an answering process's memory."""
_BURIAL_S = 5.0

Answer = dict[str, Any]


@dataclass(frozen=True)
class Bounds:
    """How far one answer may go."""

    seconds: float
    limits: Limits
    output_bytes: int = 0

    def words(self) -> dict[str, int]:
        return {"memory": self.limits.probe_memory, "cpu_seconds": max(1, round(self.seconds)),
                "output_bytes": self.output_bytes}  # fmt: skip


class ProberProcess:
    """The prober, started when first needed and again should it ever die. Threads may share it."""

    def __init__(self):
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._warned = False

    def start(self) -> None:
        with self._lock:
            self._running()

    def stop(self) -> None:
        with self._lock:
            self._stop()

    def ask(self, question: Answer, medium: BinaryIO, payload: BinaryIO | None, bounds: Bounds) -> Answer:
        """Facts, or {"code", "message"} where the file cannot be used or its process went too far."""
        receiver, sender = os.pipe()
        child: _Child | None = None
        try:
            try:
                words = json.dumps({**question, "limits": bounds.words()}).encode()
                child = self._asked(words, [medium.fileno(), sender, *([payload.fileno()] if payload else [])])
            finally:
                os.close(sender)
            answer = _watched(child, receiver, bounds)
        finally:
            os.close(receiver)
            if child is not None:
                child.end()
        self._warn(answer.pop("unconfined", []))
        return answer

    def _asked(self, words: bytes, descriptors: list[int]) -> _Child:
        with self._lock:
            for last in (False, True):
                asker = self._running()
                try:
                    socket.send_fds(asker, [words], descriptors)
                    number, handles, _, _ = socket.recv_fds(asker, 64, 1)
                    if not number:
                        raise EOFError
                except (OSError, EOFError) as problem:
                    logger.warning("the media prober has died; another is started")
                    self._stop()
                    if last:
                        raise _away("dies as soon as it is asked") from problem
                    continue
                if number == b"0":
                    raise _away("can make no process: the machine has none left")
                return _Child(int(number), handles[0] if handles else None)
        raise AssertionError("the second try returns or raises")

    def _running(self) -> socket.socket:
        if self._process is not None and self._socket is not None and self._process.poll() is None:
            return self._socket
        self._stop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        environment = {**os.environ, **one_thread, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "serving.media.media_prober", str(theirs.fileno())],
                stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], env=environment, start_new_session=True,
            )  # fmt: skip
        self._socket = ours
        ours.settimeout(START_S)
        try:
            ready = ours.recv(16) == b"ready"
        except OSError:
            ready = False
        if not ready:
            self._stop()
            raise _away("did not start; its own words are above")
        return ours

    def _stop(self) -> None:
        process, self._process = self._process, None
        asker, self._socket = self._socket, None
        if asker is not None:
            asker.close()
        if process is not None:
            process.kill()
            process.wait()

    def _warn(self, missing: list[str]) -> None:
        if missing and not self._warned:
            self._warned = True
            logger.warning("media are opened with less protection than they should be: %s", "; ".join(missing))


class _Child:
    """The process of one file."""

    def __init__(self, number: int, handle: int | None):
        self.number = number
        self._handle = handle

    def resident_bytes(self) -> int:
        """Main memory that it holds, what it shares with the prober included; 0 where it has ended."""
        try:
            pages = int(Path(f"/proc/{self.number}/statm").read_text().split()[1])
        except (OSError, IndexError, ValueError):
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")

    def end(self) -> None:
        """Kills it, if it lives; afterwards nobody else holds the payload."""
        handle, self._handle = self._handle, None
        if handle is None:
            return
        with suppress(OSError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        select.select([handle], [], [], _BURIAL_S)
        os.close(handle)


def _away(what: str) -> StoreError:
    return StoreError(f"the media prober {what}", code="media_prober_away")


def _watched(child: _Child, pipe: int, bounds: Bounds) -> Answer:
    """Reads an answer to its end, with an eye on the clock and on memory."""
    deadline = time.monotonic() + bounds.seconds
    received = bytearray()
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            return _refusal("media_timeout", f"it could not be decoded within {bounds.seconds:g} s")
        ready, _, _ = select.select([pipe], [], [], min(WATCH_S, left))
        if ready:
            chunk = os.read(pipe, 65536)
            received += chunk
            if not chunk:
                return _parsed(received)
            if len(received) > LONGEST_ANSWER:
                return _refusal("media_too_heavy", "there is more to say about it than any file is worth")
        elif child.resident_bytes() > bounds.limits.probe_resident:
            return _refusal("media_too_heavy", "decoding it takes more memory than is allowed")


def _parsed(received: bytes | bytearray) -> Answer:
    try:
        answer = json.loads(received)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        return _refusal("media_too_heavy", "decoding it broke the limit of memory, of processor time, or the decoder")
    return answer


def _refusal(code: str, message: str) -> Answer:
    return {"code": code, "message": message}
