"""What `verify` finds, on a data set made by a run."""

import shutil
from pathlib import Path

import pytest

from dynamictrl.shards import iter_shard, open_dataset, write_shard
from pipelines import job
from pipelines.verify import verify
from tests.unit.pipelines.conftest import FPS, Weightless, shot


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of five clips, one short shot refused and one source quarantined."""
    import numpy as np

    from dynamictrl.video import write_video

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
