"""Writes one planned shard: from work files, and from shards that hold a sample already, a block at a time."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from dynamictrl.errors import DatasetError
from dynamictrl.samples.shards import ShardWriter, member_order
from pipelines.files.storage import Store
from pipelines.publishing.shard_plan import Place, PlannedSample, PlannedShard


def commit_shard(store: Store, work: Path, planned: PlannedShard) -> dict[str, Any]:
    """Writes a shard in the work folder and moves it into the data set; returns its record."""
    outgoing = work / "outgoing" / f"{planned.name}.{os.getpid()}-{uuid.uuid4().hex[:6]}.part"
    outgoing.parent.mkdir(parents=True, exist_ok=True)
    try:
        with outgoing.open("wb") as stream, _Shards(store) as shards:
            writer = ShardWriter(stream)
            for sample in planned.samples:
                _write(writer, sample, work, shards)
            writer.close()
        store.put_file(f"shards/{planned.name}", outgoing)
    finally:
        outgoing.unlink(missing_ok=True)
    hashes = {"bytes": writer.bytes, "sha256": writer.sha256, "md5": writer.md5, "samples": len(planned.samples)}
    places = [[s.key, writer.offsets[s.key], s.bytes, s.digest, dict(s.lineage)] for s in planned.samples]
    return {"name": planned.name, "bucket": planned.bucket, **hashes, "places": places}


def places_of(record: Mapping[str, Any]) -> dict[str, Place]:
    """Where the samples of a recorded shard lie, by key."""
    return {
        key: Place(record["name"], offset, size, digest, lineage)
        for key, offset, size, digest, lineage in record["places"]
    }


class _Shards(contextlib.ExitStack):
    """Shards that samples are copied from: the last one stays open, as neighbours mostly come from the same."""

    def __init__(self, store: Store):
        super().__init__()
        self._store, self._name = store, ""
        self._stream: BinaryIO | None = None

    def at(self, name: str, offset: int) -> BinaryIO:
        if self._stream is None or name != self._name:
            self.close()
            self._stream = self.enter_context(self._store.open(f"shards/{name}"))
            self._name = name
        self._stream.seek(offset)
        return self._stream


def _write(writer: ShardWriter, sample: PlannedSample, work: Path, shards: _Shards) -> None:
    if sample.shard:
        writer.copy(sample.key, shards.at(sample.shard, sample.offset), sample.bytes)
        return
    writer.begin(sample.key)
    for extension in member_order(sample.files):
        path = work / sample.files[extension]
        try:
            with path.open("rb") as content:
                writer.add(extension, content, os.fstat(content.fileno()).st_size)
        except FileNotFoundError as problem:
            raise DatasetError(
                f"{path} of clip {sample.key} is gone; the same command makes it again", code="work_missing"
            ) from problem
