"""What a recipe makes of a data set, before anything is started: its buckets, clips, hours, and what is left out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from dynamictrl.samples.buckets import Bucket
from training.config import Recipe
from training.planning.shapes import base_config
from training.samples.buckets import block_flop, check_sizes, video_tokens
from training.samples.data import Index, build_index

HEADINGS = ("bucket", "clips", "hours", "tokens", "cost")


def data_table(recipe: Recipe, data: Path) -> str:
    """The table for people; raises what a run on this data would raise for it."""
    config, clips, batch = base_config(recipe.model.base), recipe.clips, recipe.optimization.batch_size
    check_sizes(recipe, config)
    index = build_index(data, clips, row=clips.samples_in_a_row(batch))
    counts = Counter(entry.bucket for entry in index.entries)
    hours = _hours(index)
    dearest = max(block_flop(bucket, config) for bucket in clips.sizes)
    rows: list[tuple[str, ...]] = [HEADINGS]
    for bucket in sorted(clips.sizes):
        tokens = video_tokens(bucket, config) + config["max_text_seq_length"]
        cost = f"{block_flop(bucket, config) / dearest:.2f}"
        rows.append((str(bucket), f"{counts[bucket]:,}", f"{hours[bucket]:.2f}", f"{tokens:,}", cost))
    total = len(index.entries)
    lines = ["  ".join((row[0].ljust(16), *(cell.rjust(10) for cell in row[1:]))) for row in rows]
    lines += [
        "",
        f"{total:,} clips, {sum(hours.values()):.2f} hours; an epoch is {total / batch:,.1f} steps of {batch}",
        *(f"left out: {count:,} clips {reason}" for reason, count in sorted(index.skipped.items())),
        f"encoded beforehand: {_encoded(index):,} of them, with whatever weights and sizes",
    ]
    return "\n".join(lines)


def _hours(index: Index) -> Counter[Bucket]:
    seconds = {(shard, s.key): s.frames / s.fps for shard, found in index.scanned.items() for s in found if s.fps}
    hours: Counter[Bucket] = Counter()
    for entry in index.entries:
        hours[entry.bucket] += seconds[entry.shard, entry.key] / 3600  # pyright: ignore[reportArgumentType]
    return hours


def _encoded(index: Index) -> int:
    encoded = {(shard, s.key) for shard, found in index.scanned.items() for s in found if s.latents_bytes}
    return sum((entry.shard, entry.key) in encoded for entry in index.entries)
