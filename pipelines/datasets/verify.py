"""Proves a data set from its bytes, on a disk or in a bucket: every shard read once, against index and ledger."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynamictrl.errors import DatasetError, DynamiCtrlError
from dynamictrl.samples.shards import Sample
from pipelines.clip import SHA_IN_KEY
from pipelines.datasets.sample_check import misfit
from pipelines.datasets.shard_stream import HashingStream, located_samples
from pipelines.files import run_folder
from pipelines.files.storage import Store
from pipelines.publishing import dataset_files, purge, tombstones
from pipelines.publishing.published import read_description

INDEX = ("manifest.parquet", "quarantine.jsonl")
WIDS = "shards/index.json"


@dataclass(frozen=True)
class _Claims:
    """What the data set says of itself."""

    description: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    quarantine: Sequence[Mapping[str, Any]]
    removed: frozenset[str]
    """Hashes of the tombstones."""


def verify(root: str | Path) -> list[str]:
    """What is missing, doubled, damaged or still there after a takedown, a sentence each; empty where all is well.

    Raises DatasetError where `root` is no data set of this schema.
    """
    store = Store(str(root))
    description = read_description(store)
    if description is None:
        raise DatasetError(
            f"{root} is no data set: it has no dataset.json. Make one with `python -m pipelines RECIPE --videos SRC "
            f"--out {root}`.",
            code="dataset_missing",
        )
    contents = {name: store.read(name) for name in INDEX if store.exists(name)}
    if len(contents) < len(INDEX):
        return [f"{name} is missing" for name in INDEX if name not in contents]
    claims = _Claims(
        description,
        dataset_files.parse_manifest(contents["manifest.parquet"]),
        dataset_files.parse_quarantine(contents["quarantine.jsonl"]),
        tombstones.hashes(store),
    )
    return [
        *_check_index(claims, contents),
        *_check_ledger(claims),
        *_check_shards(store, claims),
        *_check_wids(store, claims),
        *_check_removed(store, claims),
    ]


def _check_index(claims: _Claims, contents: Mapping[str, bytes]) -> Iterator[str]:
    for name, file in claims.description.get("files", {}).items():
        if name in contents and hashlib.sha256(contents[name]).hexdigest() != file["sha256"]:
            yield (
                f"{name} is not the one that dataset.json names: it is damaged, or a publication was cut in two. The "
                f"command that was interrupted completes it"
            )


def _check_ledger(claims: _Claims) -> Iterator[str]:
    """Whether the counts are those of the manifest and the quarantine list, and whether they add up."""
    counts, found = claims.description["counts"], dataset_files.summary(claims.rows, claims.quarantine)["counts"]
    for name, said in counts.items():
        if name in found and name != "sources" and said != found[name]:
            yield f"dataset.json counts {said} {name} and there are {found[name]}"
    if counts["clips"] != counts["kept"] + sum(counts["rejected"].values()):
        yield f"{counts['clips']} clips are not {counts['kept']} kept + {sum(counts['rejected'].values())} rejected"
    if counts["sources"] != found["sources"]:
        by = found["by_source"]
        yield (
            f"{counts['sources']} sources are not {by['kept']} kept + {sum(by['filtered'].values())} filtered + "
            f"{sum(by['quarantined'].values())} quarantined"
        )
    for key, times in Counter(row["key"] for row in claims.rows if row["key"]).items():
        if times > 1:
            yield f"{key} stands {times} times in the manifest"


def _check_shards(store: Store, claims: _Claims) -> Iterator[str]:
    expected: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in claims.rows:
        if not row["reason"]:
            expected.setdefault(row["shard"], {})[row["key"]] = row
    described = {shard["name"]: shard for shard in claims.description["shards"]}
    present = {name.removeprefix("shards/") for name, _ in store.list("shards") if name.endswith(".tar")}
    for name in sorted(expected.keys() | described.keys() | present):
        if name not in present:
            yield f"{name or 'a shard'} is missing ({len(expected.get(name, {}))} clips)"
        elif name not in described:
            yield f"{name} is no shard of this data set, or of a run that was interrupted: its command completes it"
        else:
            yield from _check_shard(store, described[name], expected.get(name, {}), claims.removed)


def _check_shard(
    store: Store, described: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]], removed: frozenset[str]
) -> Iterator[str]:
    name, keys = described["name"], Counter[str]()
    with store.open(f"shards/{name}") as opened:
        stream = HashingStream(opened)
        try:
            for offset, sample in located_samples(stream, name):
                keys[sample.key] += 1
                row = rows.get(sample.key)
                problem = misfit(sample, row, offset) if row else "is not in the manifest"
                if problem:
                    yield f"{name}: {sample.key} {problem}"
                if _is_removed(sample, removed):
                    yield f"{name}: {sample.key} is of a source that was removed"
        except (DynamiCtrlError, tarfile.TarError) as problem:
            yield f"{name} is damaged: {problem}"
        else:
            yield from (f"{name}: {key} stands {n} times in it" for key, n in keys.items() if n > 1)
            yield from (f"{name}: {key} is missing" for key in sorted(rows.keys() - keys.keys()))
            if len(keys) != described.get("samples", len(keys)):
                yield f"{name} has {len(keys)} samples and dataset.json says {described['samples']}"
        if stream.sha256() != described["sha256"]:
            yield f"{name} is damaged: its sha256 is not that of dataset.json"


def _is_removed(sample: Sample, removed: frozenset[str]) -> bool:
    if not removed:
        return False
    try:
        info = sample.info
    except ValueError:
        return False
    of_content = any(h[:SHA_IN_KEY] == sample.key[:SHA_IN_KEY] for h in removed)
    return of_content or tombstones.covers(removed, info.get("source", ""), info.get("source_sha256", ""))


def _check_wids(store: Store, claims: _Claims) -> Iterator[str]:
    """Whether the index for wids, where there is one, names the shards as they are."""
    if not store.exists(WIDS):
        return
    said = {
        (entry["url"].rpartition("/")[2], entry["nsamples"], entry.get("filesize"), entry.get("md5sum"))
        for entry in json.loads(store.read(WIDS))["shardlist"]
    }
    shards = claims.description["shards"]
    if said != {(shard["name"], shard["samples"], shard["bytes"], shard.get("md5")) for shard in shards}:
        yield f"{WIDS} does not name the shards of dataset.json"


def _check_removed(store: Store, claims: _Claims) -> Iterator[str]:
    """Whether anything is left of the sources that were taken down, outside of the shards."""
    if not claims.removed:
        return
    for row in claims.rows:
        if tombstones.covers(claims.removed, row["source"], row["source_sha256"]):
            yield f"{row['key']} in the manifest is of a source that was removed"
    for line in claims.quarantine:
        if tombstones.covers(claims.removed, line["uri"], line["sha256"]):
            yield f"{line['uri']} in the quarantine list was removed"
    words = [h[:SHA_IN_KEY].encode() for h in claims.removed]
    messages = "\n".join(row["message"] for row in claims.rows).encode()
    if any(word in messages for word in words):
        yield "a message in the manifest names a clip of a source that was removed"
    yield from (f"{name} names a source that was removed" for name in purge.naming(store, words))
    if not store.remote:
        work = run_folder.work_folder(str(store.folder))
        yield from (f"{path} is left of a source that was removed" for path in purge.left(work, claims.removed, words))
