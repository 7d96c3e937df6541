"""What `verify` finds and what the report page shows, on a data set made by a run."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dynamictrl.shards import iter_shard, open_dataset, write_shard
from pipelines import job
from pipelines.report import chosen, funnel, histograms, write_report
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


def test_the_page_is_self_contained_and_tells_of_everything(dataset: Path):
    page = write_report(dataset, open_dataset(dataset).description).read_text()
    assert page.count("data:video/mp4;base64,") == 5
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    for word in ("too_short", "empty_file", "brightness", "someone stands still", "stand-still"):
        assert word in page
    # Names come from strangers.
    assert "&lt;b&gt;.mp4" in page
    assert "<b>.mp4" not in page


def test_the_funnel_narrows_from_sources_to_kept_clips(dataset: Path):
    from pipelines.dataset_files import read_manifest

    steps = funnel(open_dataset(dataset).description, read_manifest(dataset / "manifest.parquet"))
    assert [(what, count) for what, count, _ in steps] == [
        ("sources found", 4),
        ("sources read", 3),
        ("clips found", 6),
        ("after keep duration", 5),
    ]


def test_a_histogram_counts_every_clip_once_and_a_constant_score_needs_no_width():
    rows = [{"scores": {"s": v}, "reason": r} for v, r in ((0, ""), (1, "bad"), (1, ""))]
    (histogram,) = histograms(rows)
    assert histogram.count == 3
    assert sum(b.kept for b in histogram.bars) == pytest.approx(40)
    assert histograms([{"scores": {"s": 2.0}, "reason": ""}])[0].low == 2.0


def test_samples_are_taken_from_as_many_sources_as_there_are():
    rows: list[dict[str, object]] = [{"source": s, "key": f"{s}{i}"} for s, n in (("a", 9), ("b", 1)) for i in range(n)]
    pick: Callable[..., object] = chosen
    assert [r["key"] for r in pick(rows, 3)] == ["a0", "b0", "a1"]  # type: ignore[attr-defined]
