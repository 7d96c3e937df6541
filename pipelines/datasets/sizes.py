"""How large a data set is, and what that size is made of."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynamictrl.samples.shards import iter_members
from pipelines.datasets.dataset_view import DatasetView
from pipelines.datasets.text_table import amount, length, table

Row = Mapping[str, Any]
SAMPLED = 100
"""Clips whose members are measured in a store, where each asks for a request."""
WITHIN = 0.1
"""How far a shard may be from its target."""
SIDES = ((256, "below 256"), (480, "256 to 479"), (720, "480 to 719"), (1080, "720 to 1079"))
"""Pixels of the shorter side."""
ASPECTS = ((0.7, "portrait"), (0.95, "upright"), (1.06, "square"), (1.5, "wide"))
"""Width by height."""
LENGTHS = ((2.0, "below 2 s"), (4.0, "2 to 4 s"), (6.0, "4 to 6 s"), (10.0, "6 to 10 s"))


@dataclass(frozen=True)
class Share:
    """One part of a data set."""

    name: str
    clips: int
    seconds: float
    bytes: int
    """In shards, headers and padding included; -1 where an older release did not record it."""


def by(rows: Iterable[Row], name: Callable[[Row], str]) -> list[Share]:
    """Kept rows in groups, the largest first."""
    clips: Counter[str] = Counter()
    seconds: dict[str, float] = {}
    sizes: dict[str, int] = {}
    for row in rows:
        group = name(row)
        clips[group] += 1
        seconds[group] = seconds.get(group, 0.0) + row["end"] - row["start"]
        sizes[group] = sizes.get(group, 0) + max(0, row.get("bytes") or 0)
    order = sorted(clips, key=lambda group: (-clips[group], group))
    return [Share(group, clips[group], seconds[group], sizes[group] or -1) for group in order]


def by_member(view: DatasetView, kept: Sequence[Row], sample: int) -> tuple[list[tuple[str, int]], int]:
    """(extension, bytes with headers and padding) of the clips measured, and how many those are; 0 = all."""
    measured = kept if not sample or sample >= len(kept) else kept[:: max(1, len(kept) // sample)]
    sizes: Counter[str] = Counter()
    by_shard: dict[str, list[Row]] = {}
    for row in measured:
        by_shard.setdefault(row["shard"], []).append(row)
    for shard, rows in sorted(by_shard.items()):
        with view.store.open(f"shards/{shard}") as stream:
            for row in rows:
                for member in iter_members(stream, row["offset"]):
                    if member.key != row["key"]:
                        break
                    sizes[member.extension] += member.end - member.start
    return sizes.most_common(), len(measured)


def text(view: DatasetView, sample: int | None = None) -> Iterator[str]:
    """The sizes as people read them. Members are measured of `sample` clips; by default of all on a disk."""
    description = view.description
    kept = [row for row in view.rows if not row["reason"]]
    total = sum(shard["bytes"] for shard in description["shards"])
    counts, seconds = description["counts"], description["seconds"]
    yield (
        f"{view.root}: {counts['kept']:,} clips, {length(seconds['kept'])} of video, {amount(total)} in "
        f"{len(description['shards']):,} shards; {sum(counts['rejected'].values()):,} clips "
        f"({length(seconds['rejected'])}) refused"
    )
    if kept:
        yield f"a clip has {length(seconds['kept'] / len(kept))} and {amount(total / len(kept))} on average"
        yield from _members(view, kept, sample)
        groups: tuple[tuple[str, Callable[[Row], str]], ...] = (
            ("shorter side", _side),
            ("aspect", _aspect),
            ("length", _length),
            ("licence", lambda row: row["licence"] or "not stated"),
            ("consent", lambda row: row["consent"] or "not stated"),
        )
        for title, name in groups:
            yield from _shares(title, by(kept, name))
    yield from _shards(description)
    yield from _work(view)


def _members(view: DatasetView, kept: Sequence[Row], sample: int | None) -> Iterator[str]:
    chosen = sample if sample is not None else (SAMPLED if view.store.remote else 0)
    sizes, measured = by_member(view, kept, chosen)
    whole = sum(size for _, size in sizes) or 1
    rows = [[name, amount(size), f"{100 * size / whole:.1f} %", amount(size / measured)] for name, size in sizes]
    yield f"by member, headers and padding included, of {'all' if measured == len(kept) else f'{measured:,}'} clips"
    yield from table(("member", "bytes", "share", "a clip"), rows)


def _shares(title: str, found: Sequence[Share]) -> Iterator[str]:
    yield f"by {title}"
    rows = [[share.name, f"{share.clips:,}", length(share.seconds)] for share in found]
    if all(share.bytes >= 0 for share in found):
        rows = [[*row, amount(share.bytes)] for row, share in zip(rows, found, strict=True)]
    yield from table((title, "clips", "video", "bytes")[: len(rows[0])], rows)


def _shards(description: Mapping[str, Any]) -> Iterator[str]:
    """How near the shards are to their target; of each bucket the last may be smaller."""
    target = _target(description)
    sizes = [shard["bytes"] for shard in description["shards"]]
    if not sizes or not target:
        return
    last: dict[str, int] = {shard.get("bucket", ""): i for i, shard in enumerate(description["shards"])}
    whole = [size for i, size in enumerate(sizes) if i not in last.values()]
    near = sum(abs(size - target) <= WITHIN * target for size in whole)
    yield (
        f"shards: target {amount(target)}, smallest {amount(min(sizes))}, largest {amount(max(sizes))}; "
        f"{near:,} of {len(whole):,} within {WITHIN:.0%}, the last of {'each bucket' if len(last) > 1 else 'all'} aside"
    )


def _target(description: Mapping[str, Any]) -> float:
    found = [s["size"] for s in description["settings"].values() if s.get("stage") == "write_shards"]
    return found[0] * 2**20 if found else 0.0


def _work(view: DatasetView) -> Iterator[str]:
    if view.work is None:
        yield "no work folder is at hand"
        return
    sizes: Counter[str] = Counter()
    for name, size in _files(view.work):
        sizes[name] += size
    yield f"work folder {view.work}: {amount(sum(sizes.values()))}"
    yield from table(("below it", "bytes"), [[name, amount(size)] for name, size in sizes.most_common()])


def _files(folder: Path) -> Iterator[tuple[str, int]]:
    """(first part of the name, bytes) of every file below a folder."""
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            yield from ((entry.name, size) for _, size in _files(Path(entry.path)))
        else:
            yield entry.name, entry.stat(follow_symlinks=False).st_size


def _side(row: Row) -> str:
    return next(
        (f"{words} px" for limit, words in SIDES if min(row["width"], row["height"]) < limit), "1080 px and more"
    )


def _aspect(row: Row) -> str:
    ratio = row["width"] / max(1, row["height"])
    return next((words for limit, words in ASPECTS if ratio < limit), "landscape")


def _length(row: Row) -> str:
    return next((words for limit, words in LENGTHS if row["end"] - row["start"] < limit), "10 s and more")
