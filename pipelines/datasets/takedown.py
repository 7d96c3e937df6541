"""Removes a source from a data set: its clips, their captions and index entries, and all that was kept about it.

The tombstone comes first. From then on no run brings the source back, and whoever calls this again, after a kill or
for another source, completes what is not complete: everything is decided by the tombstones alone.
"""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dynamictrl.errors import InputError
from pipelines.datasets.derived_files import derived
from pipelines.files import run_folder
from pipelines.publishing import dataset_files, purge, tombstones
from pipelines.publishing.publication import Publication
from pipelines.publishing.publication_state import State, read_state
from pipelines.publishing.tombstones import Tombstone, uri_hash
from pipelines.watching.progress import Progress

PURPOSE = "remove"
SHA256 = re.compile(r"[0-9a-f]{64}")
GONE = "a source that was removed"
"""What stands in other clips' messages where one named it."""


@dataclass(frozen=True)
class Removal:
    """What a takedown came to."""

    clips: int
    """Rows of the manifest that went, refused clips among them."""
    shards: int
    """Shards written anew without it."""
    bytes: int
    """In these shards."""
    tombstones: tuple[Tombstone, ...]
    """All of the data set."""


def take_down(out: str, source: str, reason: str = "", *, work: str | Path | None = None) -> Removal:
    """Removes a source, named by its URI or by its content's sha256; a second call changes nothing.

    Raises InputError where the data set knows no such source, BusyError where a run writes to it.
    """
    with run_folder.claimed(out, work) as folder:
        publication = Publication(out, folder)
        state = read_state(publication.store, publication.plans)
        state.check_whole(out)
        lines = dataset_files.parse_quarantine(publication.store.read("quarantine.jsonl"))
        known = [*_sources(state.published.rows, lines), *purge.recorded_sources(folder)]
        found = _found(known, source)
        all_stones = _bury(publication, state, found, source, reason)
        removal = _rewrite(publication, state, lines, all_stones)
        uris = {uri for uri, _ in found} | ({source} if not SHA256.fullmatch(source) else set())
        purge.purge(publication.store, folder, publication.tombstones(), uris)
        return removal


def _sources(rows: Iterable[Mapping[str, Any]], lines: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(URI, sha256 of the content) of every source that an index names."""
    return [*((r["source"], r["source_sha256"]) for r in rows), *((q["uri"], q["sha256"]) for q in lines)]


def _found(known: Sequence[tuple[str, str]], source: str) -> set[tuple[str, str]]:
    """The source under every name that its content has."""
    names = {source, str(Path(source).expanduser().absolute())}
    direct = {pair for pair in known if pair[0] in names or pair[1] == source}
    contents = {sha256 for _, sha256 in direct} - {""}
    return direct | {pair for pair in known if pair[1] in contents}


def _bury(
    publication: Publication, state: State, found: set[tuple[str, str]], source: str, reason: str
) -> list[Tombstone]:
    """Puts the tombstones; returns all there are."""
    stones = tombstones.read(publication.store)
    old = {h for stone in stones for h in stone.hashes}
    if not found:
        if source not in old and uri_hash(source) not in old:
            raise _unknown(source, [row["source"] for row in state.published.rows])
        return stones
    for content in sorted({sha256 for _, sha256 in found}):
        uris = tuple(sorted(uri_hash(uri) for uri, sha256 in found if sha256 == content))
        same = next((s for s in stones if s.source_sha256 == content and (content or s.uri_sha256 == uris)), None)
        if same is None:
            stones.append(_tombstone(state, content, uris, reason))
        else:
            stones[stones.index(same)] = replace(same, uri_sha256=tuple(sorted({*same.uri_sha256, *uris})))
    if {h for stone in stones for h in stone.hashes} != old:
        tombstones.write(publication.store, stones)
    return stones


def _tombstone(state: State, content: str, uris: tuple[str, ...], reason: str) -> Tombstone:
    removed = frozenset({content, *uris} - {""})
    rows = [r for r in state.published.rows if tombstones.covers(removed, r["source"], r["source_sha256"])]
    shards = {row["shard"] for row in rows} - {""}
    return Tombstone(content, uris, _now(), reason, clips=len(rows), shards=len(shards))


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _rewrite(
    publication: Publication, state: State, lines: Sequence[Mapping[str, Any]], stones: Sequence[Tombstone]
) -> Removal:
    """Shards that hold what was removed are written anew without it, and the index after them."""
    removed = frozenset(h for stone in stones for h in stone.hashes)
    gone = [r for r in state.published.rows if tombstones.covers(removed, r["source"], r["source_sha256"])]
    keys = frozenset(row["key"] for row in gone)
    existing = state.published.keys()
    left = {name: tuple(key for key in held if key not in keys) for name, held in existing.items()}
    wanted = [(state.published.shards[name].get("bucket", ""), left[name]) for name in existing if left[name]]
    missing = publication.arrange(PURPOSE, wanted, removed=removed)
    with Progress("shards", len(missing), "shards") as progress:
        for shard in missing:
            publication.commit(shard)
            progress.advance(1)
    rows = [_scrubbed(row, gone) for row in state.published.rows if row["key"] not in keys]
    lines = [q for q in lines if not tombstones.covers(removed, q["uri"], q["sha256"])]
    publication.publish(state.published.description, rows, lines, derived(publication.out, publication.work))
    touched = [name for name in existing if left[name] != existing[name]]
    size = sum(int(state.published.shards[name]["bytes"]) for name in touched)
    return Removal(len(gone), len(touched), size, tuple(stones))


def _scrubbed(row: Mapping[str, Any], gone: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """A row whose message names no removed clip: "looks like KEY" would keep it in the index."""
    message = row["message"]
    for name in sorted({word for g in gone for word in (g["key"], g["source"]) if word and word in message}, key=len):
        message = message.replace(name, GONE)
    return {**row, "message": message}


def _unknown(source: str, known: Iterable[str]) -> InputError:
    near = difflib.get_close_matches(source, sorted(set(known)), n=1)
    hint = f"did you mean {near[0]}?" if near else "name it by the URI in the manifest's column `source`, or by sha256"
    return InputError(f"the data set has no source {source}; {hint}", code="unknown_source", param="source")
