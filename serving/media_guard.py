"""The door for strangers' media: every file is looked at in a process that may die, before anyone else opens it.

Decoders are the likeliest thing to hang, crash or eat memory over a hostile file. The prober (`media_prober.py`) runs
with limits on time, address space and file size, and is killed and replaced when it breaks one; whatever happens in it,
the caller gets facts or an InputError with a code.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import select
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynamictrl.errors import InputError
from serving.config import Limits
from serving.jobs import VideoFacts

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
START_S = 60.0
"""Seconds that a fresh prober may take to import its libraries."""


@dataclass(frozen=True)
class ImageFacts:
    """An image that decodes: pixels, upright."""

    width: int
    height: int


class MediaGuard:
    """A few probers and the questions they answer. Threads may share it; each question has a prober to itself."""

    def __init__(self, limits: Limits, pose_model: str, *, probers: int = 2):
        self.limits = limits
        self._free: queue.Queue[_Prober] = queue.Queue()
        for _ in range(probers):
            self._free.put(_Prober(limits, pose_model))

    def image(self, path: Path, param: str) -> ImageFacts:
        """Decodes a person image or mask; raises InputError with `param`."""
        return ImageFacts(**self._ask("image", path, param))

    def video(self, path: Path, param: str) -> VideoFacts:
        """Opens a video and decodes its first frame; raises InputError with `param`."""
        return VideoFacts(**self._ask("video", path, param))

    def persons(self, path: Path, param: str) -> int:
        """How many persons the pose model sees in an image."""
        return self._ask("persons", path, param)["persons"]

    def warm(self) -> None:
        """Starts the probers now, so that the first request does not wait for their imports."""
        probers = [self._free.get() for _ in range(self._free.qsize())]
        for prober in probers:
            try:
                prober.start()
            finally:
                self._free.put(prober)

    def close(self) -> None:
        with suppress(queue.Empty):
            while True:
                self._free.get_nowait().stop()

    def _ask(self, question: str, path: Path, param: str) -> dict[str, Any]:
        size = path.stat().st_size
        if size > self.limits.media_bytes:
            raise InputError(
                f"{param} has {size} bytes; at most {self.limits.media_bytes} are taken", code="too_large", param=param
            )
        prober = self._free.get()
        try:
            answer = prober.ask({"question": question, "path": str(path)}, self.limits.probe_seconds)
        finally:
            self._free.put(prober)
        if "code" in answer:
            raise InputError(f"{param}: {answer['message']}", code=answer["code"], param=param)
        return answer


class _Prober:
    """One child process, started when first needed and again after each death."""

    def __init__(self, limits: Limits, pose_model: str):
        self._words = [
            sys.executable, "-m", "serving.media_prober", str(limits.probe_memory), str(limits.image_pixels),
            str(limits.frame_pixels), str(limits.video_seconds), pose_model
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, question: dict[str, str], seconds: float) -> dict[str, Any]:
        process = self.start()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
            answer = self._read_line(process, seconds)
        except (OSError, EOFError):
            self.stop()
            return {"code": "media_too_heavy", "message": "decoding it broke the memory or stability limit"}
        if answer is None:
            self.stop()
            return {"code": "media_timeout", "message": f"it could not be decoded within {seconds:g} s"}
        return answer

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()
        self._process = None

    def start(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.stop()
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1",
                       "OMP_NUM_THREADS": "1"}  # fmt: skip
        self._process = subprocess.Popen(
            self._words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
        )
        if self._read_line(self._process, START_S) is None:
            self.stop()
            raise RuntimeError(f"the media prober did not start within {START_S:g} s")
        return self._process

    @staticmethod
    def _read_line(process: subprocess.Popen[bytes], seconds: float) -> dict[str, Any] | None:
        """One JSON line; None after `seconds`; EOFError where the process has ended."""
        assert process.stdout is not None
        descriptor = process.stdout.fileno()
        deadline = time.monotonic() + seconds
        line = bytearray()
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return None
            chunk = os.read(descriptor, 65536)
            if not chunk:
                raise EOFError("the prober ended")
            line += chunk
        return json.loads(line)
