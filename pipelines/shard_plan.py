"""Which clip goes into which shard, and the writing of one shard.

The plan is made once all clips are decided and never changed afterwards: it names the same shards whatever the number
of workers and however often the run was killed. Clips found later get new shards behind it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynamictrl.errors import DatasetError
from dynamictrl.shards import LATENTS, MEMBERS, SHARD_NAME, Sample, write_json, write_shard
from pipelines.clip import Clip

MEBIBYTE = 2**20


@dataclass(frozen=True)
class ShardPlan:
    """The shards of one data set folder: planned in `.work/plan.json`, committed in `.work/shards/NAME.json`."""

    dataset: Path

    @property
    def work(self) -> Path:
        return self.dataset / ".work"

    def load(self) -> dict[str, list[str]]:
        """Keys by shard name, in order."""
        try:
            return json.loads((self.work / "plan.json").read_text())["shards"]
        except FileNotFoundError:
            return {}

    def extend(self, clips: Sequence[Clip], size: float) -> dict[str, list[str]]:
        """Plans shards of `size` MiB for the clips that have none, behind those planned before."""
        shards = self.load()
        planned = {key for keys in shards.values() for key in keys}
        new = sorted((c for c in clips if c.key not in planned), key=lambda c: c.key)
        if new:
            groups = _grouped(new, size * MEBIBYTE)
            shards |= {SHARD_NAME.format(len(shards) + i): [c.key for c in group] for i, group in enumerate(groups)}
            write_json(self.work / "plan.json", {"shards": shards})
        return shards

    def record(self, shard: str) -> dict[str, Any] | None:
        """A committed shard's record (bytes, sha256, offset of each key); None where it is still to be written."""
        try:
            record = json.loads((self.work / "shards" / f"{shard}.json").read_text())
            whole = (self.dataset / "shards" / shard).stat().st_size == record["bytes"]
        except FileNotFoundError:
            return None
        return record if whole else None

    def records(self) -> dict[str, dict[str, Any]]:
        """The records of all committed shards, by name, in order."""
        found = {shard: self.record(shard) for shard in self.load()}
        return {shard: record for shard, record in found.items() if record is not None}

    def committed_keys(self) -> set[str]:
        return {key for record in self.records().values() for key in record["offsets"]}

    def commit(self, shard: str) -> None:
        """Writes one planned shard; then its record; then removes its clips' work files."""
        keys = self.load()[shard]
        path = self.dataset / "shards" / shard
        offsets = write_shard(path, (self._sample(key) for key in keys))
        with path.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        record = {"name": shard, "bytes": path.stat().st_size, "sha256": sha256, "offsets": offsets}
        (self.work / "shards").mkdir(exist_ok=True)
        write_json(self.work / "shards" / f"{shard}.json", record)
        for key in keys:
            shutil.rmtree(self.work / "clips" / key, ignore_errors=True)

    def _sample(self, key: str) -> Sample:
        folder = self.work / "clips" / key
        members = {e: folder / f"clip.{e}" for e in (*MEMBERS, LATENTS)}
        found = {extension: path.read_bytes() for extension, path in members.items() if path.is_file()}
        if not set(MEMBERS) <= set(found):
            raise DatasetError(
                f"the work files of clip {key} are gone and its source is not among the videos named; name it again, "
                f"or curate into another folder",
                code="work_missing",
            )
        return Sample(key, found)


def _grouped(clips: Iterable[Clip], limit: float) -> list[list[Clip]]:
    """Consecutive clips; a group is closed before it would pass `limit` bytes."""
    groups: list[list[Clip]] = []
    filled = 0
    for clip in clips:
        weight = _weight(clip)
        if not groups or filled + weight > limit:
            groups.append([])
            filled = 0
        groups[-1].append(clip)
        filled += weight
    return groups


def _weight(clip: Clip) -> int:
    """Bytes that a clip takes in a tar: a header of 512 and the content padded to 512, per member."""
    sizes = [clip.file(extension).stat().st_size for extension in clip.files]
    return sum(512 + -(-size // 512) * 512 for size in sizes)
