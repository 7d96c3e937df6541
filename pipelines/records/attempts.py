"""Which units were being worked on when a process died, so that none can bring a run down again and again.

A unit's marker is a file, `OUT/.work/attempts/RUN/UNIT`, that grows by one byte when an attempt begins and is removed
when it ends, well or badly. Only the death of the process leaves it. RUN is the id of this start of the command: when
the driver dies its workers end soon after it, and the units that they held are not charged for that, as the next start
has another id and looks into another folder.

How an operator uses it:

    if attempts.made(work, run_id, unit) >= attempts.MOST:
        attempts.forget(work, run_id, [unit])
        ... record the unit as refused with `attempts.CRASHED` and `attempts.sentence()` ...
    with attempts.attempt(work, run_id, [unit]):
        ... the stages ...

Several units at once are charged together, since nobody can say which of them killed the process. So a unit with an
attempt behind it goes alone (`split`): one poisonous unit costs its neighbours one attempt, and then it dies by itself.

    alone, together = attempts.split(work, run_id, units)

Where a worker is killed for another's fault (a node lost, memory taken by a neighbour), its unit is charged as well and
done again; it takes `MOST` such deaths in one run to lose it, and `quarantine retry` brings it back.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

MOST = 3
"""Deaths of the process after which a unit is charged."""
CRASHED = "crashed"
"""The reason code: the process that worked on it died, every time."""


def made(work: Path, run_id: str, unit: str) -> int:
    """Attempts at a unit in this run whose process died."""
    try:
        return os.stat(_marker(work, run_id, unit)).st_size
    except FileNotFoundError:
        return 0


@contextlib.contextmanager
def attempt(work: Path, run_id: str, units: Sequence[str]) -> Iterator[None]:
    """Marks units as being worked on; an exception takes the marks away as success does. Without a run id, nothing."""
    if not run_id:
        yield
        return
    for unit in units:
        _grow(_marker(work, run_id, unit))
    try:
        yield
    finally:
        forget(work, run_id, units)


def split(work: Path, run_id: str, units: Sequence[str]) -> tuple[list[str], list[str]]:
    """Units that must be tried alone, since an attempt at them ended in a death, and the others."""
    if not run_id or not _folder(work, run_id).is_dir():
        return [], list(units)
    alone = [unit for unit in units if made(work, run_id, unit)]
    return alone, [unit for unit in units if unit not in set(alone)]


def forget(work: Path, run_id: str, units: Sequence[str]) -> None:
    """Takes marks away."""
    for unit in units:
        _marker(work, run_id, unit).unlink(missing_ok=True)


def sweep(work: Path) -> None:
    """Forgets earlier runs; called once when a run begins, under its lock."""
    shutil.rmtree(work / "attempts", ignore_errors=True)


def sentence() -> str:
    """For people, about a unit that was charged."""
    return f"the process that worked on it died {MOST} times in one run"


def _folder(work: Path, run_id: str) -> Path:
    return work / "attempts" / run_id


def _marker(work: Path, run_id: str, unit: str) -> Path:
    return _folder(work, run_id) / unit


def _grow(marker: Path) -> None:
    """One byte more; not synced, as a machine that goes down takes its units' guilt along."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    try:
        file = os.open(marker, flags, 0o644)
    except FileNotFoundError:
        marker.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(marker, flags, 0o644)
    try:
        os.write(file, b".")
    finally:
        os.close(file)
