"""A whole run in this process: what it leaves, what a rerun does, and what it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import webdataset

from dynamictrl.samples.shards import MEMBERS, open_dataset
from pipelines import job, plan
from pipelines.clip import Clip
from pipelines.commands.remove import Remove
from pipelines.datasets.verify import verify
from pipelines.files.storage import Store
from pipelines.publishing import dataset_files
from pipelines.publishing.publication import Publication
from pipelines.stages.keep_duration import KeepDuration
from pipelines.stages.write_shards import WriteShards
from pipelines.work.clip_operator import ClipOperator
from pipelines.work.source_operator import SourceOperator
from tests.unit.pipelines.conftest import StandStill, Weightless

MakePipeline = Callable[..., Weightless]


@pytest.fixture
def videos(make_video: Callable[..., Path]) -> Path:
    """Three good sources of which one has a short shot, a copy, and two that cannot be read."""
    first = make_video("a.mp4", (1, 24), (2, 36))
    make_video("b.mp4", (3, 40), fps=20)
    make_video("c.mp4", (4, 24), (5, 8))
    shutil.copy(first, first.with_name("z-copy.mp4"))
    first.with_name("empty.mp4").write_bytes(b"")
    first.with_name("notes.txt").write_text("no video")
    return first.parent


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a data set but the work folder and the report, which says what it cost, with its content."""
    paths = [p for p in folder.rglob("*") if p.is_file() and not {".work", "report"} & set(p.parts)]
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(paths)}


def tars(folder: Path) -> dict[str, bytes]:
    """The shards of a data set."""
    return {name: content for name, content in tree(folder / "shards").items() if name.endswith(".tar")}


def run(pipeline: Weightless) -> job.Outcome:
    return job.run("weightless", pipeline)


def test_a_run_accounts_for_every_source_and_every_clip(videos: Path, weightless: MakePipeline, tmp_path: Path):
    outcome = run(weightless())
    counts = outcome.description["counts"]
    assert counts["sources"] == 6
    assert (counts["clips"], counts["kept"]) == (9, 5)
    assert counts["rejected"] == {"duplicate_source": 3, "too_short": 1}
    assert counts["quarantined"] == {"empty_file": 1, "not_media": 1}
    rows = dataset_files.read_manifest(tmp_path / "out" / "manifest.parquet")
    assert len({row["key"] for row in rows}) == len(rows) == 9
    quarantine = dataset_files.read_quarantine(tmp_path / "out" / "quarantine.jsonl")
    accounted = {Path(x).name for x in [*(r["source"] for r in rows), *(q["uri"] for q in quarantine)]}
    assert accounted == {p.name for p in videos.iterdir()}


def test_sources_that_are_read_in_a_process_of_their_own_come_out_the_same(
    videos: Path, weightless: MakePipeline, tmp_path: Path
):
    run(weightless(out=tmp_path / "one" / "set", time_limit=60.0))
    run(weightless(out=tmp_path / "two" / "set"))
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_the_folder_is_the_contracts_and_stock_webdataset_reads_it(
    videos: Path, weightless: MakePipeline, tmp_path: Path
):
    run(weightless())
    dataset = open_dataset(tmp_path / "out")
    assert (dataset.root / "report" / "index.html").is_file()
    assert verify(dataset.root) == []
    samples = list(webdataset.WebDataset([str(p) for p in dataset.shards], shardshuffle=False))
    assert len(samples) == 5
    for sample in samples:
        assert set(MEMBERS) <= set(sample)
        assert json.loads(sample["json"])["key"] == sample["__key__"]
    assert len(dataset.shards) > 1


def test_a_second_run_does_nothing_and_says_so(
    videos: Path, weightless: MakePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert run(weightless()).changed
    before = tree(tmp_path / "out")
    for operator in (SourceOperator, ClipOperator):
        monkeypatch.setattr(operator, "run_many", lambda *_: pytest.fail("a finished unit was run again"))
    assert not run(weightless()).changed
    assert tree(tmp_path / "out") == before


def test_two_runs_into_two_folders_give_the_same_shards(videos: Path, weightless: MakePipeline, tmp_path: Path):
    run(weightless(out=tmp_path / "one" / "set"))
    run(weightless(out=tmp_path / "two" / "set"))
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


class Killed(BaseException):
    """Stands in for a kill: nothing catches it."""


STOPS = [("source", 1), ("clip", 0), ("clip", 2), ("shard", 0), ("shard", 1), *(("index", n) for n in range(5))]


def test_a_run_stopped_anywhere_and_started_again_ends_with_the_same_bytes(
    videos: Path, weightless: MakePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run(weightless(out=tmp_path / "whole"))
    whole = tree(tmp_path / "whole")
    for where, after in STOPS:
        out = tmp_path / f"{where}-{after}" / "whole"
        stop_at(where, after, weightless(out=out), monkeypatch)
        assert run(weightless(out=out)).changed
        assert tree(out) == whole, (where, after)


def stop_at(where: str, after: int, pipeline: Weightless, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs until something has happened `after` times, and stops there as a kill would."""
    with monkeypatch.context() as patch:
        target, name = {
            "source": (SourceOperator, "_run"),
            "clip": (StandStill, "process"),
            "shard": (Publication, "commit"),
            "index": (Store, "put"),
        }[where]
        real, calls = getattr(target, name), []

        def stop(*arguments: object) -> object:
            calls.append(name)
            if len(calls) > after:
                raise Killed
            return real(*arguments)

        patch.setattr(target, name, stop)
        with pytest.raises(Killed):
            run(pipeline)


def test_a_source_that_comes_later_gets_shards_of_its_own_and_leaves_the_others(
    videos: Path, weightless: MakePipeline, make_video: Callable[..., Path], tmp_path: Path
):
    run(weightless())
    before = tars(tmp_path / "out")
    make_video("later.mp4", (9, 24))
    outcome = run(weightless())
    after = tars(tmp_path / "out")
    assert outcome.description["counts"]["kept"] == 6
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 1
    assert verify(tmp_path / "out") == []


def test_a_source_that_has_gone_leaves_its_clips_in_the_data_set(
    videos: Path, weightless: MakePipeline, tmp_path: Path
):
    run(weightless())
    (videos / "b.mp4").unlink()
    assert run(weightless()).description["counts"]["kept"] == 5
    assert verify(tmp_path / "out") == []


def test_a_shard_that_was_lost_is_written_again_with_the_same_bytes_under_a_new_name(
    videos: Path, weightless: MakePipeline, tmp_path: Path
):
    run(weightless())
    before = tars(tmp_path / "out")
    open_dataset(tmp_path / "out").shards[0].unlink()
    assert run(weightless()).changed
    after = tars(tmp_path / "out")
    assert after.keys() != before.keys()
    assert sorted(after.values()) == sorted(before.values())


def test_a_renamed_source_keeps_its_keys(videos: Path, weightless: MakePipeline, tmp_path: Path):
    run(weightless())
    (videos / "b.mp4").rename(videos / "renamed.mp4")
    assert run(weightless()).description["counts"]["kept"] == 5
    assert verify(tmp_path / "out") == []


def test_changed_settings_redo_what_depends_on_them_and_nothing_else(
    videos: Path, weightless: MakePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run(weightless())
    old = {p.name for p in open_dataset(tmp_path / "out").shards}
    monkeypatch.setattr(SourceOperator, "run_many", lambda *_: pytest.fail("a source was opened again"))
    outcome = run(weightless(person=StandStill(caption="someone else")))
    new = open_dataset(tmp_path / "out").shards
    assert not old & {p.name for p in new}, "a shard's name is never used again"
    captions = {sample["txt"] for sample in webdataset.WebDataset([str(p) for p in new], shardshuffle=False)}
    assert captions == {b"someone else"}
    assert outcome.description["counts"]["kept"] == 5
    assert verify(tmp_path / "out") == []


def test_a_stricter_setting_takes_clips_out_and_the_looser_one_brings_them_back(
    videos: Path, weightless: MakePipeline, tmp_path: Path
):
    run(weightless())
    assert run(weightless(duration=KeepDuration(shortest=2.5))).description["counts"]["kept"] == 2
    assert verify(tmp_path / "out") == []
    assert run(weightless()).description["counts"]["kept"] == 5
    assert verify(tmp_path / "out") == []


def test_settings_of_speed_alone_may_change(videos: Path, weightless: MakePipeline):
    run(weightless())
    assert not run(weightless(workers=7, time_limit=99.0)).changed


def test_nothing_is_left_behind_by_a_run_that_was_refused(weightless: MakePipeline, tmp_path: Path):
    with pytest.raises(ValueError, match="does not exist"):
        run(weightless(videos=(str(tmp_path / "nowhere"),)))
    assert not (tmp_path / "out").exists()


def test_a_full_shard_is_closed_before_it_passes_its_size(videos: Path, weightless: MakePipeline, tmp_path: Path):
    run(weightless(shards=WriteShards(size=0.03)))
    sizes = [p.stat().st_size for p in open_dataset(tmp_path / "out").shards]
    assert len(sizes) > 1
    assert max(sizes) <= 0.03 * 2**20 + 10240


def test_keys_are_those_of_content_and_place(videos: Path, weightless: MakePipeline, tmp_path: Path):
    run(weightless())
    for row in dataset_files.read_manifest(tmp_path / "out" / "manifest.parquet"):
        if not row["reason"]:
            clip = Clip(source_sha256=row["source_sha256"]).at(row["start"], row["end"])
            assert row["key"] == clip.key


def test_a_plan_names_the_clips_that_the_run_then_makes(videos: Path, weightless: MakePipeline, tmp_path: Path):
    planned = plan.make("weightless", weightless())
    foreseen = {key for source in planned["sources"] for key in source["clips"]}
    assert foreseen == {key for shard in planned["shards"] for key in shard["clips"]}
    assert planned["counts"] == {"sources": 6, "clips": 5, "seconds": 9.0}
    refused = {s["refused"][0] for s in planned["sources"] if not s["clips"]}
    assert refused == {"duplicate_source", "empty_file", "not_media"}
    assert not list((tmp_path / "out" / ".work").glob("clips/*"))
    outcome = run(weightless())
    rows = dataset_files.read_manifest(tmp_path / "out" / "manifest.parquet")
    assert {row["key"] for row in rows if not row["reason"]} == foreseen
    assert outcome.description["counts"]["kept"] == 5
    assert "not known" in plan.text(planned, "plan.json")


def test_a_plan_made_twice_is_the_same_plan(videos: Path, weightless: MakePipeline, tmp_path: Path):
    first, second = (plan.make("weightless", weightless()) for _ in range(2))
    for content in (first, second):
        content.pop("estimate")
    assert first == second


def test_a_bucket_gets_the_same_bytes_as_a_folder(videos: Path, bucket: str, weightless: MakePipeline, tmp_path: Path):
    here = tmp_path / "here" / "set"
    run(weightless(out=here))
    there = weightless(out=bucket, work=str(tmp_path / "work"))
    assert run(there).changed
    store = Store(bucket)
    found = {name: store.read(name) for name, _ in store.list()}
    assert {n: c for n, c in found.items() if not n.startswith("report")} == tree(here)
    assert "report/index.html" in found
    assert verify(bucket) == []
    # From another machine, without the work folder, there is nothing to do either.
    shutil.rmtree(tmp_path / "work")
    assert not run(there).changed


def test_what_was_taken_down_does_not_come_back(videos: Path, weightless: MakePipeline, tmp_path: Path):
    run(weightless())
    Remove(source=str(videos / "b.mp4"), dataset=str(tmp_path / "out")).run()
    assert verify(tmp_path / "out") == []
    counts = run(weightless()).description["counts"]
    assert counts["kept"] == 4
    assert verify(tmp_path / "out") == []
    assert b"b.mp4" not in b"".join(content for name, content in tree(tmp_path / "out").items() if "tar" in name)
    assert not run(weightless()).changed
