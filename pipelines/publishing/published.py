"""What a data set says of itself at this moment: its index, read back, and where every sample lies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dynamictrl.errors import DatasetError
from dynamictrl.samples.shards import SCHEMA_VERSION
from pipelines.files.storage import CHUNK, Store
from pipelines.publishing import dataset_files
from pipelines.publishing.shard_plan import Place


@dataclass(frozen=True)
class Published:
    """The index, and the samples in shards that are there in their size."""

    description: Mapping[str, Any] = field(default_factory=dict)
    """`dataset.json`; empty where nothing is published."""
    rows: tuple[Mapping[str, Any], ...] = ()
    """The manifest's."""
    shards: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By name: bytes, sha256, md5, samples, and bucket where it has one. A lost shard is none of them."""
    places: Mapping[str, Place] = field(default_factory=dict)
    """By key."""

    @property
    def unnamed(self) -> tuple[str, ...]:
        """Shards that the manifest knows and the description does not: a swap was cut between the two."""
        named = {shard["name"] for shard in self.description.get("shards", ())}
        return tuple(sorted(self.shards.keys() - named))

    @property
    def next_shard(self) -> int:
        """The first number that no published shard ever had."""
        used = [number_of(name) for name in (*self.shards, *(s["name"] for s in self.description.get("shards", ())))]
        return max([self.description.get("next_shard", 0), *(n + 1 for n in used)])

    def keys(self) -> dict[str, tuple[str, ...]]:
        """Of each shard, its samples in order; a shard that the manifest does not know has none."""
        found: dict[str, list[str]] = {name: [] for name in self.shards}
        for key, place in sorted(self.places.items(), key=lambda item: item[1].offset):
            found[place.shard].append(key)
        return {name: tuple(keys) for name, keys in found.items()}


def number_of(shard: str) -> int:
    """7 for train-000007.tar."""
    return int(shard.removesuffix(".tar").rpartition("-")[2])


def read_description(store: Store) -> dict[str, Any] | None:
    """The content of `dataset.json`, None where there is none; raises DatasetError for another schema."""
    if not store.exists("dataset.json"):
        return None
    try:
        content = json.loads(store.read("dataset.json"))
    except ValueError as problem:
        raise DatasetError(f"{store.uri('dataset.json')} is damaged: {problem}", code="dataset_damaged") from problem
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        raise DatasetError(
            f"{store.root} has schema version {version}; this release reads {SCHEMA_VERSION}. Curate it again with "
            f"this release, or install the release that wrote it.",
            code="dataset_schema",
        )
    return content


def read_published(
    store: Store, sizes: Mapping[str, int], records: Mapping[str, Mapping[str, Any]] | None = None
) -> Published:
    """The index as it stands; `sizes` are those of the files under `shards/`, `records` those of an open plan.

    A swap that was cut after the manifest leaves rows of shards that the description does not name. All of them are
    committed; where their records are gone with a work folder, they are made again from the bytes.
    """
    description = read_description(store)
    if description is None:
        return Published()
    rows = dataset_files.parse_manifest(store.read("manifest.parquet")) if store.exists("manifest.parquet") else []
    shards = {s["name"]: s for s in description.get("shards", ()) if sizes.get(f"shards/{s['name']}") == s["bytes"]}
    named = {shard["name"] for shard in description.get("shards", ())}
    kept = [row for row in rows if not row["reason"]]
    for name in sorted({row["shard"] for row in kept} - named):
        if records and name in records:
            shards[name] = records[name]
        elif f"shards/{name}" in sizes:
            shards[name] = _record_from_bytes(store, name, sum(row["shard"] == name for row in kept))
    places = {
        row["key"]: Place(row["shard"], row["offset"], row["bytes"], row["digest"], row["lineage"])
        for row in kept
        if row["shard"] in shards
    }
    return Published(description, tuple(rows), shards, places)


def _record_from_bytes(store: Store, name: str, samples: int) -> dict[str, Any]:
    sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    with store.open(f"shards/{name}") as stream:
        while block := stream.read(CHUNK):
            sha256.update(block)
            md5.update(block)
            size += len(block)
    hashes = {"sha256": sha256.hexdigest(), "md5": md5.hexdigest()}
    return {"name": name, "bytes": size, **hashes, "samples": samples}
