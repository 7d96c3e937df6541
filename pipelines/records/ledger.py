"""What has been decided already: one record per source and per clip, written whole, so that a rerun continues.

`results/sources/ab/FINGERPRINT.json` and `results/clips/ab/KEY.json` hold the latest result of each stage under its key
(`keys`): a result is taken again only where it would come out the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from pipelines.clip import MAPS, PLACES, Clip
from pipelines.files import storage

FORGOTTEN = "forgotten"
"""Below the work folder: some decision was taken back since the data set was finished."""


@dataclass(frozen=True)
class Result:
    """What one stage, or a chain of stages of a source, made of one unit."""

    stage: str
    key: str
    change: Mapping[str, Any] = field(default_factory=dict)
    """Of a clip: the fields that changed; of maps and files only what was added."""
    rows: tuple[Mapping[str, Any], ...] = ()
    """Of a source: what became of it."""
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    costs: Mapping[str, Any] = field(default_factory=dict)
    """Of a source: {stage: [rows seen, seconds, CPU-seconds]}."""


@dataclass
class Record:
    """All that is known about one unit."""

    results: dict[str, Result] = field(default_factory=dict)
    """By stage, in the order they were made."""

    def find(self, stage: str, key: str) -> Result | None:
        found = self.results.get(stage)
        return found if found is not None and found.key == key else None

    def put(self, result: Result) -> None:
        self.results.pop(result.stage, None)
        self.results[result.stage] = result


@dataclass(frozen=True)
class Ledger:
    """The records of one kind of unit in one work folder."""

    work: Path
    kind: Literal["sources", "clips"]

    @property
    def folder(self) -> Path:
        return self.work / "results" / self.kind

    def path(self, unit: str) -> Path:
        return self.folder / unit[:2] / f"{unit}.json"

    def load(self, unit: str) -> Record:
        """What is known about a unit; an empty record where nothing is."""
        try:
            rows = json.loads(self.path(unit).read_bytes())
        except FileNotFoundError:
            return Record()
        return Record({row["stage"]: Result(**{**row, "rows": tuple(row.get("rows", ()))}) for row in rows})

    def save(self, unit: str, record: Record) -> None:
        """Records what became of a unit; the last thing that happens to it."""
        rows = [{name: v for name, v in asdict(r).items() if v or name == "key"} for r in record.results.values()]
        storage.write_bytes(self.path(unit), json.dumps(rows, sort_keys=True).encode())

    def forget(self, unit: str) -> bool:
        """Lets a unit be decided anew; whether there was anything to forget."""
        known = self.path(unit).is_file()
        if known:
            # First the note, that a finished data set is not taken for finished.
            storage.write_bytes(self.work / FORGOTTEN, b"")
            self.path(unit).unlink(missing_ok=True)
        return known

    def units(self) -> Iterator[str]:
        """The names of all units on record, in order."""
        yield from sorted(path.stem for path in self.folder.glob("*/*.json"))


def change_between(before: Clip, after: Clip) -> dict[str, Any]:
    """What a stage made known: the inverse of `with_change`. Files carry their sizes, to tell whole ones."""
    set_: dict[str, Any] = {}
    for f in fields(Clip):
        old, new = getattr(before, f.name), getattr(after, f.name)
        if old == new or f.name in PLACES or f.name == "files":
            continue
        set_[f.name] = {k: v for k, v in new.items() if old.get(k) != v} if f.name in MAPS else new
    # Written again counts as written: a stage that ran made its files anew.
    files = {e: after.file(e).stat().st_size for e in after.files if e not in before.files}
    return {**set_, **({"files": files} if files else {})}


def with_change(clip: Clip, result: Result) -> Clip:
    """The clip after a stage, from its record."""
    change = {name: value for name, value in result.change.items() if name != "files"}
    for name in MAPS:
        change[name] = {**getattr(clip, name), **change.get(name, {})}
    change["lineage"][result.stage] = result.key
    files = tuple(sorted({*clip.files, *result.change.get("files", ())}))
    return replace(clip, files=files, **change)
