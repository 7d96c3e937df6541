"""How work is shared out: bundles by their seconds, workers by what a cluster has."""

import random
from pathlib import Path

import pytest

from dynamictrl.errors import ConfigError
from pipelines.clip import Clip
from pipelines.cluster import bundles
from pipelines.cluster.bundles import bundled, merged, seconds
from pipelines.cluster.lanes import Cluster, Lanes, Need, shared


def clips(*frames: int) -> list[Clip]:
    return [Clip(key=f"clip-{i:05d}", frames=n, width=1000, height=1000) for i, n in enumerate(frames)]


def work(bundle: list[Clip]) -> float:
    return sum(seconds(unit) for unit in bundle)


def test_every_unit_is_in_one_bundle_whatever_order_they_come_in():
    units = clips(*(random.Random(1).choices(range(20, 400), k=300)))
    found = bundled(units, lanes=4)
    assert sorted(unit.key for bundle in found for unit in bundle) == [unit.key for unit in units]
    shuffled = random.Random(2).sample(units, len(units))
    assert bundled(shuffled, lanes=4) == found


def test_a_task_carries_seconds_of_work_and_not_more_than_a_person_waits_for():
    sizes = [work(bundle) for bundle in bundled(clips(*[37] * 20_000), lanes=4)]
    assert all(bundles.LEAST_SECONDS * 0.8 <= size <= bundles.MOST_SECONDS * 1.2 for size in sizes[:-1])
    assert max(sizes) > 5 * bundles.LEAST_SECONDS


def test_little_work_is_still_shared_by_all_workers():
    assert len(bundled(clips(20, 20, 20, 20), lanes=2)) >= 2
    assert [len(b) for b in bundled(clips(37, 37), lanes=8)] == [1, 1]


def test_units_ten_times_as_long_go_first_and_alone():
    found = bundled(clips(*[100] * 60, *[3000] * 3), lanes=2)
    assert [len(bundle) for bundle in found[:3]] == [1, 1, 1]
    assert {bundle[0].frames for bundle in found[:3]} == {3000}
    # What is started last is short, so no worker is left with a long one at the end.
    assert work(found[-1]) < 3


def test_workers_that_take_bundles_in_order_end_together():
    units = clips(*(random.Random(3).choices([30, 60, 90, 900], [5, 5, 5, 1], k=400)))
    ends = [0.0] * 4
    for bundle in bundled(units, lanes=4):
        ends[ends.index(min(ends))] += work(bundle)
    assert max(ends) < 1.05 * sum(map(seconds, units)) / 4


def test_a_source_is_weighed_by_its_bytes(tmp_path: Path):
    (tmp_path / "a.mp4").write_bytes(b"x" * 2**20)
    local = Clip(source=str(tmp_path / "a.mp4"), fingerprint="a")
    assert seconds(local) == bundles.SECONDS_PER_SOURCE + bundles.SECONDS_PER_MIB
    assert seconds(Clip(source="s3://bucket/a.mp4")) > seconds(local)
    assert seconds(Clip(source=str(tmp_path / "gone.mp4"))) > 0


def test_shards_are_committed_in_a_few_runs_per_worker():
    names = [f"{i:03d}" for i in range(100)]
    runs = list(bundles.grouped(names, lanes=2))
    assert [name for run in runs for name in run] == names
    assert max(map(len, runs)) == 12
    assert list(bundles.grouped(["a", "b"], lanes=8)) == [["a"], ["b"]]


def test_processors_alone_give_each_step_all_of_them():
    assert shared([Need("sources")], Cluster(cpus=8), most=100) == [Lanes(8, 1.0)]
    assert shared([Need("sources", cpus=2)], Cluster(cpus=8), most=100) == [Lanes(4, 2.0)]
    assert shared([Need("sources")], Cluster(cpus=8), most=3) == [Lanes(3, 1.0)]


def test_gpus_are_filled_by_what_fits_on_them_and_the_processors_left_work():
    needs = [Need("pose", gpus=0.25), Need("masks", gpus=0.5), Need("caption", gpus=1.0), Need("members")]
    lanes = shared(needs, Cluster(cpus=32, gpus=8), most=1000)
    pose, masks, caption, members = (lane.workers for lane in lanes)
    assert 0.25 * pose + 0.5 * masks + caption <= 8
    assert min(pose, masks, caption) >= 4
    assert members == 32 - pose - masks - caption


def test_shares_that_add_up_and_fit_on_no_gpu_together_are_refused():
    with pytest.raises(ConfigError, match="need 1.8 GPUs together and the cluster has 2"):
        shared([Need(name, gpus=0.6) for name in "abc"], Cluster(cpus=8, gpus=2), most=10)
    with pytest.raises(ConfigError, match="the cluster has 0"):
        shared([Need("pose", gpus=1)], Cluster(cpus=8), most=10)


def test_a_worker_on_two_gpus_takes_two_whole_ones():
    lanes = shared([Need("caption", gpus=2), Need("pose", gpus=0.5)], Cluster(cpus=64, gpus=4), most=10)
    assert [lane.workers for lane in lanes] == [1, 4]


def test_fewer_processors_than_steps_are_shared_evenly():
    lanes = shared([Need("pose", gpus=0.2), Need("masks", gpus=0.2), Need("c"), Need("d")], Cluster(2, 1), most=9)
    assert [lane.cpus for lane in lanes] == [0.5] * 4
    assert all(lane.workers >= 1 for lane in lanes)
    assert sum(lane.cpus * lane.workers for lane in lanes[:2]) + 0.5 <= 2


def test_memory_limits_the_number_of_workers_and_too_little_of_it_is_refused():
    assert shared([Need("sources", memory_gib=4)], Cluster(16, memory_gib=10), most=99)[0].workers == 2
    lanes = shared([Need("pose", gpus=0.1, memory_gib=8)], Cluster(16, gpus=1, memory_gib=20), most=99)
    assert lanes[0].workers == 2
    with pytest.raises(ConfigError, match=r"needs 12 GiB of memory \(pose 8, masks 4\) and the cluster has 10"):
        shared([Need("pose", gpus=1, memory_gib=8), Need("masks", memory_gib=4)], Cluster(8, 1, 10), most=9)


def test_a_gpu_gets_bundles_that_are_worth_its_start_and_none_is_left_idle():
    clips = [Clip(key=f"{i:04d}", frames=10, width=64, height=64) for i in range(1000)]
    single = [[clip] for clip in clips]
    large = merged(single, 2)
    assert [clip for bundle in large for clip in bundle] == clips
    assert {len(bundle) for bundle in large[:-1]} == {128}
    assert len(merged(single[:6], 2)) == 6
    assert merged([], 2) == []
