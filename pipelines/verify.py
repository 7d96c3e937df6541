"""Re-reads every shard of a data set against its manifest."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dynamictrl.errors import DynamiCtrlError
from dynamictrl.shards import DatasetFolder, Sample, index_shard, iter_shard, open_dataset
from pipelines import dataset_files


def verify(root: Path) -> list[str]:
    """What is missing, doubled or damaged, a sentence each; empty where all is well.

    Raises DatasetError where `root` is no data set of this schema.
    """
    dataset = open_dataset(root)
    missing = [name for name in ("manifest.parquet", "quarantine.jsonl") if not (root / name).is_file()]
    if missing:
        return [f"{name} is missing" for name in missing]
    rows = dataset_files.read_manifest(root / "manifest.parquet")
    return [*_check_ledger(dataset, rows), *_check_shards(dataset, rows)]


def _check_ledger(dataset: DatasetFolder, rows: list[dict[str, Any]]) -> Iterator[str]:
    """Whether the counts of the description are those of the manifest and the quarantine."""
    counts = dataset.description["counts"]
    kept = sum(not row["reason"] for row in rows)
    reasons = Counter(row["reason"] for row in rows if row["reason"])
    quarantined = Counter(q["reason"] for q in dataset_files.read_quarantine(dataset.root / "quarantine.jsonl"))
    for name, said, found in (
        ("kept", counts["kept"], kept),
        ("rejected", counts["rejected"], dict(reasons)),
        ("quarantined", counts["quarantined"], dict(quarantined)),
    ):
        if said != found:
            yield f"dataset.json counts {said} {name} and there are {found}"
    for key, times in Counter(row["key"] for row in rows).items():
        if times > 1:
            yield f"{key} stands {times} times in the manifest"


def _check_shards(dataset: DatasetFolder, rows: list[dict[str, Any]]) -> Iterator[str]:
    expected: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        if not row["reason"]:
            expected.setdefault(row["shard"], {})[row["key"]] = row
    described = {shard["name"]: shard for shard in dataset.description["shards"]}
    present = {path.name: path for path in dataset.shards}
    for name in sorted(expected.keys() | described.keys() | present.keys()):
        if name not in present:
            yield f"{name or 'a shard'} is missing ({len(expected.get(name, {}))} clips)"
        elif name not in described:
            yield f"{name} is no shard of this data set"
        else:
            yield from _check_shard(present[name], described[name], expected.get(name, {}))


def _check_shard(path: Path, described: dict[str, Any], rows: dict[str, dict[str, Any]]) -> Iterator[str]:
    with path.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != described["sha256"]:
            yield f"{path.name} is damaged: its sha256 is not that of dataset.json"
    try:
        offsets = index_shard(path)
        keys = Counter()
        for sample in iter_shard(path):
            keys[sample.key] += 1
            row = rows.get(sample.key)
            problem = _misfit(sample, row, offsets[sample.key]) if row else "is not in the manifest"
            if problem:
                yield f"{path.name}: {sample.key} {problem}"
    except DynamiCtrlError as problem:
        yield str(problem)
        return
    yield from (f"{path.name}: {key} stands {n} times in it" for key, n in keys.items() if n > 1)
    yield from (f"{path.name}: {key} is missing" for key in sorted(rows.keys() - keys.keys()))


def _misfit(sample: Sample, row: dict[str, Any], offset: int) -> str:
    """How a sample differs from its manifest row or in itself; "" where it does not."""
    from dynamictrl.video import iter_frames

    if offset != row["offset"]:
        return f"begins at byte {offset} and not at {row['offset']}"
    try:
        frames = sum(1 for _ in iter_frames(sample.video))
        counts = {"manifest": row["frames"], "pose": sample.pose.num_frames, "mask": sample.person_mask.shape[0]}
        wrong = [f"{n} in the {name}" for name, n in counts.items() if n != frames]
        if wrong:
            return f"has {frames} frames but {', '.join(wrong)}"
        if sample.info["key"] != sample.key or sample.caption != row["caption"]:
            return "has another description than the manifest"
    except (DynamiCtrlError, ValueError, KeyError, OSError, io.UnsupportedOperation) as problem:
        return f"cannot be read: {problem}"
    return ""
