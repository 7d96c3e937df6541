"""`RUN/metrics.jsonl`: every step's metrics, one JSON object a line, each step once, with its time (seconds, 1970)."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.callbacks import Callback

logger = logging.getLogger(__name__)


class MetricsFile(Callback):
    """Appends each step; a session that goes on from a checkpoint first drops what came after it."""

    def __init__(self, path: Path):
        self._path = path

    def on_start(self, step: int) -> None:
        keep_until(self._path, step)
        self._stream = self._path.open("a")

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        # JSON has no NaN: what is not a number is null.
        told = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        try:
            self._stream.write(json.dumps({"step": step, "time": round(time.time(), 3)} | told) + "\n")
            self._stream.flush()
        except OSError as problem:  # as on a full disk: the line stays in the stream's buffer, for the next flush
            logger.warning("the metrics of step %d wait for the disk: %s", step, problem)

    def on_checkpoint(self, step: int, folder: Path) -> None:
        # A checkpoint is gone on from with the steps before it on record, also where the machine goes down.
        try:
            os.fsync(self._stream.fileno())
        except OSError as problem:
            logger.warning("the metrics up to step %d wait for the disk: %s", step, problem)

    def on_close(self) -> None:
        if hasattr(self, "_stream"):
            try:
                self._stream.close()
            except OSError as problem:
                logger.warning("the last metrics could not be written: %s", problem)


class Tail:
    """Reads a growing file of JSON lines, each line once."""

    def __init__(self, path: Path):
        self._path, self._offset = path, 0

    def read(self, most: int = 1 << 20) -> list[dict[str, Any]]:
        """The whole lines that were added since, of about `most` bytes at a time; none where there is no file."""
        if not self._path.is_file():
            return []
        with self._path.open("rb") as stream:
            stream.seek(self._offset)
            found = stream.read(most)
            found += stream.readline() if found and not found.endswith(b"\n") else b""
        whole = found[: found.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [line for line in map(_parsed, whole.decode().splitlines()) if line is not None]


def keep_until(path: Path, step: int) -> None:
    """Drops the lines of steps after `step` from a file of JSON lines, at once or not at all."""
    if not path.is_file():
        return
    kept = [json.dumps(line) + "\n" for line in read_json_lines(path) if line["step"] <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept))
    temporary.replace(path)


def read_lines(path: Path) -> list[dict[str, float]]:
    """The whole lines of a metrics file, NaN where a value is null; one that a kill cut short is passed by."""
    return [
        {name: math.nan if value is None else value for name, value in line.items()} for line in read_json_lines(path)
    ]


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of JSON objects; none where there is no file."""
    if not path.is_file():
        return []
    lines = (_parsed(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("}\n"))
    return [line for line in lines if line is not None]


def _parsed(line: str) -> dict[str, Any] | None:
    """A line's object; None where it was cut short, as by a full disk, and the next one follows in the same line."""
    try:
        return json.loads(line)
    except ValueError:
        return None
