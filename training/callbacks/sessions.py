"""`RUN/sessions.jsonl`: when the run was started, gone on with, saved, exported and ended, one JSON object a line.

Unlike the metrics nothing is ever dropped, so it tells of the steps that a restart takes again (`reached`).
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

from training.callbacks import Callback
from training.callbacks.metrics_file import read_lines

logger = logging.getLogger(__name__)

FILE = "sessions.jsonl"


class Sessions(Callback):
    """Appends what happens to a run; the step is that of the weights at the time."""

    def __init__(self, path: Path, metrics_file: Path):
        """`metrics_file` is `MetricsFile`'s, which stands after this callback: it drops what a restart takes again."""
        self._path, self._metrics_file = path, metrics_file
        self._step = -1

    def on_start(self, step: int) -> None:
        import torch.distributed as dist

        self._step = step
        reached = max((int(line["step"]) for line in read_lines(self._metrics_file)), default=0)
        workers = dist.get_world_size() if dist.is_initialized() else 1
        self._write("start", {"reached": reached, "workers": workers})

    def on_step(self, step: int, metrics: object) -> None:
        self._step = step

    def on_checkpoint(self, step: int, folder: Path) -> None:
        self._write("checkpoint", {"step": step})  # steps may have passed while it was written

    def on_export(self, step: int, model: Path) -> None:
        self._write("export", {})

    def on_close(self) -> None:
        if self._step >= 0:
            self._write("end", {})

    def _write(self, event: str, more: dict[str, int]) -> None:
        line = {"event": event, "step": self._step, "time": round(time.time(), 3), **more}
        try:
            with self._path.open("a") as stream:
                stream.write(json.dumps(line) + "\n")
        except OSError as problem:  # as on a full disk: only the summary page misses it
            logger.warning("%s of step %d is not on record: %s", event, self._step, problem)
