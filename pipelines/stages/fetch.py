"""Brings a source's bytes to this machine and names them by their content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dynamictrl.errors import ConfigError, MediaError
from pipelines.clip import Clip
from pipelines.files import storage
from pipelines.stage import Stage, resource

if TYPE_CHECKING:
    from pipelines.files.downloading import Downloads


@dataclass(frozen=True)
class Fetch(Stage):
    """Downloads a remote source (a local one stays where it is) and takes the sha256 of its bytes.

    Quarantines `unreadable` (a local file that the file system refuses: gone, no permission, a loop of links), and of
    remote ones `not_found`, `forbidden`, `too_large`, `too_slow`, `unreachable`. Raises StoreError where a whole store
    has fallen silent: the run then stops, to go on later.
    """

    per: ClassVar[Literal["source", "clip"]] = "source"

    largest_gib: float = resource(64.0)
    """GiB that one remote source may have."""
    seconds: float = resource(1800.0)
    """Seconds that one download may take."""
    attempts: int = field(default=3, metadata={"resource": True})
    """Times that a download is begun before its source is given up."""
    wait: float = resource(1.0)
    """Seconds before the second attempt; four times as long before each further one."""
    most_silent: int = field(default=10, metadata={"resource": True})
    """Sources of one store that a worker finds unreachable in a row before the run stops."""

    def __post_init__(self):
        if min(self.attempts, self.most_silent) < 1 or min(self.largest_gib, self.seconds) <= 0 or self.wait < 0:
            raise ConfigError(
                f"attempts is {self.attempts}, most_silent {self.most_silent} (at least 1 each), largest_gib "
                f"{self.largest_gib}, seconds {self.seconds} (above 0 each), wait {self.wait} (at least 0)",
                param="fetch",
            )

    def process(self, clip: Clip) -> Iterable[Clip]:
        path = Path(clip.path)
        if storage.is_remote(clip.source):
            path = storage.downloads(clip) / storage.file_name(clip.source)
            self._downloads.fetch(clip.source, path)
        try:
            with path.open("rb") as stream:
                sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as problem:
            raise MediaError(
                f"{clip.source} cannot be read: {problem.strerror or problem}", code="unreadable"
            ) from problem
        yield replace(clip, path=str(path), source_sha256=sha256)

    @cached_property
    def _downloads(self) -> Downloads:
        from pipelines.files.downloading import Downloads

        return Downloads(self.largest_gib, self.seconds, self.attempts, self.wait, self.most_silent)

    def __getstate__(self) -> dict[str, Any]:
        # Which stores are silent is each worker's own finding.
        return {name: value for name, value in self.__dict__.items() if name != "_downloads"}
