"""Removes from a work folder, and from the files around a data set, what was kept about a source taken down."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipelines.clip import SHA_IN_KEY
from pipelines.files import storage
from pipelines.files.storage import Store
from pipelines.publishing import tombstones

KEPT = ("lock", "lease.json", "run.json", "plan.json")
"""Files of a work folder that name no source."""
TEXTS = (".json", ".jsonl", ".txt", ".csv", ".html", ".prom", ".log", ".md")
INDEX = ("dataset.json", "manifest.parquet", "quarantine.jsonl", tombstones.NAME)
LARGEST = 256 * 2**20
"""Bytes; a larger file beside the shards is not searched."""


def recorded_sources(work: Path) -> Iterator[tuple[str, str]]:
    """(URI, sha256 of the content) of every source that a run has a record of."""
    for path in sorted((work / "results" / "sources").rglob("*.json")):
        for row in _rows(json.loads(path.read_bytes())):
            yield row["source"], row.get("source_sha256", "")


def purge(store: Store, work: Path, removed: frozenset[str], uris: Iterable[str] = ()) -> None:
    """Removes records, files and pictures of sources that are buried (`removed`: the tombstones' hashes).

    Files beside the index that still name one are removed as well: what makes them can make them again.
    """
    words = [h[:SHA_IN_KEY].encode() for h in removed] + [json.dumps(uri)[1:-1].encode() for uri in uris if uri]
    for path in left(work, removed, words):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        shutil.rmtree(work / "downloads" / path.stem, ignore_errors=True)
    _forget_videos(work / "run.json", words)
    for name in naming(store, words):
        store.delete(name)


def _forget_videos(path: Path, words: Iterable[bytes]) -> None:
    """What the run was pointed at may be the very file."""
    if path.is_file():
        run, words = json.loads(path.read_bytes()), list(words)
        kept = [name for name in run.get("videos", ()) if not any(w in json.dumps(name).encode() for w in words)]
        storage.write_bytes(path, json.dumps({**run, "videos": kept}).encode())


def left(work: Path, removed: frozenset[str], words: Iterable[bytes]) -> list[Path]:
    """Records, files and folders of a work folder that are about a removed source or hold one of these words."""
    words = list(words)
    found = list(_records_of(work, removed))
    # A folder comes after what is in it.
    for path in sorted(work.rglob("*"), reverse=True) if work.is_dir() else ():
        if any(word in str(path.relative_to(work)).encode() for word in words) or (
            path.suffix in TEXTS and path.name not in KEPT and path.is_file() and _names(path, words)
        ):
            found.append(path)
    return list(dict.fromkeys(found))


def naming(store: Store, words: Iterable[bytes]) -> list[str]:
    """Files beside the index and the shards that hold one of these words."""
    words = list(words)
    found = [n for n, size in store.list() if n not in INDEX and not n.endswith(".tar") and size <= LARGEST]
    return [name for name in found if any(word in store.read(name) for word in words)] if words else []


def _records_of(work: Path, removed: frozenset[str]) -> Iterator[Path]:
    for path in (work / "results" / "sources").rglob("*.json"):
        rows = _rows(json.loads(path.read_bytes()))
        if any(tombstones.covers(removed, row["source"], row.get("source_sha256", "")) for row in rows):
            yield path


def _rows(content: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401 (a record of the ledger)
    """Every row of a clip or source in a record, however deep it lies."""
    if isinstance(content, dict):
        if isinstance(content.get("source"), str) and content["source"]:
            yield content
        content = list(content.values())
    for part in content if isinstance(content, list) else ():
        yield from _rows(part)


def _names(path: Path, words: Iterable[bytes]) -> bool:
    if path.stat().st_size > LARGEST:
        return False
    content = path.read_bytes()
    return any(word in content for word in words)
