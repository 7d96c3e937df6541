"""The cards of a data set, as bytes by name: the publication writes them beside `dataset.json`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipelines.cards.croissant import croissant
from pipelines.cards.readme import readme
from pipelines.cards.rights import Rights
from pipelines.clip import Clip

INDEX = "shards/index.json"


def files(
    description: Mapping[str, Any], clips: Iterable[Clip | Mapping[str, Any]], name: str = ""
) -> dict[str, bytes]:
    """`README.md`, `croissant.json` and `shards/index.json`; the same data set gives the same bytes.

    `description` is the content of `dataset.json`. Where its `files` name the manifest's sha256, Croissant
    describes the manifest's columns too. `clips` are those of the run, or the manifest's rows.
    """
    kept = [row for row in map(_row, clips) if not row["reason"]]
    rights = Rights.of(kept)
    name = name or f"human-motion-{description['recipe']}"
    return {
        "README.md": readme(name, description, rights).encode(),
        "croissant.json": _json(croissant(name, description, rights)),
        INDEX: _json(wids_index(name, description["shards"])),
    }


def wids_index(name: str, shards: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The index that the `wids` package takes for random access; URLs are relative to it."""
    entries = []
    for shard in shards:
        entry = {"url": shard["name"], "nsamples": shard["samples"], "filesize": shard["bytes"]}
        entries.append({**entry, "md5sum": shard["md5"]} if shard.get("md5") else entry)
    return {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": name, "shardlist": entries}


def _row(clip: Clip | Mapping[str, Any]) -> Mapping[str, Any]:
    return {**clip.to_row(), "reason": clip.rejected} if isinstance(clip, Clip) else clip


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
