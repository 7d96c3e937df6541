"""Finds the shards of curated data sets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from dynamictrl.samples.shards import open_dataset
from pipelines.clip import Clip
from pipelines.stage import Stage


@dataclass(frozen=True)
class FindSamples(Stage):
    """Turns a data set folder into one row per shard."""

    per: ClassVar[Literal["source", "clip"]] = "source"

    def process(self, clip: Clip) -> Iterable[Clip]:
        """Raises DatasetError where `clip.source` is no data set folder of this schema."""
        for path in open_dataset(Path(clip.source).expanduser()).shards:
            path = path.absolute()
            status = path.stat()
            mark = hashlib.sha256(f"{path}\n{status.st_size}\n{status.st_mtime_ns}".encode()).hexdigest()[:32]
            yield replace(clip, source=str(path), path=str(path), fingerprint=mark)
