"""Every clip once an epoch, the same samples whatever the workers, equal work side by side: over random data sets."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from training.samples.arrangement import Arrangement, micro_batches, timesteps


def random_arrangements(cases: int, *, least_clips: int = 1) -> list[Arrangement]:
    """Of one to five buckets, batches of 4 to 32, rows that divide them, and at least a row of clips in each bucket."""
    generator = np.random.default_rng(11)
    made = []
    for _ in range(cases):
        batch = int(generator.choice([4, 8, 12, 16, 32]))
        row = int(generator.choice([d for d in range(4, batch + 1, 4) if batch % d == 0]))
        buckets = int(generator.integers(1, 6))
        counts = generator.integers(max(row, least_clips), 4 * batch + row, buckets)
        costs = generator.permutation(buckets).astype(float) + 1
        made.append(Arrangement(int(generator.integers(1000)), tuple(counts.tolist()), tuple(costs), row, batch))
    return made


def test_a_row_is_of_one_bucket():
    for arrangement in random_arrangements(30):
        places = [arrangement.place(position) for position in range(20 * arrangement.batch_size)]
        rows = [places[first : first + arrangement.row] for first in range(0, len(places), arrangement.row)]
        assert all(len({place.bucket for place in row}) == 1 for row in rows)


def test_an_epoch_holds_every_clip_but_for_less_than_a_row_a_bucket_which_the_next_one_begins_with():
    for arrangement in random_arrangements(30):
        epochs: dict[int, Counter[tuple[int, int]]] = {}
        for position in range(6 * sum(arrangement.counts)):
            place = arrangement.place(position)
            epochs.setdefault(place.epoch, Counter())[place.bucket, place.clip] += 1
        for epoch in range(4):
            so_far = sum((epochs[e] for e in range(epoch + 1)), Counter())
            for bucket, count in enumerate(arrangement.counts):
                short = [(epoch + 1) - so_far[bucket, clip] for clip in range(count)]
                assert min(short) >= 0
                assert max(short) <= 1
                assert sum(short) < max(arrangement.row, 1)
                assert len(arrangement.counts) > 1 or sum(short) == 0


@pytest.mark.parametrize("micro", [1, 2])
def test_the_samples_of_a_step_are_the_same_for_1_2_and_4_workers_and_side_by_side_they_cost_the_same(micro: int):
    for arrangement in random_arrangements(20):
        for step in range(6):
            batch, sets = arrangement.batch_size, []
            for workers in (w for w in (1, 2, 4) if batch % (w * micro) == 0):
                shares = [micro_batches(step, batch, micro, rank, workers) for rank in range(workers)]
                taken = [position for share in shares for positions in share for position in positions]
                sets.append(sorted(taken))
                for turn in zip(*shares, strict=True):
                    buckets = {arrangement.place(position).bucket for positions in turn for position in positions}
                    assert len(buckets) == 1 or len(arrangement.counts) == 1 or workers * micro > arrangement.row
            assert all(taken == list(range(step * batch, (step + 1) * batch)) for taken in sets)


def test_rows_smaller_than_a_turn_have_neighbours_of_the_nearest_cost():
    arrangement = Arrangement(3, (40, 30, 20), (1.0, 9.0, 4.0), row=4, batch_size=16)

    for step in range(20):
        costs = [arrangement.costs[arrangement.place(16 * step + place).bucket] for place in range(16)]
        assert costs == sorted(costs, reverse=True)
    assert len({arrangement.place(position).bucket for position in range(16)}) > 1


def test_a_place_depends_on_seed_and_position_alone_however_it_is_asked_for():
    for arrangement in random_arrangements(5):
        forwards = [arrangement.place(position) for position in range(200)]
        again = Arrangement(
            arrangement.seed, arrangement.counts, arrangement.costs, arrangement.row, arrangement.batch_size
        )
        assert [again.place(position) for position in reversed(range(200))] == forwards[::-1]
    one, other = (Arrangement(seed, (50, 50), (1.0, 2.0), 8, 8) for seed in (1, 2))
    assert [one.place(p) for p in range(96)] != [other.place(p) for p in range(96)]


def test_empty_buckets_are_passed_by():
    with_gap = Arrangement(5, (0, 7), (1.0, 2.0), 4, 4)

    assert sorted(with_gap.place(position).clip for position in range(7)) == list(range(7))


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_share_a_step_without_overlap(workers: int):
    shares = [micro_batches(5, 16, 2, rank, workers) for rank in range(workers)]

    assert sorted(p for share in shares for positions in share for p in positions) == list(range(80, 96))
    assert all(len(positions) == 2 for share in shares for positions in share)


def test_timesteps_over_mixed_buckets_are_stratified_over_the_whole_step():
    times = timesteps(1, 7, 16, True, 1600)

    assert sorted(time // 100 for time in times) == list(range(16))
