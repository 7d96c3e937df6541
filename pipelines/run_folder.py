"""The output folder of a run: whose it is, that nobody else writes to it, and what an interrupted run left there."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dynamictrl.errors import ConfigError, DatasetError
from dynamictrl.shards import SCHEMA_VERSION, write_json

WORK = ".work"
"""Below the data set folder: outcomes, plan, and files of clips that are not in a shard yet."""


class BusyError(DatasetError):
    """Another run writes to the folder at this moment."""


@contextlib.contextmanager
def opened(out: Path, recipe: str, settings: Mapping[str, Any]) -> Iterator[Path]:
    """The work folder of a run, locked for it; made or continued.

    Raises ConfigError before anything is written where `out` is a file, a folder of something else, or a data set of
    another schema, recipe or settings.
    """
    settings = json.loads(json.dumps(settings, default=str))
    _check(out, recipe, settings)
    work = out / WORK
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as problem:
            raise BusyError(f"another run is writing to {out}; wait for it, or stop it", code="busy") from problem
        _sweep(out)
        write_json(work / "run.json", {"schema_version": SCHEMA_VERSION, "recipe": recipe, "settings": settings})
        yield work


def _check(out: Path, recipe: str, settings: Mapping[str, Any]) -> None:
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; --out names a folder for the data set", param="out")
    known = _identity(out)
    if known is None:
        if out.is_dir() and any(p.name != WORK for p in out.iterdir()):
            raise ConfigError(f"{out} holds something that is no data set; give an empty or a new folder", param="out")
        return
    if known.get("schema_version") != SCHEMA_VERSION:
        raise ConfigError(
            f"{out} is a data set of schema version {known.get('schema_version')} and this release writes "
            f"{SCHEMA_VERSION}; give another folder",
            code="dataset_schema",
            param="out",
        )
    if known.get("recipe") != recipe:
        raise ConfigError(
            f"{out} was made by recipe {known.get('recipe')} and this is {recipe}; give another folder",
            code="dataset_recipe",
            param="out",
        )
    changes = _differences(known.get("settings") or {}, settings)
    if changes:
        raise ConfigError(
            f"{out} was made with other settings: {'; '.join(changes)}. Give another folder, or the same settings.",
            code="dataset_settings",
            param="out",
        )


def _identity(out: Path) -> dict[str, Any] | None:
    """What made the folder: by its description if it is finished, else by what the unfinished run left."""
    begun = (out / WORK / "results").is_dir()
    # A run that decided nothing, because its settings could not be met, binds nobody.
    for path in (out / "dataset.json", *([out / WORK / "run.json"] if begun else [])):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            try:
                return json.loads(path.read_text())
            except ValueError as problem:
                raise ConfigError(f"{path} is damaged ({problem}); give another folder", param="out") from problem
    return None


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    changes = []
    for stage in sorted(old.keys() | new.keys()):
        before, now = old.get(stage) or {}, new.get(stage) or {}
        changes += [
            f"{stage}.{name} was {before.get(name)!r}, is {now.get(name)!r}"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name)
        ]
    return changes


def _sweep(out: Path) -> None:
    """Removes half-written files of a run that was killed. Their names end so that nothing whole is ever taken."""
    for folder in (out, out / "shards", out / "report"):
        for pattern in (".*.tmp", "*.part"):
            for path in folder.glob(pattern):
                path.unlink(missing_ok=True)
    for pattern in (".*.tmp", "*.part"):
        for path in (out / WORK).rglob(pattern):
            path.unlink(missing_ok=True)
    shutil.rmtree(out / WORK / "downloads", ignore_errors=True)
