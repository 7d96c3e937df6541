"""Puts the samples of a data set into other shards, without touching the samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dynamictrl.errors import ConfigError, DatasetError
from pipelines.datasets.derived_files import derived
from pipelines.files import run_folder
from pipelines.publishing import dataset_files
from pipelines.publishing.publication import Arrangement, Publication
from pipelines.publishing.publication_state import State, read_state
from pipelines.publishing.shard_plan import MEBIBYTE, grouped
from pipelines.watching.progress import Progress

By = Literal["none", "size", "aspect"]

ASPECTS = ("9:16", "2:3", "3:4", "1:1", "4:3", "3:2", "16:9", "21:9")


@dataclass(frozen=True)
class Resharding:
    """What it came to."""

    shards: int
    """That the data set has now."""
    written: int
    """Of them, written anew."""


def reshard(out: str, size: float, by: By = "none", *, work: str | Path | None = None) -> Resharding:
    """Rewrites a data set to shards of `size` MiB, one kind of clip per shard where `by` says so.

    Samples are copied as they lie; within a kind they are in order of key. Raises DatasetError where an interrupted run
    has shards of its own to publish.
    """
    if size <= 0:
        raise ConfigError(f"a shard's size is {size} MiB; it must be positive", param="size")
    with run_folder.claimed(out, work) as folder:
        publication = Publication(out, folder)
        state = read_state(publication.store, publication.plans)
        state.check_whole(out)
        if state.pending and not state.plan.purpose.startswith("reshard"):
            raise DatasetError(
                f"a run into {out} was interrupted ({state.plan.purpose}); repeat its command, which completes it",
                code="unfinished",
            )
        wanted = _arranged(publication, state, size, by)
        missing = publication.arrange(f"reshard {size:g} {by}", wanted)
        with Progress("shards", len(missing), "shards") as progress:
            for shard in missing:
                publication.commit(shard)
                progress.advance(1)
        lines = dataset_files.parse_quarantine(publication.store.read("quarantine.jsonl"))
        publication.publish(state.published.description, state.published.rows, lines, derived(out, folder))
        return Resharding(len(wanted), len(missing))


def _arranged(publication: Publication, state: State, size: float, by: By) -> Arrangement:
    kinds: dict[str, list[str]] = {}
    for row in state.published.rows:
        if not row["reason"]:
            kinds.setdefault(bucket_of(row, by), []).append(row["key"])
    samples = publication.samples(state)
    return [
        (bucket, [sample.key for sample in group])
        for bucket, keys in sorted(kinds.items())
        for group in grouped((samples[key] for key in sorted(keys)), size * MEBIBYTE)
    ]


def bucket_of(row: Mapping[str, Any], by: By) -> str:
    """What the clips of a shard have in common: their frame size, or the usual aspect ratio nearest to theirs."""
    if by == "none":
        return ""
    if by == "size":
        return f"{row['width']}x{row['height']}"
    wide = math.log(row["width"] / row["height"])
    return min(ASPECTS, key=lambda aspect: abs(wide - _log_ratio(aspect)))


def _log_ratio(aspect: str) -> float:
    width, _, height = aspect.partition(":")
    return math.log(int(width) / int(height))
