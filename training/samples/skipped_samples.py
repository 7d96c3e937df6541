"""Clips that turn out unreadable in the middle of a run: noted, counted, and too many of them end it."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from threading import Lock

from dynamictrl.errors import DatasetError
from training.samples.order import Draw

logger = logging.getLogger(__name__)

NAME = "skipped.jsonl"
"""In the run folder."""


class SkippedSamples:
    """One line a clip, by whichever worker met it; a clip counts once, however often it comes."""

    def __init__(self, folder: Path | None, limit: int):
        """`folder` is the run's; None keeps no record beyond this process."""
        self._path = folder / NAME if folder is not None else None
        self._limit = limit
        self._lock = Lock()
        self._known = self._on_record()

    def note(self, draw: Draw, reason: str) -> None:
        """Raises DatasetError (code "run_failed") where these are more clips than may be."""
        with self._lock:
            if draw.entry.key not in self._known:
                self._known.add(draw.entry.key)
                self._write(draw, reason)
                logger.warning("clip %s cannot be read and another stands in: %s", draw.entry.key, reason)
            self._known |= self._on_record()
            if len(self._known) > self._limit:
                raise self._too_many(draw, reason)

    def _too_many(self, draw: Draw, reason: str) -> DatasetError:
        shard, listed = draw.entry.shard, f"; {self._path} names all" if self._path else ""
        return DatasetError(
            f"{len(self._known)} clips could not be read and max_bad_samples is {self._limit}; the last is "
            f"{draw.entry.key} of {shard} ({reason}){listed}. Find what is wrong with `python -m pipelines verify "
            f"--dataset {shard.parent.parent}`, or go on with a higher --max-bad-samples",
            code="run_failed",
        )

    def _write(self, draw: Draw, reason: str) -> None:
        if self._path is None:
            return
        line = {"key": draw.entry.key, "shard": draw.entry.shard.name, "index": draw.position, "reason": reason}
        # One write of one line: those of several workers do not mix.
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(descriptor, (json.dumps(line, ensure_ascii=False) + "\n").encode())
            finally:
                os.close(descriptor)
        except OSError as problem:  # as on a full disk: this process still counts the clip
            logger.warning("clip %s is not in %s: %s", draw.entry.key, self._path, problem)

    def _on_record(self) -> set[str]:
        keys = set()
        for line in self._path.read_text().splitlines() if self._path and self._path.is_file() else ():
            try:
                keys.add(json.loads(line)["key"])
            except (ValueError, KeyError):
                continue  # a line that a kill cut short
        return keys
