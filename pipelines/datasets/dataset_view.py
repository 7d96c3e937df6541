"""A data set as its readers see it, on a disk or in an object store: rows, outcomes, and single samples."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dynamictrl.errors import DatasetError
from dynamictrl.samples.shards import SCHEMA_VERSION, Sample
from pipelines.files import run_folder
from pipelines.files.storage import Store, file_name
from pipelines.publishing import dataset_files


@dataclass(frozen=True)
class DatasetView:
    """One data set, opened for reading: what `report`, `explain`, `diff` and `size` look at."""

    root: str
    """Folder, or s3:// prefix."""
    description: Mapping[str, Any]
    """`dataset.json`."""
    work: Path | None = None
    """The run's work folder where it is at hand: costs, and pictures of refused clips."""

    @property
    def name(self) -> str:
        """The last part of where it lies."""
        return file_name(self.root) if self.store.remote else self.store.folder.resolve().name

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The manifest: one row per clip found, in order of key; scores, models and lineage as dicts."""
        return dataset_files.parse_manifest(self.store.read("manifest.parquet"))

    @cached_property
    def quarantine(self) -> list[dict[str, Any]]:
        """The lines of `quarantine.jsonl`."""
        return dataset_files.parse_quarantine(self.store.read("quarantine.jsonl"))

    @property
    def store(self) -> Store:
        """Its files."""
        return Store(self.root)

    def sample(self, row: Mapping[str, Any]) -> Sample:
        """The members of a kept row, read out of its shard; raises DatasetError where they are not there."""
        return Sample(row["key"], dict(self.members(row)))

    def members(self, row: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
        """(extension, content) of a kept row's members, in order."""
        name = f"shards/{row['shard']}"
        with self.store.open(name) as stream:
            stream.seek(row["offset"])
            try:
                with tarfile.open(fileobj=stream, mode="r|") as tar:
                    for header in tar:
                        key, _, extension = header.name.partition(".")
                        if key != row["key"]:
                            return
                        content = tar.extractfile(header)
                        yield extension, content.read() if content else b""
            except tarfile.TarError as problem:
                raise DatasetError(
                    f"{self.store.uri(name)} is damaged: {problem}. `python -m pipelines verify --dataset {self.root}` "
                    f"says what else is.",
                    code="shard_damaged",
                ) from problem


def open_view(dataset: str | Path, work: str | Path | None = None) -> DatasetView:
    """Opens a data set on a disk or in a store; raises DatasetError where there is none of this schema.

    `work` is the run's work folder, by default where a run keeps it by itself.
    """
    store = Store(str(dataset))
    if not store.exists("dataset.json"):
        raise DatasetError(
            f"{dataset} is no data set: it has no dataset.json. Make one with `python -m pipelines RECIPE --videos SRC "
            f"--out {dataset}`.",
            code="dataset_missing",
        )
    description = json.loads(store.read("dataset.json"))
    version = description.get("schema_version")
    if version != SCHEMA_VERSION:
        raise DatasetError(
            f"{dataset} has schema version {version}; this release reads {SCHEMA_VERSION}. Curate it again with this "
            f"release, or install the release that wrote it.",
            code="dataset_schema",
        )
    return view_of(store.root, description, work)


def view_of(root: str | Path, description: Mapping[str, Any], work: str | Path | None = None) -> DatasetView:
    """The data set as `description` says it is, whether `dataset.json` is written yet or not."""
    store, folder = Store(str(root)), run_folder.work_folder(str(root), work)
    return DatasetView(store.root, description, folder if folder.is_dir() else None)


def sources(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Rows by the source they come from."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["source"], []).append(row)
    return found
