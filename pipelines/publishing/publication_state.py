"""Where a publication stands: what is published, what is planned behind it, and which of that is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynamictrl.errors import DatasetError
from pipelines.clip import SHA_IN_KEY
from pipelines.files.storage import Store
from pipelines.publishing.published import Published, number_of, read_published
from pipelines.publishing.shard_commit import places_of
from pipelines.publishing.shard_plan import Place, Plan, PlanFolder, PlannedSample, PlannedShard


@dataclass(frozen=True)
class State:
    """One look at a data set and at the plan in its work folder."""

    published: Published
    plan: Plan
    pending: Mapping[str, PlannedShard]
    """Planned shards that are not published, in order."""
    records: Mapping[str, Mapping[str, Any]]
    """Of those of them that are committed."""
    files: frozenset[str]
    """Names of all files below `shards/`."""

    @property
    def next_shard(self) -> int:
        """The first number that was never used."""
        planned = [number_of(name) + 1 for name in self.plan.shards]
        return max([self.published.next_shard, self.plan.next, *planned])

    @property
    def places(self) -> dict[str, Place]:
        """Where the samples lie that are in shards, published or not."""
        written = [places_of(record) for record in self.records.values()]
        return {**self.published.places, **{key: place for places in written for key, place in places.items()}}

    @property
    def final(self) -> dict[str, dict[str, Any]]:
        """The shards that the next index names, as far as they are written, in order."""
        keys = self.published.keys()
        retired = {*self.plan.retired, *(name for name in keys if not keys[name])}
        stays = {name: dict(shard) for name, shard in self.published.shards.items() if name not in retired}
        written = {name: dict(record) for name, record in self.records.items() if name not in self.plan.waiting}
        return dict(sorted({**stays, **written}.items()))

    @property
    def final_places(self) -> dict[str, Place]:
        """Where the samples lie under the next index."""
        final = self.final
        places = {key: place for key, place in self.published.places.items() if place.shard in final}
        for name in final.keys() & self.records.keys():
            places.update(places_of(self.records[name]))
        return places

    def check_whole(self, out: str) -> None:
        """Raises DatasetError where there is no data set, or not all of it."""
        if not self.published.description:
            raise DatasetError(
                f"{out} is no data set: it has no dataset.json. Make one with `python -m pipelines RECIPE --videos SRC "
                f"--out {out}`.",
                code="dataset_missing",
            )
        lost = {row["shard"] for row in self.published.rows if not row["reason"]} - self.published.shards.keys()
        if lost:
            raise DatasetError(
                f"{min(lost)} of {out} is lost or cut ({len(lost)} shards in all); repeat the command that made the "
                f"data set, which writes its clips anew",
                code="shard_missing",
            )

    def staying(self, digests: Mapping[str, str], work: Path) -> dict[str, tuple[str, ...]]:
        """Shards whose samples are all wanted as they are, with their keys: planned ones before published ones."""
        stay: dict[str, tuple[str, ...]] = {}
        held: set[str] = set()
        for name, shard in self.pending.items():
            ready = name in self.records or all(self._ready(sample, work) for sample in shard.samples)
            if ready and all(digests.get(sample.key) == sample.digest for sample in shard.samples):
                stay[name] = tuple(sample.key for sample in shard.samples)
                held.update(stay[name])
        places = self.published.places
        for name, keys in self.published.keys().items():
            if keys and all(digests.get(key) == places[key].digest and key not in held for key in keys):
                stay[name] = keys
        return stay

    def waiting(self, removed: frozenset[str]) -> tuple[str, ...]:
        """What an interrupted run has planned and may still publish: no shard with a clip of these sources."""
        heads = {sha256[:SHA_IN_KEY] for sha256 in removed}
        names = self.pending if self.plan.purpose == "run" else self.plan.waiting
        shards = [self.pending[name] for name in names if name in self.pending]
        return tuple(s.name for s in shards if not any(sample.key[:SHA_IN_KEY] in heads for sample in s.samples))

    def _ready(self, sample: PlannedSample, work: Path) -> bool:
        """Whether the bytes of a sample still to be written are where the plan says."""
        if sample.shard:
            return f"shards/{sample.shard}" in self.files
        return all((work / file).is_file() for file in sample.files.values())


def read_state(store: Store, plans: PlanFolder) -> State:
    """Looks at the store and at the work folder."""
    sizes, plan = dict(store.list("shards")), plans.load()
    known = {name: plans.record(name) for name in plan.shards}
    records = {n: record for n, record in known.items() if record and sizes.get(f"shards/{n}") == record["bytes"]}
    published = read_published(store, sizes, records)
    pending = {name: plans.shard(name) for name in plan.shards if name not in published.shards}
    written = {name: record for name, record in records.items() if name in pending}
    return State(published, plan, pending, written, frozenset(sizes))
