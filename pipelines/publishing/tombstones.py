"""What was taken down and must not come back: `tombstones.jsonl`, which remembers hashes and forgets names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from pipelines.files.storage import Store

NAME = "tombstones.jsonl"


@dataclass(frozen=True)
class Tombstone:
    """One source that was removed."""

    source_sha256: str
    """Of its content; "" where it could never be read."""
    uri_sha256: tuple[str, ...]
    """Of each URI it was found under."""
    time: str
    """UTC, ISO 8601."""
    reason: str
    clips: int
    """Rows of the manifest that went."""
    shards: int
    """Shards that were written anew without it."""

    @property
    def hashes(self) -> frozenset[str]:
        return frozenset({self.source_sha256, *self.uri_sha256} - {""})


def uri_hash(uri: str) -> str:
    """How a tombstone names a URI."""
    return hashlib.sha256(uri.encode()).hexdigest()


def read(store: Store) -> list[Tombstone]:
    """All tombstones of a data set, oldest first."""
    if not store.exists(NAME):
        return []
    lines = [json.loads(line) for line in store.read(NAME).decode().splitlines()]
    return [Tombstone(**{**line, "uri_sha256": tuple(line["uri_sha256"])}) for line in lines]


def write(store: Store, tombstones: Iterable[Tombstone]) -> None:
    """Replaces the file, whole or not at all."""
    lines = [json.dumps(asdict(tombstone), sort_keys=True) + "\n" for tombstone in tombstones]
    store.put(NAME, "".join(lines).encode())


def hashes(store: Store) -> frozenset[str]:
    """sha256 of the content and of the URIs of all that was removed."""
    return frozenset(h for tombstone in read(store) for h in tombstone.hashes)


def covers(removed: frozenset[str], uri: str, source_sha256: str) -> bool:
    """Whether a source was removed, under this name or with this content."""
    return bool(removed) and (source_sha256 in removed or uri_hash(uri) in removed)
