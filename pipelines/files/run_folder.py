"""The folders of a run: whose the data set is, that nobody else writes to it, and what an interrupted run left."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dynamictrl.errors import ConfigError
from dynamictrl.samples.shards import SCHEMA_VERSION, write_json
from pipelines.files import claim, lease
from pipelines.files.lease import BusyError
from pipelines.files.storage import Store

logger = logging.getLogger(__name__)

WORK = ".work"
"""Below a local data set: results, plan, and files of clips that are not in a shard yet."""


@contextlib.contextmanager
def opened(
    out: str | Path,
    recipe: str,
    settings: Mapping[str, Any],
    *,
    work: str | Path | None = None,
    videos: Sequence[str] = (),
) -> Iterator[Path]:
    """The work folder of a run, locked for it; made or continued. Other settings than before are said and allowed.

    Raises ConfigError before anything is written where `out` is a file, a folder of something else, or a data set of
    another schema or recipe; BusyError where another run writes to it.
    """
    store, folder = Store(str(out)), work_folder(out, work)
    settings = json.loads(json.dumps(settings, default=str))
    store.check()
    known = _check(store, folder, recipe)
    with claimed(out, folder):
        for change in changes(known, settings):
            logger.info("%s: what depends on it is done again", change)
        noted = {"schema_version": SCHEMA_VERSION, "recipe": recipe, "settings": settings, "videos": list(videos)}
        write_json(folder / "run.json", noted)
        yield folder


@contextlib.contextmanager
def claimed(out: str | Path, work: str | Path | None = None) -> Iterator[Path]:
    """The work folder of whoever changes a data set, locked, with half-written files of a killed run removed."""
    store, folder = Store(str(out)), work_folder(out, work)
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        held.enter_context(_locked(folder / "lock", store))
        if not store.remote and folder != store.folder / WORK:
            store.folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(_locked(store.folder / ".lock", store))
        held.enter_context(lease.held(store, folder))
        # Before the sweep: a worker whose half-written file it takes is then one that may record nothing.
        claim.take(folder)
        _sweep(store, folder)
        yield folder


def work_folder(out: str | Path, work: str | Path | None = None) -> Path:
    """Where a run keeps what is not finished: `work` if it is named, `.work` in a local data set, else a cache folder.

    The cache folder is named after the data set, so the same command finds it again on the same machine.
    """
    if work:
        return Path(work).expanduser().absolute()
    store = Store(str(out))
    if not store.remote:
        return store.folder.absolute() / WORK
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    name = hashlib.sha256(store.root.partition("?")[0].rstrip("/").encode()).hexdigest()[:16]
    return cache / "dynamictrl" / "work" / name


def changes(known: Mapping[str, Any] | None, settings: Mapping[str, Any]) -> list[str]:
    """What is set otherwise than when the data set was last written, a sentence each."""
    old = (known or {}).get("settings") or {}
    found = []
    for stage in sorted(old.keys() | settings.keys()) if old else ():
        before, now = old.get(stage) or {}, settings.get(stage) or {}
        found += [
            f"{stage}.{name} was {before.get(name)!r}, is {now.get(name)!r}"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name)
        ]
    return found


@contextlib.contextmanager
def _locked(path: Path, store: Store) -> Iterator[None]:
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as problem:
            message = f"another run is writing to {store.root}; wait for it, or stop it"
            raise BusyError(message, code="busy") from problem
        yield


def _check(store: Store, work: Path, recipe: str) -> dict[str, Any] | None:
    """What made the data set, None where there is none yet."""
    if not store.remote and store.folder.exists() and not store.folder.is_dir():
        raise ConfigError(f"{store.root} is a file; --out names a folder for the data set", param="out")
    known = _identity(store, work)
    if known is None:
        if _holds_something(store):
            raise ConfigError(
                f"{store.root} holds something that is no data set; give an empty or a new folder", param="out"
            )
        return None
    if known.get("schema_version") != SCHEMA_VERSION:
        raise ConfigError(
            f"{store.root} is a data set of schema version {known.get('schema_version')} and this release writes "
            f"{SCHEMA_VERSION}; give another folder",
            code="dataset_schema",
            param="out",
        )
    if known.get("recipe") != recipe:
        raise ConfigError(
            f"{store.root} was made by recipe {known.get('recipe')} and this is {recipe}; give another folder",
            code="dataset_recipe",
            param="out",
        )
    return known


def _identity(store: Store, work: Path) -> dict[str, Any] | None:
    """By its description if it is finished, else by what the unfinished run left."""
    try:
        if store.exists("dataset.json"):
            return json.loads(store.read("dataset.json"))
        # A run that decided nothing, because its settings could not be met, binds nobody.
        if (work / "results").is_dir() and (work / "run.json").is_file():
            return json.loads((work / "run.json").read_bytes())
    except ValueError as problem:
        raise ConfigError(
            f"what describes {store.root} is damaged ({problem}); give another folder", param="out"
        ) from problem
    return None


def _holds_something(store: Store) -> bool:
    if store.remote:
        return any(not name.startswith(".") for name, _ in store.list())
    return store.folder.is_dir() and any(path.name not in (WORK, ".lock") for path in store.folder.iterdir())


def _sweep(store: Store, work: Path) -> None:
    """Removes half-written files of a run that was killed. Their names end so that nothing whole is ever taken."""
    shown = [] if store.remote else [store.folder, store.folder / "shards", store.folder / "report"]
    found = [path for folder in shown for pattern in (".*.tmp", "*.part") for path in folder.glob(pattern)]
    found += [path for pattern in (".*.tmp", "*.part") for path in work.rglob(pattern)] if work.is_dir() else []
    for path in found:
        path.unlink(missing_ok=True)
    shutil.rmtree(work / "downloads", ignore_errors=True)
