"""The files of a data set beside its shards: manifest, quarantine list and description (contract section 2)."""

from __future__ import annotations

import importlib.metadata
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamictrl.shards import SCHEMA_VERSION, write_json
from pipelines import storage
from pipelines.clip import Clip

if TYPE_CHECKING:
    import pyarrow as pa

PACKAGES = (
    "dynamictrl", "av", "numpy", "onnxruntime", "opencv-python-headless", "ray", "scenedetect", "torch", "transformers",
)  # fmt: skip
"""Whose versions a description records."""


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
            ("licence", text), ("consent", text), ("shard", text), ("offset", count),
        ]
    )  # fmt: skip


def write_manifest(path: Path, clips: Iterable[Clip], shards: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes `manifest.parquet`, in order of key; `offset` is -1 where a clip is in no shard."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    places = {key: (name, at) for name, record in shards.items() for key, at in record["offsets"].items()}
    rows = []
    for clip in sorted(clips, key=lambda c: (c.key, c.source)):
        shard, offset = places.get(clip.key, ("", -1)) if not clip.rejected else ("", -1)
        rows.append({**clip.to_row(), "reason": clip.rejected, "shard": shard, "offset": offset})
    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(pa.Table.from_pylist(rows, schema=manifest_schema()), temporary)
    temporary.replace(path)


def read_manifest(path: Path) -> list[dict[str, Any]]:
    """The manifest's rows, scores and models as dicts."""
    import pyarrow.parquet as pq

    rows = pq.read_table(path).to_pylist()
    return [{**row, "scores": dict(row["scores"]), "models": dict(row["models"])} for row in rows]


def write_quarantine(path: Path, clips: Iterable[Clip]) -> None:
    """Writes `quarantine.jsonl`, one line per source that could not be read, in order of URI."""
    lines = [
        {"uri": c.source, "stage": c.stage, "reason": c.rejected, "message": c.message, "sha256": c.source_sha256}
        for c in sorted(clips, key=lambda c: c.source)
    ]
    storage.write_bytes(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())


def read_quarantine(path: Path) -> list[dict[str, Any]]:
    """The lines of `quarantine.jsonl`."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def description(
    recipe: str,
    settings: Mapping[str, Any],
    sources: int,
    clips: Sequence[Clip],
    shards: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """The content of `dataset.json`; the same clips give the same text."""
    kept = [c for c in clips if not c.rejected]
    rejected = [c for c in clips if c.rejected and not c.quarantined]
    quarantined = [c for c in clips if c.quarantined]
    return {
        "schema_version": SCHEMA_VERSION,
        "recipe": recipe,
        "settings": settings,
        "counts": {
            "sources": sources,
            "clips": len(kept) + len(rejected),
            "kept": len(kept),
            "rejected": _count(c.rejected for c in rejected),
            "quarantined": _count(c.rejected for c in quarantined),
        },
        "seconds": {"kept": _seconds(kept), "rejected": _seconds(rejected)},
        "models": _models(kept),
        "packages": _versions(),
        "shards": [
            {**{name: record[name] for name in ("name", "bytes", "sha256")}, "samples": len(record["offsets"])}
            for record in shards.values()
        ],
    }


def write_description(path: Path, content: Mapping[str, Any]) -> None:
    """Writes `dataset.json`, the last file of a run: that it is there means that the others are."""
    write_json(path, json.loads(json.dumps(content, default=str)))


def _count(reasons: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(reasons).items()))


def _seconds(clips: Iterable[Clip]) -> float:
    return round(sum(c.duration for c in clips), 3)


def _models(clips: Iterable[Clip]) -> dict[str, list[str]]:
    """Ids and hashes by role; more than one where a data set grew over several."""
    roles: dict[str, set[str]] = {}
    for clip in clips:
        for role, model in clip.models.items():
            roles.setdefault(role, set()).add(model)
    return {role: sorted(models) for role, models in sorted(roles.items())}


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
