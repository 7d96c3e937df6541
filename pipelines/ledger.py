"""What has been decided already: one file per unit of work, written whole, so that a rerun continues.

`results/OPERATOR-DIGEST/UNIT.json` holds the rows that one operator made of one unit. The digest covers the settings of
that operator and of all before it, so a result is found again only where it would come out the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from pipelines import storage
from pipelines.clip import Clip
from pipelines.stage import Stage


@dataclass(frozen=True)
class Ledger:
    """The decided outcomes of one operator: kept, refused and quarantined ones alike."""

    work: Path
    """The run's work folder."""
    name: str
    digest: str

    @property
    def folder(self) -> Path:
        return self.work / "results" / f"{self.name}-{self.digest[:12]}"

    def load(self, unit: str) -> list[Clip] | None:
        """What became of a unit, or None where it is not decided."""
        try:
            rows = json.loads((self.folder / f"{unit}.json").read_bytes())
        except FileNotFoundError:
            return None
        # The folder may have been moved since.
        return [replace(Clip.from_row(row), work=str(self.work)) for row in rows]

    def save(self, unit: str, clips: Sequence[Clip]) -> None:
        """Records what became of a unit; the last thing that happens to it."""
        rows = [clip.to_row() for clip in clips]
        storage.write_bytes(self.folder / f"{unit}.json", json.dumps(rows, sort_keys=True).encode())


def settings_of(stage: Stage) -> dict[str, Any]:
    """A stage's name and those of its settings that shape the result."""
    shaping = [f.name for f in fields(stage) if not f.metadata.get("resource")]
    return {"stage": stage.name, **{name: getattr(stage, name) for name in shaping}}


def chain_digest(stages: Sequence[Stage]) -> str:
    """Hash of the settings of consecutive stages: what makes the last one's result come out as it does."""
    text = json.dumps([settings_of(stage) for stage in stages], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
