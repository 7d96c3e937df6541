"""What one worker process has done in this run: the numbers behind `metrics`, in a small file that it rewrites.

`OUT/.work/meters/OPERATOR@HOST-PID.json`, at most once a second. The driver adds the files up, so its memory does not
grow with the work, a worker that dies takes nothing along, and no number travels with the rows.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.stage import Cost, Work

SECONDS_BETWEEN_WRITES = 1.0


def folder(work: Path) -> Path:
    """Where the workers of a run write what they did."""
    return work / "meters"


def sweep(work: Path) -> None:
    """Forgets what an earlier run measured."""
    shutil.rmtree(folder(work), ignore_errors=True)


@dataclass
class Meter:
    """Counts the work of one operator in one process. The operator calls `add`, the runner `save`."""

    blocks: int = 0
    busy_seconds: float = 0.0
    """Between taking rows and giving them back, setting up included."""
    attempts_lost: int = 0
    """Earlier attempts whose process died."""
    stages: dict[str, Cost] = field(default_factory=dict)
    refused: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """Rows by (stage, `rejected` or `quarantined`, reason code)."""
    _saved: float = field(default=0.0, init=False, repr=False)

    def add(self, work: Work) -> None:
        """`work` was done just now. What was recalled from an earlier run is not work."""
        for stage, cost in work.costs.items():
            self.stages.setdefault(stage, Cost()).add(cost)
        for clip in (clip for clip in work.clips if clip.rejected):
            self.refused[clip.stage, "quarantined" if clip.quarantined else "rejected", clip.rejected] += 1

    def save(self, work: Path, operator: str, *, now: bool = False) -> None:
        """Writes the file, unless it was written a moment ago. It is not synced: a dead machine needs no numbers."""
        if not now and time.monotonic() - self._saved < SECONDS_BETWEEN_WRITES:
            return
        self._saved = time.monotonic()
        content = {
            "operator": operator,
            "blocks": self.blocks,
            "busy_seconds": round(self.busy_seconds, 3),
            "attempts_lost": self.attempts_lost,
            "stages": {
                name: [c.units, round(c.seconds, 4), round(c.cpu_seconds, 4)] for name, c in self.stages.items()
            },
            "refused": [[*place, count] for place, count in sorted(self.refused.items())],
        }
        write(work, f"{operator}@{socket.gethostname()}-{os.getpid()}.json", content)


def write(work: Path, name: str, content: dict[str, Any]) -> None:
    """Replaces one of the files of numbers."""
    path = folder(work) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{name}.tmp")
    temporary.write_text(json.dumps(content))
    temporary.replace(path)


def load(work: Path) -> Iterator[dict[str, Any]]:
    """What the workers wrote so far, one dict per worker and operator."""
    for path in sorted(folder(work).glob("*@*.json")):
        try:
            yield json.loads(path.read_bytes())
        except (FileNotFoundError, ValueError):
            continue
