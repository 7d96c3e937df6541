"""Which clip stands at which global sample index: a function of the seed, and of nothing that a restart may change.

One bucket: each epoch is a permutation of the clips, and epochs follow each other without a gap.

Several buckets: each has an endless stream of its own, its permutations one after another, cut into rows of `row`
samples. Epoch e holds the rows of every bucket that end within its first e + 1 permutations, in a shuffled order:
floor((e + 1) n / row) - floor(e n / row) of them for n clips. So each clip is seen once in each of its bucket's
permutations, and what is left over at the end of one (fewer than `row` clips a bucket) comes with the next epoch.
A step's rows are put in order of cost, so workers that pass through a step side by side do equal work: rows that are a
multiple of workers x micro-batch are one bucket's at each pass, others have neighbours of the nearest cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

CLIPS, DRAWS, TIMESTEPS, SUBSTITUTES, ROWS = range(5)
"""What a random stream is for."""


@dataclass(frozen=True)
class Place:
    """Where a global sample index points."""

    bucket: int
    clip: int
    """Number of the clip within its bucket."""
    epoch: int


@dataclass(frozen=True)
class Arrangement:
    """The order of samples over buckets."""

    seed: int
    counts: tuple[int, ...]
    """Clips of each bucket; a bucket may be empty."""
    costs: tuple[float, ...]
    """Of one sample of each bucket, in any unit."""
    row: int = 1
    """Samples in a row of one bucket; divides the batch."""
    batch_size: int = 1

    def place(self, position: int) -> Place:
        """The clip at a global sample index."""
        filled = [bucket for bucket, count in enumerate(self.counts) if count]
        if len(filled) == 1:
            epoch, place = divmod(position, self.counts[filled[0]])
            return Place(filled[0], self._clip(filled[0], position), epoch)
        step, within = divmod(position, self.batch_size)
        number, sample = divmod(within, self.row)
        bucket, row, epoch = _step_rows(self, step)[number]
        return Place(bucket, self._clip(bucket, row * self.row + sample), epoch)

    def rows_before(self, epoch: int, bucket: int | None = None) -> int:
        """Rows that all epochs before this one hold, of one bucket or of all."""
        counts = self.counts if bucket is None else (self.counts[bucket],)
        return sum(epoch * count // self.row for count in counts)

    def epoch_of_row(self, number: int) -> int:
        """The epoch that the row `number` of all rows is in."""
        epoch = number * self.row // sum(self.counts)  # never too late: rows are rounded down
        while self.rows_before(epoch + 1) <= number:
            epoch += 1
        return epoch

    def _clip(self, bucket: int, number: int) -> int:
        """The clip at a place of a bucket's endless stream."""
        turn, place = divmod(number, self.counts[bucket])
        return int(_permutation(self.seed, bucket, turn, self.counts[bucket])[place])


@lru_cache(maxsize=64)
def _step_rows(arrangement: Arrangement, step: int) -> Sequence[tuple[int, int, int]]:
    """Bucket, row within the bucket, and epoch of each row of a step, the dearest first."""
    per_step = arrangement.batch_size // arrangement.row
    rows = []
    for number in range(step * per_step, (step + 1) * per_step):
        epoch = arrangement.epoch_of_row(number)
        bucket, row = _epoch_rows(arrangement, epoch)[number - arrangement.rows_before(epoch)]
        rows.append((int(bucket), int(row), epoch))
    return sorted(rows, key=lambda row: (-arrangement.costs[row[0]], row[0]))


@lru_cache(maxsize=4)
def _epoch_rows(arrangement: Arrangement, epoch: int) -> NDArray[np.int64]:
    """[rows, 2]: bucket and number within it of each row of an epoch, shuffled."""
    rows = [
        (bucket, row)
        for bucket in range(len(arrangement.counts))
        for row in range(arrangement.rows_before(epoch, bucket), arrangement.rows_before(epoch + 1, bucket))
    ]
    return keyed(arrangement.seed, ROWS, epoch).permutation(np.array(rows, np.int64).reshape(-1, 2))


@lru_cache(maxsize=64)
def _permutation(seed: int, bucket: int, turn: int, count: int) -> NDArray[np.int64]:
    return keyed(seed, CLIPS, turn, bucket).permutation(count)


def timesteps(seed: int, step: int, batch_size: int, stratified: bool, num_timesteps: int) -> NDArray[np.int64]:
    """The timesteps of one step's whole batch, uniform over the schedule; stratified ones fall in equal parts of it."""
    drawn = keyed(seed, TIMESTEPS, step)
    uniform = drawn.random(batch_size)
    if stratified:
        uniform = (drawn.permutation(batch_size) + uniform) / batch_size
    return np.minimum((uniform * num_timesteps).astype(np.int64), num_timesteps - 1)


def micro_batches(step: int, batch_size: int, micro_batch_size: int, rank: int, workers: int) -> list[range]:
    """Global sample indices of the micro-batches that one worker takes in one optimizer step, in order.

    All workers' micro-batches of one turn lie side by side, so they cost the same.
    """
    turn = workers * micro_batch_size
    firsts = range(step * batch_size + rank * micro_batch_size, (step + 1) * batch_size, turn)
    return [range(first, first + micro_batch_size) for first in firsts]


def keyed(seed: int, purpose: int, number: int, part: int = 0) -> np.random.Generator:
    """A random stream of its own for every purpose and number."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, part, purpose, number]))
