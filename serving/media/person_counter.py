"""Counts the persons in pictures with the pose model, in a process of its own that keeps the model.

It sees pixels that `MediaGuard` has had decoded, never a stranger's file, and its memory is not the ingress's. Run as a
program it is that process: for each line {"shape"} and the pixels behind it, one line back.
"""

from __future__ import annotations

import json
import logging
import os
import select
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any

from dynamictrl.errors import CheckpointError

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

LOOK_S = 120.0
"""Seconds for one picture, the model's loading with the first of them included."""
LARGEST_SIDE = 1920
"""Pixels; the detector itself looks at a few hundred."""


class PersonCounter:
    """The process and its one question. Threads may share it; they take turns."""

    def __init__(self, pose_model: str):
        self._pose_model = pose_model
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def count(self, picture: Image.Image) -> dict[str, Any]:
        """{"persons"}, or {"code", "message"}; starts the process where there is none."""
        picture = picture.copy()
        picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
        with self._lock:
            process = self._running()
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps({"shape": [picture.height, picture.width, 3]}).encode() + b"\n")
                process.stdin.write(picture.convert("RGB").tobytes())
                process.stdin.flush()
                return _line(process, LOOK_S)
            except (OSError, EOFError, ValueError):
                self._stop()
                logger.warning("the pose model gave no answer about a picture; its process is started anew")
                return {"code": "media_timeout", "message": "the pose model gave no answer about it; try again"}

    def stop(self) -> None:
        with self._lock:
            self._stop()

    def _running(self) -> subprocess.Popen[bytes]:
        from serving.media.prober_process import ROOT

        if self._process is None or self._process.poll() is not None:
            self._stop()
            paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
            self._process = subprocess.Popen(
                [sys.executable, "-m", "serving.media.person_counter", self._pose_model],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        return self._process

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()


def _line(process: subprocess.Popen[bytes], seconds: float) -> dict[str, Any]:
    """One JSON line; EOFError where there is none within `seconds`."""
    assert process.stdout is not None
    deadline, line = time.monotonic() + seconds, bytearray()
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        chunk = os.read(process.stdout.fileno(), 65536) if ready else b""
        if not chunk:
            raise EOFError
        line += chunk
    return json.loads(line)


def main(pose_model: str, questions: IO[bytes], answers: IO[bytes]) -> None:
    """Answers until the other side is gone."""
    import numpy as np

    from dynamictrl.poses.dwpose import PoseEstimator

    estimator: PoseEstimator | None = None
    for line in questions:
        height, width, channels = json.loads(line)["shape"]
        pixels = np.frombuffer(questions.read(height * width * channels), np.uint8).reshape(1, height, width, channels)
        try:
            estimator = estimator or PoseEstimator(pose_model, num_threads=1)
            said: dict[str, Any] = {"persons": int(estimator(pixels).present().any(axis=0).sum())}
        except CheckpointError:
            logger.exception("the pose model cannot be loaded")
            said = {"code": "no_pose_model", "message": "this service has no pose model; send a pose_video instead"}
        answers.write(json.dumps(said).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    # Native libraries may write to standard output: it is kept for answers.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    main(sys.argv[1], sys.stdin.buffer, out)
