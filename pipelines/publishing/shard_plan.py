"""Which sample goes into which shard, frozen on disk before the first is written.

The plan is made once all clips are decided: it names the same shards whatever the number of workers and however often
the run was killed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dynamictrl.errors import DatasetError
from dynamictrl.samples.shards import shard_bytes
from pipelines.files import storage

MEBIBYTE = 2**20


@dataclass(frozen=True)
class Place:
    """Where one committed sample lies, and what it is."""

    shard: str
    offset: int
    """Byte at which its first header begins."""
    bytes: int
    """In the tar, headers and padding included; -1 where an older release did not record it."""
    digest: str
    """`Clip.digest` of what was committed."""
    lineage: Mapping[str, str]
    """By stage, the key of its result."""


@dataclass(frozen=True)
class PlannedSample:
    """One sample of a planned shard, and where its bytes come from."""

    key: str
    digest: str
    lineage: Mapping[str, str]
    bytes: int
    """In the tar, headers and padding included."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Work files by member, relative to the work folder; empty where the sample lies in a shard already."""
    shard: str = ""
    """The committed shard that holds it unchanged."""
    offset: int = -1
    """Byte at which it begins there."""


@dataclass(frozen=True)
class PlannedShard:
    """One shard to be written: its samples in order."""

    name: str
    samples: tuple[PlannedSample, ...]
    bucket: str = ""
    """What its samples have in common, where a data set is sorted so; "" = nothing."""


@dataclass(frozen=True)
class Plan:
    """What an unfinished run writes and what it retires."""

    next: int = 0
    """The first shard number that was never used."""
    shards: tuple[str, ...] = ()
    retired: tuple[str, ...] = ()
    """Published shards that the next index no longer names."""
    waiting: tuple[str, ...] = ()
    """Those of `shards` that belong to an interrupted run, while another command publishes without them."""
    purpose: str = ""
    """Who made the plan: "run", or a command with its settings."""


@dataclass(frozen=True)
class PlanFolder:
    """The plan as it lies in a work folder: `plan.json` names the shards, `plan/NAME.json` says what is in each.

    A shard's record, `shards/NAME.json`, is written after the shard: what is recorded there is committed.
    """

    work: Path

    def load(self) -> Plan:
        """The plan of the unfinished run; an empty one where there is none."""
        known = _json(self.work / "plan.json")
        if known is None:
            return Plan()
        lists = {name: tuple(known[name]) for name in ("shards", "retired", "waiting")}
        return Plan(next=known["next"], purpose=known["purpose"], **lists)

    def save(self, plan: Plan, shards: Iterable[PlannedShard]) -> None:
        """Writes the shards first and the plan that names them last."""
        for shard in shards:
            content = {"bucket": shard.bucket, "samples": [asdict(sample) for sample in shard.samples]}
            storage.write_bytes(self.work / "plan" / f"{shard.name}.json", json.dumps(content).encode())
        storage.write_bytes(self.work / "plan.json", json.dumps(asdict(plan)).encode())

    def shard(self, name: str) -> PlannedShard:
        """What one shard shall hold; raises DatasetError where it is not planned."""
        known = _json(self.work / "plan" / f"{name}.json")
        if known is None:
            raise DatasetError(f"{name} is not in the plan of {self.work}", code="not_planned")
        return PlannedShard(name, tuple(PlannedSample(**s) for s in known["samples"]), known["bucket"])

    def record(self, name: str) -> dict[str, Any] | None:
        """A committed shard: bytes, sha256, md5 and the place of each sample; None where it is still to be written."""
        return _json(self.work / "shards" / f"{name}.json")

    def save_record(self, record: Mapping[str, Any]) -> None:
        """The last thing that happens to a shard."""
        storage.write_bytes(self.work / "shards" / f"{record['name']}.json", json.dumps(record).encode())

    def clear(self) -> None:
        """Forgets the plan once all of it is published."""
        (self.work / "plan.json").unlink(missing_ok=True)
        for folder in ("plan", "shards", "outgoing"):
            shutil.rmtree(self.work / folder, ignore_errors=True)


def grouped(samples: Iterable[PlannedSample], size: float) -> list[tuple[PlannedSample, ...]]:
    """Consecutive samples; each group is closed where the tar comes nearest to `size` bytes.

    So it misses the size by half a sample at most: 10 % where samples are below 20 % of it. The last takes the rest.
    """
    groups: list[list[PlannedSample]] = []
    filled = 0
    for sample in samples:
        wider = filled + sample.bytes
        if not groups or abs(shard_bytes(wider) - size) > abs(shard_bytes(filled) - size):
            groups.append([])
            wider = sample.bytes
        groups[-1].append(sample)
        filled = wider
    return [tuple(group) for group in groups]


def _json(path: Path) -> Any:  # noqa: ANN401 (what a file of ours holds)
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
