"""The files of a data set beside its shards: manifest, quarantine list and description (contract section 2)."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamictrl.samples.shards import SCHEMA_VERSION
from pipelines.clip import Clip

if TYPE_CHECKING:
    import pyarrow as pa

    from pipelines.publishing.shard_plan import Place

MOST_OF_A_ROLE = 50
"""Models, or what is on record about them, that a description lists under one role."""
PACKAGES = (
    "dynamictrl", "av", "numpy", "onnxruntime", "opencv-python-headless", "ray", "scenedetect", "torch", "transformers",
)  # fmt: skip
"""Whose versions a description records."""


MAPS = ("scores", "models", "lineage", "rights")


def manifest_schema() -> pa.Schema:
    """One row per clip found, kept (`reason` is "") or rejected."""
    import pyarrow as pa

    text, number, count = pa.string(), pa.float64(), pa.int64()
    return pa.schema(
        [
            ("key", text), ("source", text), ("source_sha256", text),
            ("start", number), ("end", number), ("fps", number),
            ("frames", count), ("width", count), ("height", count),
            ("reason", text), ("stage", text), ("message", text), ("caption", text),
            ("scores", pa.map_(text, number)), ("models", pa.map_(text, text)),
            ("licence", text), ("consent", text), ("rights", pa.map_(text, text)), ("video_hash", text),
            ("digest", text), ("lineage", pa.map_(text, text)),
            ("shard", text), ("offset", count), ("bytes", count),
        ]
    )  # fmt: skip


def manifest_rows(clips: Iterable[Clip], places: Mapping[str, Place]) -> list[dict[str, Any]]:
    """Clips as the manifest has them, in order of key; `offset` is -1 where a clip is in no shard."""
    rows = []
    for clip in sorted(clips, key=lambda c: (c.key, c.source)):
        row = {**clip.to_row(), "reason": clip.rejected, "digest": clip.digest}
        place = None if clip.rejected else places.get(clip.key)
        rows.append({**row, **(placed(place) if place else {"shard": "", "offset": -1, "bytes": 0})})
    return rows


def placed(place: Place) -> dict[str, Any]:
    """A place as columns of the manifest."""
    return {"shard": place.shard, "offset": place.offset, "bytes": place.bytes}


def manifest_bytes(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The content of `manifest.parquet`; the same rows give the same bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema=manifest_schema()), buffer)
    return buffer.getvalue().to_pybytes()


def parse_manifest(content: bytes) -> list[dict[str, Any]]:
    """The rows of `manifest.parquet`, maps as dicts; columns that an older release did not write are empty."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Without threads: where a process ends soon after, pyarrow's pool aborts it now and then (1 of 40, pyarrow 25).
    rows = pq.read_table(pa.BufferReader(content), use_threads=False, pre_buffer=False).to_pylist()
    missing = {"digest": "", "bytes": -1, "video_hash": ""}
    return [{**missing, **row, **{name: dict(row.get(name) or ()) for name in MAPS}} for row in rows]


def read_manifest(path: Path) -> list[dict[str, Any]]:
    """The rows of a manifest on a disk."""
    return parse_manifest(path.read_bytes())


def quarantine_lines(clips: Iterable[Clip]) -> list[dict[str, Any]]:
    """Sources that could not be read, as the quarantine list has them, in order of URI."""
    return [
        {"uri": c.source, "stage": c.stage, "reason": c.rejected, "message": c.message, "sha256": c.source_sha256}
        for c in sorted(clips, key=lambda c: c.source)
    ]


def quarantine_bytes(lines: Iterable[Mapping[str, Any]]) -> bytes:
    """The content of `quarantine.jsonl`, one line per source."""
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()


def parse_quarantine(content: bytes) -> list[dict[str, Any]]:
    """The lines of `quarantine.jsonl`."""
    return [json.loads(line) for line in content.decode().splitlines()]


def read_quarantine(path: Path) -> list[dict[str, Any]]:
    """The lines of a quarantine list on a disk."""
    return parse_quarantine(path.read_bytes())


def description(
    recipe: str,
    settings: Mapping[str, Any],
    sources: int,
    clips: Sequence[Clip],
    shards: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """The content of `dataset.json`; the same clips give the same text.

    `sources` is how many were named: what the rows account for must come to it.
    """
    rows = manifest_rows([c for c in clips if not c.quarantined], {})
    lines = quarantine_lines(c for c in clips if c.quarantined)
    content = {
        "schema_version": SCHEMA_VERSION,
        "recipe": recipe,
        "settings": settings,
        **summary(rows, lines),
        "packages": _versions(),
        "shards": [described(record) for record in shards.values()],
    }
    content["counts"]["sources"] = max(sources, content["counts"]["sources"])
    return content


def summary(rows: Sequence[Mapping[str, Any]], quarantine: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts, seconds and models, as they follow from the manifest and the quarantine list."""
    kept = [row for row in rows if not row["reason"]]
    rejected = [row for row in rows if row["reason"]]
    by_source = _by_source(rows, quarantine)
    return {
        "counts": {
            "sources": by_source["kept"] + sum(by_source["filtered"].values()) + sum(by_source["quarantined"].values()),
            "clips": len(rows),
            "kept": len(kept),
            "rejected": _count(row["reason"] for row in rejected),
            "quarantined": _count(line["reason"] for line in quarantine),
            "by_source": by_source,
        },
        "seconds": {"kept": _seconds(kept), "rejected": _seconds(rejected)},
        "models": _models(kept),
    }


def finished(
    description: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    quarantine: Sequence[Mapping[str, Any]],
    *,
    shards: Mapping[str, Mapping[str, Any]],
    files: Mapping[str, bytes],
    next_shard: int,
) -> dict[str, Any]:
    """A description with what follows from the rows and shards that are published under it.

    `files` are named with size and sha256, so that a swap that was cut in two is found.
    """
    hashes = {n: {"bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in sorted(files.items())}
    content = {
        **description,
        **summary(rows, quarantine),
        "shards": [described(record) for record in shards.values()],
        "next_shard": next_shard,
        "files": hashes,
    }
    return json.loads(json.dumps(content, default=str))


def description_bytes(content: Mapping[str, Any]) -> bytes:
    """The content of `dataset.json`, as text that is good to read."""
    return (json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def says(old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> bool:
    """Whether a description says this already; packages may have changed since without changing the data."""
    return old is not None and all(old.get(name) == value for name, value in new.items() if name != "packages")


def described(record: Mapping[str, Any]) -> dict[str, Any]:
    """A shard as `dataset.json` has it."""
    names = ("name", "bytes", "sha256", "md5", "samples", "bucket")
    return {name: record[name] for name in names if record.get(name) not in (None, "")}


def _by_source(rows: Sequence[Mapping[str, Any]], quarantine: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What became of each source: kept if one clip of it is, else quarantined if part of it could not be read, else
    filtered by the reason that most of its clips have."""
    kept = {row["source"] for row in rows if not row["reason"]}
    quarantined = {line["uri"]: line["reason"] for line in quarantine if line["uri"] not in kept}
    filtered: dict[str, Counter[str]] = {}
    for row in rows:
        if row["source"] not in kept and row["source"] not in quarantined:
            filtered.setdefault(row["source"], Counter())[row["reason"]] += 1
    # The reason of most clips; the first by name where several are as many.
    reasons = [min(counts, key=lambda reason: (-counts[reason], reason)) for counts in filtered.values()]
    return {"kept": len(kept), "filtered": _count(reasons), "quarantined": _count(quarantined.values())}


def _count(reasons: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(reasons).items()))


def _seconds(rows: Iterable[Mapping[str, Any]]) -> float:
    return round(sum(round(row["end"] - row["start"], 3) for row in rows), 3)


def _models(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Ids and hashes by role; more than one where a data set grew over several."""
    roles: dict[str, set[str]] = {}
    for row in rows:
        for role, model in row["models"].items():
            roles.setdefault(role, set()).add(model)
    # What differs from clip to clip (which frames a captioner saw) stands in each sample's own description.
    few = {role: models for role, models in roles.items() if len(models) <= MOST_OF_A_ROLE}
    return {role: sorted(models) for role, models in sorted(few.items())}


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
