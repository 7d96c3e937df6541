"""Keeps two drivers from publishing into one bucket at once, as far as a bucket allows.

A folder is locked by the operating system. A bucket has no locks, so whoever publishes writes `.lease.json` with their
name and a time at which it runs out, renews it while they work, and looks at it again before the index is swapped.
Limits: two drivers that start within a second of each other may both find no lease (the one that wrote first finds out
before it publishes), and clocks that differ by minutes shorten the protection. It guards against a mistake, not against
malice. A driver that was killed leaves its lease; the same work folder takes it over at once, another waits it out.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dynamictrl.errors import DatasetError, DynamiCtrlError
from pipelines.files.storage import Store, write_bytes

logger = logging.getLogger(__name__)

NAME = ".lease.json"
LASTS = 600.0
"""Seconds after which a lease that is not renewed is nobody's."""
RENEWED = 120.0
"""Seconds between renewals."""


class BusyError(DatasetError):
    """Another run writes to the data set at this moment."""


@contextlib.contextmanager
def held(store: Store, work: Path) -> Iterator[None]:
    """Holds the lease of a data set in a bucket, for the run whose work folder this is; a local one needs none."""
    if not store.remote:
        yield
        return
    mine = _mine(work)
    _take(store, mine)
    stopped = threading.Event()
    renewing = threading.Thread(target=_renew, args=(store, mine, stopped), daemon=True)
    renewing.start()
    try:
        yield
    finally:
        stopped.set()
        renewing.join(timeout=30)
        with contextlib.suppress(DynamiCtrlError):
            if _holder(store) == mine:
                store.delete(NAME)


def check(store: Store, work: Path) -> None:
    """Raises BusyError where another driver has taken the lease since; asked before the index is swapped."""
    if store.remote and (work / "lease.json").is_file():
        found = _read(store)
        if found and found["owner"] != _mine(work):
            raise _busy(store, found)


def _mine(work: Path) -> str:
    """Names the work folder, for as long as it is there."""
    path = work / "lease.json"
    if not path.is_file():
        write_bytes(path, json.dumps({"owner": uuid.uuid4().hex}).encode())
    return json.loads(path.read_bytes())["owner"]


def _take(store: Store, mine: str) -> None:
    found = _read(store)
    if found and found["owner"] != mine and found["until"] > time.time():
        raise _busy(store, found)
    _write(store, mine)


def _renew(store: Store, mine: str, stopped: threading.Event) -> None:
    while not stopped.wait(RENEWED):
        try:
            if _holder(store) in ("", mine):
                _write(store, mine)
        except DynamiCtrlError as problem:
            # The run goes on: the lease lasts for some more renewals, and is asked for again before publishing.
            logger.warning("the lease of %s could not be renewed: %s", store.root, problem)


def _write(store: Store, mine: str) -> None:
    content = {"owner": mine, "host": platform.node(), "pid": os.getpid(), "until": round(time.time() + LASTS)}
    store.put(NAME, json.dumps(content).encode())


def _holder(store: Store) -> str:
    found = _read(store)
    return found["owner"] if found else ""


def _read(store: Store) -> dict[str, Any] | None:
    return json.loads(store.read(NAME)) if store.exists(NAME) else None


def _busy(store: Store, found: dict[str, Any]) -> BusyError:
    until = time.strftime("%H:%M:%S UTC", time.gmtime(found["until"]))
    return BusyError(
        f"another run is writing to {store.root}: process {found['pid']} on {found['host']}. Wait for it, or stop it; "
        f"its lease runs out at {until}, or continue with its work folder.",
        code="busy",
    )
