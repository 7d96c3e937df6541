"""`RUN/metrics.jsonl`: every step's metrics, one JSON object a line, each step once, with its time (seconds, 1970)."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

from training.callbacks import Callback


class MetricsFile(Callback):
    """Appends each step; a session that goes on from a checkpoint first drops what came after it."""

    def __init__(self, path: Path):
        self._path = path

    def on_start(self, step: int) -> None:
        kept = [line for line in read_lines(self._path) if line["step"] <= step]
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        temporary.replace(self._path)
        self._stream = self._path.open("a")

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        self._stream.write(json.dumps({"step": step, "time": round(time.time(), 3)} | dict(metrics)) + "\n")
        self._stream.flush()

    def on_close(self) -> None:
        if hasattr(self, "_stream"):
            self._stream.close()


def read_lines(path: Path) -> list[dict[str, float]]:
    """The whole lines of a metrics file; one that a kill cut short is passed by."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("}\n")]
