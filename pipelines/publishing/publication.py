"""How a data set becomes visible: shards under names never used before, then an index that names them, swapped last.

What a reader sees is `dataset.json`; it names every shard with its sha256, and the sha256 of `manifest.parquet` and
`quarantine.jsonl`. Whoever changes the data set (a run, `remove`, `reshard`)

1. freezes a plan of new shards in the work folder (`shard_plan`), numbered behind all that were ever used,
2. writes each, whole or not at all, and its record after it,
3. swaps manifest, quarantine list and description, the description last,
4. deletes the shards that the description no longer names.

Killed anywhere and started again it ends with the same bytes, on a disk and in an object store alike. Between any two
steps the index names shards that are there.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynamictrl.errors import DatasetError
from dynamictrl.samples.shards import BLOCK, LATENTS, MEMBERS, SHARD_NAME, iter_members, sample_bytes
from pipelines.clip import Clip
from pipelines.files import lease
from pipelines.files.storage import Store, write_bytes
from pipelines.publishing import dataset_files, purge, tombstones
from pipelines.publishing.publication_state import State, read_state
from pipelines.publishing.published import read_description
from pipelines.publishing.shard_commit import commit_shard
from pipelines.publishing.shard_plan import MEBIBYTE, Place, Plan, PlanFolder, PlannedSample, PlannedShard, grouped

SHARD = re.compile(r"shards/train-\d{6,}\.tar")
BLURRED = "blurred.mp4"
"""The clip with faces blurred: where there is one, it is the picture that is published."""

Extras = Mapping[str, bytes] | Callable[[Mapping[str, Any]], Mapping[str, bytes]] | None
"""More files to publish, by name, or what makes them from the description."""
Arrangement = Sequence[tuple[str, Sequence[str]]]
"""Of each shard wanted: what its samples have in common ("" = nothing), and their keys in order."""


@dataclass(frozen=True)
class Outcome:
    """What a publication ended with."""

    description: dict[str, Any]
    """`dataset.json`."""
    changed: bool
    """False where it said all this before."""


@dataclass(frozen=True)
class Publication:
    """One data set, as it is published and as the run under way changes it. Pickles; workers commit shards with it."""

    out: str
    """Folder, or s3:// or gs:// prefix, of the data set."""
    work: Path
    """The run's work folder, on a disk that all workers share."""

    def __post_init__(self):
        object.__setattr__(self, "out", str(self.out))
        object.__setattr__(self, "work", Path(self.work))

    def __reduce__(self):
        # What was read of the index stays here: a worker that needs it reads it once.
        return Publication, (self.out, self.work)

    @property
    def store(self) -> Store:
        return Store(self.out)

    @property
    def plans(self) -> PlanFolder:
        return PlanFolder(self.work)

    def description(self) -> dict[str, Any] | None:
        """The content of `dataset.json`; None where nothing is published yet."""
        return read_description(self.store)

    def tombstones(self) -> frozenset[str]:
        """sha256 of the content and of the URIs of all that was taken down: what no run may bring back."""
        return tombstones.hashes(self.store)

    def is_whole(self) -> bool:
        """Whether all that the description names is there, in its size."""
        described = self.description()
        if described is None:
            return False
        sizes = dict(self.store.list())
        files = {f"shards/{shard['name']}": shard["bytes"] for shard in described["shards"]}
        files |= {name: file["bytes"] for name, file in described.get("files", {}).items()}
        return "manifest.parquet" in sizes and all(sizes.get(name) == size for name, size in files.items())

    def committed(self) -> dict[str, Place]:
        """Where each clip's sample lies, by key: published, or written by the unfinished run.

        Read when it is first asked for, and again after `plan` and `finish`.
        """
        if "_committed" not in self.__dict__:
            self.__dict__["_committed"] = self._state().places
        return self.__dict__["_committed"]

    def plan(self, clips: Sequence[Clip], size: float) -> list[str]:
        """Freezes which shards hold these clips, all that are kept; returns the names of those still to be written.

        A shard whose clips are all kept with the same digest stays as it is. The others are retired: what is kept of
        them goes, with the clips that are in no shard yet, into shards of `size` MiB in order of key. Raises
        DatasetError where a clip's files are neither in the work folder nor in a shard.
        """
        state, removed = self._state(), self.tombstones()
        wanted = {clip.key: clip for clip in clips if not tombstones.covers(removed, clip.source, clip.source_sha256)}
        digests = {key: clip.digest for key, clip in wanted.items()}
        stay = state.staying(digests, self.work)
        held = {sample for keys in stay.values() for sample in keys}
        places = state.places
        rest = [self._planned(wanted[key], digests[key], places.get(key)) for key in sorted(wanted.keys() - held)]
        new = [("", group) for group in grouped(rest, size * MEBIBYTE)]
        return self._freeze(state, "run", list(stay), new)

    def arrange(self, purpose: str, wanted: Arrangement, *, removed: frozenset[str] = frozenset()) -> list[str]:
        """Freezes another arrangement of what is published; returns the names of the shards still to be written.

        A shard that holds just one of the lists wanted stays as it is. What an unfinished run has committed waits for
        it, but for shards with clips of sources whose sha256 is `removed`.
        """
        state = self._state()
        places = state.published.places
        shards = state.published.shards
        existing = {(shards[name].get("bucket", ""), keys): name for name, keys in state.published.keys().items()}
        own = state.plan.purpose == purpose
        for name, shard in state.pending.items() if own else ():
            existing[shard.bucket, tuple(sample.key for sample in shard.samples)] = name
        stay, new = [], []
        for bucket, keys in wanted:
            name = existing.get((bucket, tuple(keys)))
            if name is None:
                new.append((bucket, tuple(self._moved(key, places[key]) for key in keys)))
            else:
                stay.append(name)
        waiting = state.waiting(removed)
        return self._freeze(state, purpose, stay, new, waiting)

    def samples(self, state: State) -> dict[str, PlannedSample]:
        """What is published, as it lies there, by key."""
        return {key: self._moved(key, place) for key, place in state.published.places.items()}

    def commit(self, shard: str) -> None:
        """Writes one planned shard, then its record; then removes its clips' work files. Again: does nothing."""
        planned = self.plans.shard(shard)
        record = self.plans.record(shard)
        if record is None or self.store.size(f"shards/{shard}") != record["bytes"]:
            self.plans.save_record(commit_shard(self.store, self.work, planned))
        for sample in planned.samples:
            shutil.rmtree(self.work / "clips" / sample.key, ignore_errors=True)

    def restore(self, clip: Clip, extension: str) -> bool:
        """Puts a file of a committed clip back where `clip.file(extension)` says; False where no shard has it.

        A clip with blurred faces has its first picture nowhere any more: then `mp4` is not restored.
        """
        place = self.committed().get(clip.key)
        member = "mp4" if extension == BLURRED else extension
        if place is None or (extension == "mp4" and BLURRED in clip.files):
            return False
        with self.store.open(f"shards/{place.shard}") as stream:
            for found in iter_members(stream, place.offset):
                if found.key != clip.key:
                    return False
                if found.extension == member:
                    stream.seek(found.start + BLOCK)
                    write_bytes(clip.file(extension), stream.read(found.size))
                    return True
        return False

    def records(self) -> dict[str, dict[str, Any]]:
        """The shards of the data set as it will be once the plan is published: those that stay, and those committed."""
        state = self._state()
        return state.final

    def finish(
        self,
        description: Mapping[str, Any],
        clips: Iterable[Clip],
        extras: Extras = None,
    ) -> Outcome:
        """Publishes: manifest, quarantine list, `extras` (by name, or made from the description), description; then
        deletes what is retired. The counts are those of the clips given; what was taken down is left out.

        Raises DatasetError where a kept clip is in no committed shard, or a shard holds what is not kept.
        """
        removed, state = self.tombstones(), self._state()
        places = state.final_places
        clips = list(clips)
        rows = dataset_files.manifest_rows((c for c in clips if not c.quarantined), places)
        lines = dataset_files.quarantine_lines(c for c in clips if c.quarantined)
        rows = [r for r in rows if not tombstones.covers(removed, r["source"], r["source_sha256"])]
        lines = [q for q in lines if not tombstones.covers(removed, q["uri"], q["sha256"])]
        _check_committed(rows, places)
        outcome = self.publish(description, rows, lines, extras)
        if removed:
            # A source taken down may have come again, under another name: what the run kept about it goes, too.
            purge.purge(self.store, self.work, removed)
        return outcome

    def publish(
        self,
        description: Mapping[str, Any],
        rows: Sequence[Mapping[str, Any]],
        quarantine: Sequence[Mapping[str, Any]],
        extras: Extras = None,
    ) -> Outcome:
        """As `finish`, for rows of a manifest: each is given the place that its key has now."""
        state = self._state()
        places, shards = state.final_places, state.final
        _check_committed(rows, places)
        rows = [row if row["reason"] else {**row, **dataset_files.placed(places[row["key"]])} for row in rows]
        stray = places.keys() - {row["key"] for row in rows if not row["reason"]}
        if stray:
            raise DatasetError(f"the shards hold {min(stray)}, which is not kept; plan anew", code="not_planned")
        files = {
            "manifest.parquet": dataset_files.manifest_bytes(rows),
            "quarantine.jsonl": dataset_files.quarantine_bytes(quarantine),
        }
        content = dataset_files.finished(
            description, rows, quarantine, shards=shards, files=files, next_shard=state.next_shard
        )
        changed = self._swap(content, files, extras)
        self._clean(state, {f"shards/{name}" for name in shards})
        self.__dict__.pop("_committed", None)
        return Outcome(content, changed)

    def _swap(self, content: dict[str, Any], files: Mapping[str, bytes], extras: Extras) -> bool:
        store = self.store
        if self.is_whole() and dataset_files.says(self.description(), content):
            return False
        lease.check(store, self.work)
        for name, file in files.items():
            store.put(name, file)
        more = extras(content) if callable(extras) else extras
        for name, file in (more or {}).items():
            store.put(name, file)
        store.put("dataset.json", dataset_files.description_bytes(content))
        return True

    def _clean(self, state: State, named: set[str]) -> None:
        """Deletes shards that the index no longer names, and the plan as far as it is published."""
        waiting = tuple(name for name in state.plan.waiting if f"shards/{name}" not in named)
        for name in sorted(state.files - named - {f"shards/{name}" for name in waiting}):
            if SHARD.fullmatch(name):
                self.store.delete(name)
        if waiting:
            self.plans.save(Plan(state.next_shard, waiting, (), (), "run"), ())
        else:
            self.plans.clear()

    def _state(self) -> State:
        return read_state(self.store, self.plans)

    def _planned(self, clip: Clip, digest: str, place: Place | None) -> PlannedSample:
        if place is not None and place.digest == digest:
            return self._moved(clip.key, place)
        files = {member: clip.file(member) for member in (*MEMBERS, LATENTS) if member in clip.files}
        if BLURRED in clip.files:
            files["mp4"] = clip.file(BLURRED)
        missing = [m for m in MEMBERS if m not in files] + [str(p.name) for p in files.values() if not p.is_file()]
        if missing:
            raise DatasetError(
                f"the work files of clip {clip.key} are gone ({', '.join(missing)}) and its source is not among the "
                f"videos named; name it again, or curate into another folder",
                code="work_missing",
            )
        size = sample_bytes(path.stat().st_size for path in files.values())
        relative = {member: str(path.relative_to(self.work)) for member, path in files.items()}
        return PlannedSample(clip.key, digest, dict(clip.lineage), size, relative)

    def _moved(self, key: str, place: Place) -> PlannedSample:
        """A sample as it lies in a shard already."""
        size = place.bytes if place.bytes > 0 else self._extent(key, place)
        return PlannedSample(key, place.digest, dict(place.lineage), size, {}, place.shard, place.offset)

    def _extent(self, key: str, place: Place) -> int:
        with self.store.open(f"shards/{place.shard}") as stream:
            ends = [member.end for member in _of(key, iter_members(stream, place.offset))]
        return max(ends, default=place.offset) - place.offset

    def _freeze(
        self,
        state: State,
        purpose: str,
        stay: Sequence[str],
        new: Sequence[tuple[str, Sequence[PlannedSample]]],
        waiting: tuple[str, ...] = (),
    ) -> list[str]:
        first = state.next_shard
        shards = [PlannedShard(SHARD_NAME.format(first + i), tuple(s), bucket) for i, (bucket, s) in enumerate(new)]
        # What a swap that was cut has half published keeps its record until the description names it.
        half = [name for name in state.published.unnamed if name in stay and name in state.plan.shards]
        pending = [name for name in state.pending if name in stay]
        retired = tuple(name for name in state.published.shards if name not in stay)
        names = (*pending, *(shard.name for shard in shards))
        plan = Plan(first + len(shards), (*half, *names, *waiting), retired, waiting, purpose)
        if plan != state.plan:
            self.plans.save(plan, shards)
        self.__dict__.pop("_committed", None)
        return [name for name in names if name not in state.records]


def _check_committed(rows: Iterable[Mapping[str, Any]], places: Mapping[str, Place]) -> None:
    for row in rows:
        if not row["reason"] and (row["key"] not in places or places[row["key"]].digest != row["digest"]):
            raise DatasetError(f"clip {row['key']} is kept and in no shard that was planned", code="not_committed")


def _of(key: str, members: Iterable[Any]) -> Iterable[Any]:
    """The first members, as long as they are of one sample."""
    for member in members:
        if member.key != key:
            return
        yield member
