"""Where bytes that outlive a job lie: one interface, a local folder or a bucket behind it, chosen once by `storage`.

A key is a path of our own words (`videos/ID/3/video.mp4`); none ever comes from a client. There is no rename: what is
stored under a key is whole or not there, and a row of the job store says which key counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dynamictrl.errors import StoreError

CHUNK = 2**18


def away(problem: str) -> StoreError:
    """The storage did not answer, refused, or is full: no job is at fault, and it can be tried again later."""
    return StoreError(f"{problem}; the same can be asked again later", code="storage_away")


@dataclass(frozen=True)
class Stored:
    """One stored object."""

    key: str
    size: int
    """Bytes."""
    etag: str
    """Strong, quoted; changes with the bytes."""
    modified: float
    """Unix seconds."""


class Storage(Protocol):
    """A place for bytes. Every method raises StoreError where the place cannot be reached."""

    is_local: bool
    """Whether a key's bytes are a file on this machine, so that no scratch copy is needed."""

    def adopt(self, source: Path, key: str, *, content_type: str = "") -> None:
        """Makes a local file's bytes available as `key`, whole or not at all; the file itself is left as it is."""
        ...

    def copy(self, key: str, to: str) -> None:
        """The same bytes under another key, without passing through this machine; FileNotFoundError."""
        ...

    def fetch(self, key: str, target: Path) -> None:
        """Copies an object's bytes to a local file, whole or not at all; FileNotFoundError."""
        ...

    def look(self, key: str) -> Stored | None:
        """What is known of a key, None where nothing is stored."""
        ...

    def read(self, stored: Stored, start: int, end: int) -> Iterator[bytes]:
        """The bytes from `start` up to `end`, in pieces."""
        ...

    def walk(self, prefix: str) -> Iterator[Stored]:
        """Every object whose key begins so; `prefix` ends with a slash."""
        ...

    def drop(self, keys: Iterable[str]) -> None:
        """Removes objects; those that are gone already are no error."""
        ...

    def presign(self, method: str, key: str, seconds: float) -> str | None:
        """A URL with which anyone may GET or PUT just this object for a while; None where that is not possible."""
        ...
