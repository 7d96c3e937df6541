"""`explain`, `quarantine`, `diff` and `size`: what they say of a data set, and what `retry` makes the next run do."""

import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from dynamictrl.errors import DynamiCtrlError, InputError
from dynamictrl.media.video import write_video
from pipelines import job
from pipelines.clip import Clip
from pipelines.commands.diff import Diff
from pipelines.commands.explain import Explain
from pipelines.commands.quarantine import Quarantine
from pipelines.commands.size import Size
from pipelines.datasets import comparison, retrying, sizes, text_table
from pipelines.datasets.dataset_view import DatasetView, open_view
from pipelines.datasets.explanation import explain
from pipelines.pipeline import Pipeline
from pipelines.stage import Stage
from pipelines.stages.cut_clips import CutClips
from pipelines.stages.fetch import Fetch
from pipelines.stages.find_videos import FindVideos
from pipelines.stages.probe import Probe
from pipelines.stages.write_shards import WriteShards
from tests.unit.pipelines.conftest import FPS, HEIGHT, WIDTH, StandStill, shot


@dataclass(frozen=True)
class KeepLong(Stage):
    """Refuses short clips, by a score and a limit."""

    shortest: float = 2.2

    @property
    def limits(self) -> Mapping[str, tuple[float, float]]:
        return {"long": (self.shortest, math.inf)}

    def process(self, clip: Clip) -> Iterable[Clip]:
        measured = clip.with_scores(long=clip.duration)
        short = clip.duration < self.shortest
        yield measured.reject("too_brief", f"{clip.duration:g} s; at least {self.shortest:g} s") if short else measured


@dataclass(frozen=True, kw_only=True)
class Filtered(Pipeline):
    """A pipeline without weights, with a filter between its stages."""

    find: FindVideos = field(default_factory=FindVideos)
    fetch: Fetch = field(default_factory=Fetch)
    probe: Probe = field(default_factory=Probe)
    cut: CutClips = field(default_factory=lambda: CutClips(longest=2.5, fps=FPS, width=WIDTH, height=HEIGHT))
    long: KeepLong = field(default_factory=KeepLong)
    person: StandStill = field(default_factory=StandStill)
    shards: WriteShards = field(default_factory=lambda: WriteShards(size=0.05))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources with a clip each that is long enough, one with a clip that is not, one that cannot be read."""
    folder = tmp_path_factory.mktemp("sources") / "videos"
    folder.mkdir()
    for number, frames in enumerate((28, 29, 24)):
        write_video(folder / f"dance-{number}.mp4", shot(number, frames), FPS)
    (folder / "broken.mp4").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def made(videos: Path) -> Path:
    job.run("filtered", pipeline(videos, videos.parent / "set"))
    return videos.parent / "set"


def pipeline(videos: Path, out: Path | str, **fields: object) -> Filtered:
    return Filtered(videos=(str(videos),), out=str(out), local=True, time_limit=0.0, **fields)  # type: ignore[arg-type]


@pytest.fixture
def dataset(made: Path, tmp_path: Path) -> DatasetView:
    return open_view(shutil.copytree(made, tmp_path / "set"))


def row_of(view: DatasetView, name: str) -> dict[str, object]:
    return next(row for row in view.rows if name in row["source"])


def test_a_kept_clip_is_explained_with_its_place_its_scores_and_its_keys(dataset: DatasetView):
    row = row_of(dataset, "dance-0")
    text = "\n".join(explain(dataset, str(row["key"])))
    assert f"{row['shard']} at byte {row['offset']}" in text
    assert f"long {28 / 12:.4g} (at least 2.2)" in text
    assert "long 2.333, keep_long keeps at least 2.2: 6% of the limit inside" in text
    (line,) = [line for line in text.splitlines() if line.startswith("  stand_still")]
    # The key and the seconds that the ledger has.
    assert line.split()[-1] == row["lineage"]["stand_still"]  # type: ignore[index]
    assert line.split()[1:4] == ["passed", "brightness", "0"]
    assert float(line.split()[4]) >= 0


def test_a_refused_clip_is_explained_with_its_reason_and_what_was_not_reached(dataset: DatasetView):
    key = str(row_of(dataset, "dance-2")["key"])
    text = "\n".join(explain(dataset, key[:-1]))
    assert "refused by keep_long: too_brief, 2 s; at least 2.2 s" in text
    assert "9% of the limit outside" in text
    (line,) = [line for line in text.splitlines() if line.startswith("  write_shards")]
    assert "not reached" in line


@pytest.mark.parametrize("name", ["dance-0.mp4", "dance-0", "URI"])
def test_a_source_is_explained_by_its_uri_its_file_or_its_stem(dataset: DatasetView, name: str):
    uri = str(row_of(dataset, "dance-0")["source"])
    text = "\n".join(explain(dataset, name.replace("URI", uri)))
    assert "1 clips found: 1 kept (2.3 s), 0 refused" in text


def test_a_quarantined_source_is_explained_with_what_to_do(dataset: DatasetView):
    text = "\n".join(explain(dataset, "broken.mp4"))
    assert "empty_file" in text
    assert "copy or download it again" in text


def test_near_names_are_suggested_and_several_are_listed(dataset: DatasetView):
    with pytest.raises(InputError, match=r"near names: .*dance-1\.mp4"):
        explain(dataset, "dance-11.mp4")
    shared = open_view(dataset.root)
    for row in shared.rows:
        row["key"] = "aa" + row["key"]
    with pytest.raises(InputError, match="aa could be 3: "):
        explain(shared, "aa")


def test_explain_needs_no_work_folder(dataset: DatasetView):
    key = str(row_of(dataset, "dance-0")["key"])
    lines = explain(replace(dataset, work=None), key)
    assert any(line.split()[:2] == ["stand_still", "passed"] for line in lines)


def test_the_quarantine_is_listed_by_reason(dataset: DatasetView, capsys: pytest.CaptureFixture[str]):
    assert Quarantine(action="list", dataset=dataset.root).run() == 0
    assert "empty_file" in capsys.readouterr().out
    assert retrying.chosen(dataset, reason="empty_file", source="broken.mp4") == dataset.quarantine
    with pytest.raises(InputError, match="the reasons there are: empty_file"):
        retrying.chosen(dataset, reason="emtpy")
    with pytest.raises(InputError, match="no source other"):
        retrying.chosen(dataset, source="other.mp4")


def test_a_retried_source_is_taken_again_by_the_next_run(videos: Path, tmp_path: Path):
    here = Path(shutil.copytree(videos, tmp_path / "videos"))
    write_video(tmp_path / "good.mp4", shot(9, 28), FPS)
    good = (tmp_path / "good.mp4").read_bytes()
    # Broken and mended, it has the same size and time: only the record says what it was.
    (here / "broken.mp4").write_bytes(bytes(len(good)))
    stamp = (here / "broken.mp4").stat().st_mtime_ns
    run = pipeline(here, tmp_path / "set")
    job.run("filtered", run)
    (here / "broken.mp4").write_bytes(good)
    os.utime(here / "broken.mp4", ns=(stamp, stamp))
    assert not job.run("filtered", run).changed
    view = open_view(tmp_path / "set")
    forgotten = retrying.retry(view, view.quarantine, [])
    assert [Path(uri).name for uri in forgotten.sources] == ["broken.mp4"]
    counts = job.run("filtered", run).description["counts"]
    assert (counts["kept"], counts["quarantined"]) == (3, {})


def test_retry_prints_the_command_that_takes_them_again(dataset: DatasetView, capsys: pytest.CaptureFixture[str]):
    assert Quarantine(action="retry", dataset=dataset.root, reason="empty_file").run() == 0
    said = capsys.readouterr().out
    assert said.startswith("1 sources and 0 clips will be taken again by")
    assert said.count("python -m pipelines filtered --videos /") == 1
    assert f" --out {dataset.root}" in said


def test_retry_says_so_where_the_work_folder_is_not_at_hand(dataset: DatasetView):
    with pytest.raises(DynamiCtrlError, match="name it by --work"):
        retrying.retry(replace(dataset, work=None), dataset.quarantine, [])


def test_a_data_set_does_not_differ_from_its_copy(dataset: DatasetView, made: Path):
    found = comparison.compare(open_view(made), dataset)
    assert comparison.is_equal(found)
    assert "the same clips, decided in the same way" in list(comparison.text(found))


def test_changed_captions_and_verdicts_are_told_with_the_settings_behind_them(
    videos: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    other = pipeline(videos, tmp_path / "other", person=StandStill("a tree"), long=KeepLong(shortest=2.35))
    job.run("filtered", other)
    found = comparison.compare(open_view(made), open_view(tmp_path / "other"))
    assert [(v["a"], v["b"]) for v in found["verdicts"]] == [("kept", "too_brief")]
    assert {c["b"] for c in found["captions"]} == {"a tree"}
    assert found["settings"] == [
        "long.shortest was 2.2, is 2.35",
        "person.caption was 'someone stands still', is 'a tree'",
    ]
    assert found["stages_redone"]["stand_still"] == 2
    assert (found["a"]["kept"], found["b"]["kept"]) == (2, 1)
    assert Diff(a=str(made), b=str(tmp_path / "other"), json=True).run() == 0
    assert json.loads(capsys.readouterr().out)["verdicts"] == found["verdicts"]
    assert Diff(a=str(made), b=str(tmp_path / "other")).run() == 0
    assert "long.shortest was 2.2, is 2.35" in capsys.readouterr().out


def test_a_clip_of_one_data_set_only_is_told_with_its_reason(videos: Path, made: Path, tmp_path: Path):
    fewer = tmp_path / "fewer"
    fewer.mkdir()
    shutil.copy(videos / "dance-0.mp4", fewer)
    job.run("filtered", pipeline(fewer, tmp_path / "set"))
    found = comparison.compare(open_view(made), open_view(tmp_path / "set"))
    assert {clip["why"] for clip in found["only_a"]} == {"its source is not there"}
    # Keys come from contents: the copy's clip is the same clip.
    assert found["only_b"] == []
    assert [(q["a"], q["b"]) for q in found["quarantine"]] == [("empty_file", "not there")]


def test_changed_scores_are_counted_by_name():
    rows = [
        {"lineage": {}, "scores": {"s": v, "t": 1.0, **more}, "key": k}
        for v, more, k in ((1.0, {}, "k"), (1.5, {"u": 2.0}, "k"))
    ]
    found = comparison._scores([(rows[0], rows[1])])
    assert [(s["score"], s["changed"], s["in_one_only"], s["mean_change"]) for s in found] == [
        ("s", 1, 0, 0.5),
        ("u", 0, 1, 0.0),
    ]


def test_sizes_add_up_to_the_bytes_of_the_shards(dataset: DatasetView):
    kept = [row for row in dataset.rows if not row["reason"]]
    members, measured = sizes.by_member(dataset, kept, 0)
    assert measured == 2
    assert [name for name, _ in members][-1] in ("txt", "json")
    ends = sum(shard["bytes"] for shard in dataset.description["shards"]) - sum(size for _, size in members)
    # What is left is the tars' own padding: at most a record of 10 KiB each.
    assert 0 < ends <= 10240 * len(dataset.description["shards"])
    assert sum(share.bytes for share in sizes.by(kept, lambda row: row["licence"])) == sum(s for _, s in members)


def test_size_counts_by_bucket_and_names_the_work_folder(dataset: DatasetView, capsys: pytest.CaptureFixture[str]):
    assert Size(dataset=dataset.root, sample=1).run() == 0
    said = capsys.readouterr().out
    for words in ("2 clips", "of 1 clips", "below 256 px", "2 to 4 s", "not stated", "target 51.2 KiB", "work folder"):
        assert words in said


def test_explain_prints_and_reads_by_key(dataset: DatasetView, capsys: pytest.CaptureFixture[str]):
    assert Explain(name=str(row_of(dataset, "dance-1")["key"]), dataset=dataset.root).run() == 0
    assert capsys.readouterr().out.startswith("clip ")


def test_numbers_stand_to_the_right_and_long_cells_are_cut():
    lines = text_table.table(("a", "n"), [["x" * 100, "1.5 MiB"], ["key-12", "12 B"]])
    assert max(map(len, lines)) < 90
    assert lines[1].endswith("1.5 MiB")
    assert lines[2].endswith("   12 B")


@pytest.mark.parametrize(("size", "words"), [(0, "0 B"), (1536, "1.5 KiB"), (2**40, "1.00 TiB")])
def test_bytes_are_said_as_people_say_them(size: int, words: str):
    assert text_table.amount(size) == words


def test_a_data_set_in_a_bucket_is_explained_measured_and_compared_as_one_on_a_disk(
    videos: Path, made: Path, bucket: str, capsys: pytest.CaptureFixture[str]
):
    job.run("filtered", pipeline(videos, bucket))
    view = open_view(bucket)
    assert comparison.is_equal(comparison.compare(open_view(made), view))
    key = str(row_of(view, "dance-0")["key"])
    assert any(f"{bucket}/shards/train-000000.tar at byte 0" in line for line in explain(view, key))
    assert Size(dataset=bucket).run() == 0
    assert "by member" in capsys.readouterr().out
    assert b"adds up" in view.store.read("report/index.html")
