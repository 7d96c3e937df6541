"""Finds the source videos that a user named: files, folders, globs, remote prefixes, or a list of them."""

from __future__ import annotations

import difflib
import glob
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from dynamictrl.errors import InputError
from pipelines.clip import Clip
from pipelines.files import storage
from pipelines.licences import agreed
from pipelines.stage import Stage

logger = logging.getLogger(__name__)

LISTS = (".csv", ".jsonl", ".parquet")
RIGHTS_COLUMNS = ("basis", "attribution", "origin")
"""Columns that go with each sample beside licence and consent: legal basis, who is to be named, where it was found."""
URI_COLUMNS = ("uri", "url", "path", "video", "file")
SIDECARS = (".json", ".truth.npz", ".txt")
"""Endings that belong to the video of the same stem beside them, and are no sources of their own."""


@dataclass(frozen=True)
class FindVideos(Stage):
    """Turns what the user named into one row per source file. Nothing is left out but hidden files and side-cars.

    What is no video is found all the same: the probe then says why, and the quarantine lists it. Of a list, the columns
    licence (or license), consent, basis, attribution and origin travel with each source. A source that two rows name is
    taken once; where they state different rights, `RequireLicence` refuses it.
    """

    per: ClassVar[Literal["source", "clip"]] = "source"

    def process(self, clip: Clip) -> Iterable[Clip]:
        """`clip.source` holds a file, folder, glob, remote prefix, or CSV, JSONL or Parquet list of URIs.

        Raises InputError where it names nothing.
        """
        found = agreed(replace(clip, **row) for row in _find(clip.source))
        if not found:
            raise InputError(
                f"{clip.source!r} holds no file. Name a video, a folder, a glob, an s3://, gs:// or https:// prefix, "
                f"or a .csv, .jsonl or .parquet list of them.",
                code="nothing_found",
                param="videos",
            )
        yield from found


def _find(source: str) -> Iterator[dict[str, Any]]:
    if source.lower().endswith(LISTS):
        yield from _listed(source)
    elif storage.is_remote(source):
        yield from (_row(uri, size, changed) for uri, size, changed in storage.list_remote(source))
    else:
        yield from (_local_row(path) for path in _local_files(source))


def _local_files(source: str) -> list[Path]:
    path = Path(source.removeprefix("file://")).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        return _walk(path)
    matches = sorted(Path(m) for m in glob.glob(str(path), recursive=True))
    if not matches:
        near = difflib.get_close_matches(path.name, _names_beside(path), n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ". Give an existing file, folder or glob."
        raise InputError(f"{source} does not exist{hint}", code="not_found", param="videos")
    return [f for m in matches for f in (_walk(m) if m.is_dir() else [m])]


def _names_beside(path: Path) -> list[str]:
    return [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []


def _walk(folder: Path) -> list[Path]:
    """Every file below a folder in order of name; hidden ones and side-cars of videos aside."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    shown = [p for p in files if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    stems = {p.with_suffix("") for p in shown if not p.name.endswith(SIDECARS)}
    sources = [p for p in shown if not _is_sidecar(p, stems)]
    if len(sources) < len(files):
        logger.info("%s: %d hidden files and side-cars are no sources", folder, len(files) - len(sources))
    return sources


def _is_sidecar(path: Path, stems: set[Path]) -> bool:
    return any(path.name.endswith(e) and path.with_name(path.name.removesuffix(e)) in stems for e in SIDECARS)


def _listed(source: str) -> Iterator[dict[str, Any]]:
    """Rows of a list of sources; licence and consent columns travel with each."""
    with storage.local_copy(source) as path:
        if not path.is_file():
            raise InputError(f"the list {source} does not exist", code="not_found", param="videos")
        rows = _read_list(path)
    for number, row in enumerate(rows, start=1):
        uri = next((str(row[name]) for name in URI_COLUMNS if row.get(name)), "")
        if not uri:
            raise InputError(
                f"row {number} of {source} names no video; it needs a column {', '.join(URI_COLUMNS)} (has "
                f"{', '.join(map(str, row))})",
                code="list_columns",
                param="videos",
            )
        yield {**_listed_row(source, uri), **_carried(row)}


def _carried(row: dict[str, Any]) -> dict[str, Any]:
    """What a list says about a source's rights, by the columns' names in any case; empty cells say nothing."""
    said = {str(name).strip().lower(): str(value).strip() for name, value in row.items() if value is not None}
    said = {name: value for name, value in said.items() if value}
    found: dict[str, Any] = {
        "licence": said.get("licence") or said.get("license"),
        "consent": said.get("consent"),
        "rights": {name: said[name] for name in RIGHTS_COLUMNS if name in said},
    }
    return {name: value for name, value in found.items() if value}


def _listed_row(source: str, uri: str) -> dict[str, Any]:
    if storage.is_remote(uri):
        return _row(uri, 0, "")
    # A relative path means beside the list, wherever the command runs.
    return _local_row(os.path.join(os.path.expanduser(os.path.dirname(source)), os.path.expanduser(uri)))


def _read_list(path: Path) -> list[dict[str, Any]]:
    import csv

    try:
        if path.suffix == ".csv":
            with path.open(newline="", encoding="utf-8-sig") as stream:
                return list(csv.DictReader(stream))
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        import pyarrow.parquet as pq

        return pq.read_table(path).to_pylist()
    except (ValueError, OSError, csv.Error) as problem:
        raise InputError(
            f"the list {path} cannot be read: {problem}", code="list_unreadable", param="videos"
        ) from problem


def _local_row(path: Path | str) -> dict[str, Any]:
    # Without "..": the same file named in two ways is one source.
    path = os.path.abspath(path)
    try:
        status = os.stat(path)
    except OSError:
        # A list may name what is gone: the quarantine says so.
        return _row(path, 0, "") | {"path": path}
    return _row(path, status.st_size, str(status.st_mtime_ns)) | {"path": path}


def _row(uri: str, size: int, changed: str) -> dict[str, Any]:
    fingerprint = hashlib.sha256(f"{uri}\n{size}\n{changed}".encode()).hexdigest()[:32]
    return {"source": uri, "fingerprint": fingerprint}
