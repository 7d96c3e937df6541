"""Whose a work folder is: the run that claimed it last.

A driver that is killed leaves workers that go on for up to a minute. The next run sweeps away what they are writing,
and what they then make of a missing file must not be put on record: so a worker asks, before it begins with a unit and
before it records anything, whether the folder is still its own run's.
"""

from __future__ import annotations

import uuid
from pathlib import Path

from dynamictrl.errors import DatasetError
from pipelines.files import storage

_NAME = "claim"


def take(work: Path) -> str:
    """Claims a work folder for a run that begins, under its lock and before it removes anything; returns its id.

    Ids are numbered: a shared disk may show a worker of the new run the claim before its own for a while.
    """
    run_id = f"{_number(holder(work)) + 1}-{uuid.uuid4().hex[:12]}"
    storage.write_bytes(work / _NAME, run_id.encode())
    return run_id


def holder(work: Path) -> str:
    """The id of the run that claimed a work folder last; "" where none has."""
    try:
        return (work / _NAME).read_text()
    except FileNotFoundError:
        return ""


def check(work: Path, run_id: str) -> None:
    """Raises DatasetError where a later run has claimed the folder; "" is nobody's id and passes."""
    if run_id and _number(holder(work)) > _number(run_id):
        raise DatasetError(
            f"another run has claimed {work}; what this one's worker was still doing is not recorded", code="superseded"
        )


def _number(run_id: str) -> int:
    number = run_id.partition("-")[0]
    return int(number) if number.isdecimal() else 0
