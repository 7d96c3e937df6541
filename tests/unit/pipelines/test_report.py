"""The report page: its numbers, its examples, and that it stands alone and stays as it is."""

import importlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from dynamictrl.samples.shards import open_dataset
from pipelines import job
from pipelines.clip import Clip
from pipelines.commands.report import Report
from pipelines.datasets.dataset_view import open_view
from pipelines.datasets.stage_list import Limit
from pipelines.recipes import curate_mini
from pipelines.report import write_report
from pipelines.report.advice import ADVICE, advice
from pipelines.report.cases import cases, idle, spread
from pipelines.report.funnel import equations, funnel
from pipelines.report.histograms import histograms
from pipelines.report.settings import all_settings, command
from pipelines.stage import Cost, Stage
from pipelines.work.previews import write_preview
from tests.unit.pipelines.conftest import FPS, Weightless, shot


@dataclass(frozen=True)
class KeepLate(Stage):
    """Refuses clips by where they begin: a filter with a score, a limit and pictures of what it refused."""

    latest: float = 2.0

    @property
    def limits(self) -> Mapping[str, tuple[float | None, float | None]]:
        return {"begin": (None, self.latest)}

    def process(self, clip: Clip) -> Iterable[Clip]:
        measured = clip.with_scores(begin=clip.start)
        if clip.start > self.latest:
            write_preview(measured)
            yield measured.reject("too_late", f"begins at {clip.start:g} s; at most {self.latest:g} s")
        else:
            yield measured


@dataclass(frozen=True, kw_only=True)
class Filtered(Weightless):
    """The weightless pipeline with one filter more."""

    late: KeepLate = field(default_factory=KeepLate)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips kept, one shot too short, one clip too late, one source quarantined."""
    import numpy as np

    from dynamictrl.media.video import write_video

    root = tmp_path_factory.mktemp("made")
    (root / "videos").mkdir()
    for name, shots in {"a.mp4": [(1, 24), (2, 24), (6, 24)], "b.mp4": [(3, 24), (4, 6)], "c.mp4": [(5, 30)]}.items():
        write_video(root / "videos" / name, np.concatenate([shot(*s) for s in shots]), FPS)
    (root / "videos" / "<b>.mp4").write_bytes(b"")
    job.run("filtered", Filtered(videos=(str(root / "videos"),), out=str(root / "set"), local=True))
    return root / "set"


def test_the_page_stands_alone_and_tells_of_everything(made: Path):
    page = Path(write_report(made, open_dataset(made).description)).read_text()
    assert page.count("data:video/mp4;base64,") == 4
    assert re.findall(r'(?:src|href)="(?!data:|#)', page) == []
    assert "url(" not in page
    for word in ("too_short", "too_late", "empty_file", "brightness", "someone stands still", "stand-still"):
        assert word in page
    # Names come from strangers.
    assert "&lt;b&gt;.mp4" in page
    assert "<b>.mp4" not in page
    assert "does not add up" not in page


def test_the_page_changes_with_its_costs_and_with_nothing_else(made: Path):
    first = Path(write_report(made)).read_bytes()
    assert Path(write_report(made, open_dataset(made).description)).read_bytes() == first
    dear = Path(write_report(made, None, {"cut_clips": Cost(5, 61.5, 1234.5)})).read_text()
    assert "1,234.5" in dear
    gone = re.compile(r'<h2 id="cost">.*?<h2 id="models">', re.DOTALL)
    assert gone.sub("", dear) == gone.sub("", first.decode())


def test_the_picture_of_a_refused_clip_is_shown_beside_its_filter(made: Path):
    page = Path(write_report(made)).read_text()
    late = next(row for row in open_view(made).rows if row["reason"] == "too_late")
    assert re.search(rf'src="data:image/jpeg;base64,[^"]+" alt="three moments of {late["key"]}"', page)


def test_the_funnel_narrows_from_sources_to_kept_clips_in_order_of_work(made: Path):
    view = open_view(made)
    steps = funnel(view.description, view.rows)
    assert [(step.name, step.count) for step in steps] == [
        ("sources found", 4),
        ("sources read", 3),
        ("clips found", 6),
        ("after keep duration", 5),
        ("after keep late", 4),
    ]
    assert steps[-1].reasons == {"too_late": 1}
    assert steps[2].hours - steps[-1].hours == pytest.approx((0.5 + 2.0) / 3600, abs=1e-4)


def test_the_ledger_adds_up_and_says_so_when_it_does_not(made: Path):
    view = open_view(made)
    held = equations(view.description, view.rows, view.quarantine)
    assert all(equation.holds for equation in held)
    assert (held[0].total, held[0].parts) == (
        4,
        (("with clips kept", 3), ("with clips refused only", 0), ("quarantined", 1)),
    )
    broken = equations(view.description, view.rows[1:], view.quarantine)
    assert [equation.whole for equation in broken if not equation.holds] != []


def rows_of(*scores_and_reasons: tuple[float, str]) -> list[dict[str, Any]]:
    return [
        {"key": f"k{i}", "source": "s", "scores": {"s": v}, "reason": r, "stage": "f" if r else "", "message": "m"}
        for i, (v, r) in enumerate(scores_and_reasons)
    ]


def test_a_histogram_counts_every_clip_once_and_a_constant_score_has_a_width():
    (histogram,) = histograms(rows_of((0, ""), (1, "bad"), (1, "")))
    assert histogram.count == 3
    assert sum(bar.kept for bar in histogram.bars) == pytest.approx(40)
    (constant,) = histograms(rows_of((2.0, "")))
    assert constant.low < 2.0 < constant.high
    assert sum(bar.kept > 0 for bar in constant.bars) == 1


def test_a_limit_is_drawn_where_it_lies_even_beyond_all_values():
    (histogram,) = histograms(rows_of((5, ""), (10, ""), (2, "bad")), [Limit("f", "s", 4.0, 20.0)])
    assert (histogram.low, histogram.high) == (2.0, 20.0)
    assert [(mark.label, mark.refused) for mark in histogram.marks] == [("at least 4", 1), ("at most 20", 0)]
    assert histogram.marks[0].x == pytest.approx(100 * 2 / 18)


def test_one_outlier_does_not_flatten_a_histogram():
    (histogram,) = histograms(rows_of(*[(i / 1000, "") for i in range(1000)], (1e6, "")))
    assert histogram.high < 2
    assert histogram.outliers[1] >= 1
    assert sum(bar.kept > 0 for bar in histogram.bars) > 20


def test_examples_are_the_worst_clips_and_those_beside_the_line():
    values = [(float(v), "low" if v < 10 else "") for v in range(20)]
    (found,) = cases({"settings": {}}, rows_of(*values), [Limit("f", "s", 10.0, None)])
    shown = {name: [case.value for case in group] for name, group in found.groups}
    assert shown == {"just refused": ["9", "8", "7"], "worst": ["0", "1", "2"], "just kept": ["10", "11", "12"]}
    assert found.refused == 10


def test_a_refusal_that_no_score_explains_is_shown_by_its_reason():
    rows = rows_of((50.0, "odd"), (50.0, ""))
    found = cases({"settings": {}}, rows, [Limit("f", "s", 10.0, None)])
    assert [(c.title, [name for name, _ in c.groups]) for c in found] == [("odd", ["examples"])]


def test_a_limit_that_refused_nothing_is_listed_with_the_clip_that_came_nearest():
    rows = rows_of((50.0, ""), (12.0, ""), (5.0, "low"))
    limits = [Limit("f", "s", 10.0, None), Limit("g", "s", None, 100.0), Limit("h", "unknown", 0.0, None)]
    found = idle(rows, limits)
    assert [(i.limit.stage, i.nearest.value if i.nearest else "", i.room) for i in found] == [
        ("g", "50", 0.5),
        ("h", "", 0.0),
    ]


def test_examples_come_from_as_many_sources_as_there_are():
    rows: list[dict[str, object]] = [{"source": s, "key": f"{s}{i}"} for s, n in (("a", 9), ("b", 1)) for i in range(n)]
    assert [row["key"] for row in spread(rows, 3)] == ["a0", "b0", "a1"]


def test_the_command_names_only_what_differs_from_the_recipe():
    mini = curate_mini()
    changed = replace(mini, sharpness=replace(mini.sharpness, blurriest=7.5)).settings()
    description = {"recipe": "curate-mini", "settings": json.loads(json.dumps(changed, default=str))}
    assert command(description).splitlines()[1:] == ["    --sharpness.blurriest 7.5"]
    marked = [(s.field, v.name, v.default) for s in all_settings(description) for v in s.settings if v.changed]
    assert marked == [("sharpness", "blurriest", mini.sharpness.blurriest)]


def test_sixty_thousand_clips_make_a_small_page(made: Path, tmp_path: Path):
    import shutil

    import pyarrow as pa
    import pyarrow.parquet as pq

    copy = Path(shutil.copytree(made, tmp_path / "many"))
    table = pq.read_table(copy / "manifest.parquet")
    refused = table.filter(pa.compute.not_equal(table["reason"], ""))
    pq.write_table(pa.concat_tables([table, *[refused] * 30_000]), copy / "manifest.parquet")
    assert Path(write_report(copy)).stat().st_size < 8e6


def test_the_command_writes_the_page_anew_with_the_costs_on_record(made: Path, capsys: pytest.CaptureFixture[str]):
    before = (made / "report" / "index.html").read_bytes()
    (made / "report" / "index.html").unlink()
    assert Report(dataset=str(made)).run() == 0
    assert capsys.readouterr().out.strip() == str(made / "report" / "index.html")
    page = (made / "report" / "index.html").read_text()
    assert '<td data-name="stage">' in page
    assert re.search(r"<tr><td>cut clips</td><td[^>]*>5</td>", page)
    # The run's own page, its costs aside, is the same.
    gone = re.compile(r'<h2 id="cost">.*?<h2 id="models">', re.DOTALL)
    assert gone.sub("", page) == gone.sub("", before.decode())


@pytest.mark.parametrize(
    "module", ["dynamictrl.media.video", "pipelines.work.isolation", "pipelines.files.downloading"]
)
def test_every_code_of_a_source_that_cannot_be_read_has_its_advice(module: str):
    codes = re.findall(r"^\| ([a-z_]+) \|", importlib.import_module(module).__doc__ or "", re.MULTILINE)
    assert len(codes) > 4
    assert [code for code in codes if code != "code" and code not in ADVICE] == []


def test_a_code_that_nobody_knows_gets_a_way_out_too():
    assert "quarantine retry --reason odd" in advice("odd")
