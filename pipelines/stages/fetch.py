"""Brings a source's bytes to this machine and names them by their content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from dynamictrl.errors import MediaError
from pipelines import storage
from pipelines.clip import Clip
from pipelines.stage import Stage


@dataclass(frozen=True)
class Fetch(Stage):
    """Downloads a remote source (a local one stays where it is) and takes the sha256 of its bytes."""

    per: ClassVar[Literal["source", "clip"]] = "source"

    def process(self, clip: Clip) -> Iterable[Clip]:
        path = Path(clip.path)
        if storage.is_remote(clip.source):
            path = storage.downloads(clip) / storage.file_name(clip.source)
            storage.download(clip.source, path)
        try:
            with path.open("rb") as stream:
                sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as problem:
            raise MediaError(
                f"{clip.source} cannot be read: {problem.strerror or problem}", code="unreadable"
            ) from problem
        yield replace(clip, path=str(path), source_sha256=sha256)
