"""What `verify` finds, on a data set made by a run."""

import json
import shutil
from pathlib import Path

import pytest

from dynamictrl.media.video import encode_video
from dynamictrl.samples.shards import Sample, iter_shard, open_dataset, pack_mask, write_shard
from pipelines import job
from pipelines.datasets.takedown import take_down
from pipelines.datasets.verify import verify
from pipelines.files.storage import Store
from pipelines.publishing import dataset_files
from tests.unit.pipelines.conftest import FPS, Weightless, shot


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of five clips, one short shot refused and one source quarantined."""
    import numpy as np

    from dynamictrl.media.video import write_video

    root = tmp_path_factory.mktemp("made")
    (root / "videos").mkdir()
    for name, shots in {"a.mp4": [(1, 24), (2, 36)], "b.mp4": [(3, 24), (4, 6)], "c.mp4": [(5, 30)]}.items():
        write_video(root / "videos" / name, np.concatenate([shot(*s) for s in shots]), FPS)
    (root / "videos" / "<b>.mp4").write_bytes(b"")
    pipeline = Weightless(videos=(str(root / "videos"),), out=root / "set", local=True)
    job.run("weightless", pipeline)
    return root / "set"


@pytest.fixture
def dataset(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "set"))


def test_a_whole_data_set_has_no_problems(dataset: Path):
    assert verify(dataset) == []


def test_a_lost_shard_is_named(dataset: Path):
    lost = open_dataset(dataset).shards[0]
    lost.unlink()
    assert any(f"{lost.name} is missing" in p for p in verify(dataset))


def test_one_flipped_byte_is_found(dataset: Path):
    shard = open_dataset(dataset).shards[0]
    content = bytearray(shard.read_bytes())
    content[5000] ^= 1
    shard.write_bytes(content)
    assert any("damaged" in p for p in verify(dataset))


def test_a_clip_that_is_missing_and_one_that_moved_are_found(dataset: Path):
    shard = max(open_dataset(dataset).shards, key=lambda p: len(list(iter_shard(p))))
    first, *rest = list(iter_shard(shard))
    assert rest
    write_shard(shard, rest)
    problems = verify(dataset)
    assert any(f"{first.key} is missing" in p for p in problems)
    assert any(f"{rest[0].key} begins at byte 0" in p for p in problems)


def test_a_stray_and_a_doubled_shard_are_found(dataset: Path):
    shard = open_dataset(dataset).shards[0]
    shutil.copy(shard, shard.with_name("train-000099.tar"))
    assert any("train-000099.tar is no shard of this data set" in p for p in verify(dataset))


def test_a_manifest_that_is_gone_is_one_clear_problem(dataset: Path):
    (dataset / "manifest.parquet").unlink()
    assert verify(dataset) == ["manifest.parquet is missing"]


def changed(dataset: Path, **fields: object) -> list[str]:
    """What verify says once the description says something else."""
    path = dataset / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return verify(dataset)


def test_counts_that_do_not_add_up_are_found_for_clips_and_for_sources(dataset: Path):
    counts = open_dataset(dataset).description["counts"]
    assert counts["sources"] == 4
    assert counts["by_source"] == {"kept": 3, "filtered": {}, "quarantined": {"empty_file": 1}}
    assert changed(dataset, counts={**counts, "clips": 7})[-1] == "7 clips are not 5 kept + 1 rejected"
    problems = changed(dataset, counts={**counts, "sources": 5})
    assert problems == ["5 sources are not 3 kept + 0 filtered + 1 quarantined"]
    problems = changed(dataset, counts={**counts, "by_source": {}})
    assert any("counts {} by_source" in p for p in problems)


def test_a_manifest_of_another_publication_is_found(dataset: Path):
    rows = dataset_files.read_manifest(dataset / "manifest.parquet")
    rows[0]["caption"] += " twice"
    (dataset / "manifest.parquet").write_bytes(dataset_files.manifest_bytes(rows))
    problems = verify(dataset)
    assert any("manifest.parquet is not the one that dataset.json names" in p for p in problems)
    assert any("has another description than the manifest" in p for p in problems)


def test_a_wids_index_of_other_shards_is_found(dataset: Path):
    path = dataset / "shards" / "index.json"
    index = json.loads(path.read_text())
    index["shardlist"][0]["md5sum"] = "0" * 32
    path.write_text(json.dumps(index))
    assert verify(dataset) == ["shards/index.json does not name the shards of dataset.json"]


def test_frames_out_of_time_and_missing_masks_are_found(dataset: Path):
    shard = open_dataset(dataset).shards[0]
    sample, *rest = list(iter_shard(shard))
    frames = shot(9, 24)
    fast = dict(sample.members, mp4=encode_video(frames, FPS * 2))
    write_shard(shard, [Sample(sample.key, fast), *rest])
    assert any("shows frame 1 at 0.042 s and not at 0.083 s" in p for p in verify(dataset))
    few = dict(sample.members, **{"mask.npz": pack_mask(sample.person_mask[:-1])})
    write_shard(shard, [Sample(sample.key, few), *rest])
    assert any("frames but" in p and "in the mask" in p for p in verify(dataset))


def test_a_takedown_is_proved_and_what_is_left_of_a_source_is_found(dataset: Path):
    rows = [row for row in dataset_files.read_manifest(dataset / "manifest.parquet") if row["source"].endswith("b.mp4")]
    gone, left = rows[0], (dataset / "shards" / rows[0]["shard"]).read_bytes()
    take_down(str(dataset), gone["source"], "asked for")
    assert verify(dataset) == []
    assert gone["key"].encode() not in (dataset / "report" / "index.html").read_bytes()
    (dataset / ".work" / "notes.txt").write_text(gone["source_sha256"])
    (dataset / "report" / "list.html").write_text(gone["key"])
    (dataset / "shards" / gone["shard"]).write_bytes(left)
    problems = "; ".join(verify(dataset))
    for words in ("notes.txt is left of", "report/list.html names a source", f"{gone['shard']} is no shard"):
        assert words in problems


def test_a_run_after_a_takedown_leaves_the_source_out_and_nothing_of_it_behind(made: Path, tmp_path: Path):
    shutil.copytree(made.parent / "videos", tmp_path / "videos")
    pipeline = Weightless(videos=(str(tmp_path / "videos"),), out=str(tmp_path / "set"), local=True)
    job.run("weightless", pipeline)
    source = tmp_path / "videos" / "b.mp4"
    take_down(str(tmp_path / "set"), str(source))
    source.rename(source.with_name("renamed.mp4"))
    outcome = job.run("weightless", pipeline)
    assert outcome.description["counts"]["kept"] == 4
    assert verify(tmp_path / "set") == []
    assert not job.run("weightless", pipeline).changed


def test_a_data_set_in_a_bucket_is_verified_as_one_on_a_disk(dataset: Path, bucket: str):
    store = Store(bucket)
    for path in sorted(p for p in dataset.rglob("*") if p.is_file() and ".work" not in p.parts):
        store.put(str(path.relative_to(dataset)), path.read_bytes())
    assert verify(bucket) == []
    shard = open_dataset(dataset).shards[0]
    store.put(f"shards/{shard.name}", shard.read_bytes()[:-2000] + b"x" * 2000)
    assert any("damaged" in p for p in verify(bucket))
    store.put(f"shards/{shard.name}", shard.read_bytes())
    gone = dataset_files.read_manifest(dataset / "manifest.parquet")[0]
    take_down(bucket, gone["source_sha256"])
    assert verify(bucket) == []
    assert b"<html" in store.read("report/index.html")


def test_a_run_into_a_bucket_ends_with_the_bytes_of_one_on_a_disk(made: Path, bucket: str, tmp_path: Path):
    pipeline = Weightless(videos=(str(made.parent / "videos"),), out=bucket, work=str(tmp_path / "work"), local=True)
    assert job.run("weightless", pipeline).changed
    assert verify(bucket) == []
    remote, local = Store(bucket), Store(str(made))
    assert [name for name, _ in remote.list()] == [name for name, _ in local.list()]
    for name, _ in local.list():
        if not name.startswith("report/"):
            # The page tells what the run cost, which is never the same twice.
            assert remote.read(name) == local.read(name), name
    assert not job.run("weightless", pipeline).changed
