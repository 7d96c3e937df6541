"""The page about a run, from run folders as runs leave them."""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dynamictrl.errors import ConfigError
from training.__main__ import main
from training.config import Run
from training.recipes import dynamictrl_5b, tiny_on_cpu
from training.summary.charts import Chart, Marks, smoothed, thinned, written
from training.summary.page import write_after, write_summary
from training.summary.record import RunRecord

SECTIONS = (
    "Curves", "Loss by timestep", "A typical step", "Steps left out, and spikes", "Sessions", "Plan against measured",
    "Data", "Recipe", "1restart", "clip<7>", "a <run>", "steps taken again",
)  # fmt: skip
STARTED = 1_700_000_000.0


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run of twelve steps, killed after eight and gone on with from six; the third was left out."""
    out = tmp_path / "a <run>"
    out.mkdir()
    five = dynamictrl_5b()
    recipe = replace(five, optimization=replace(five.optimization, steps=12, batch_size=8))
    run = Run(name="dynamictrl-5b", data=tmp_path / "data", out=out, recipe=recipe)
    (out / "run.json").write_text(json.dumps(run.to_dict()))
    lines = [step_line(step) for step in range(1, 13)]
    lines[2] |= {"loss": None, "grad_norm": None}
    write_lines(out / "metrics.jsonl", lines)
    events = [("start", 0, 0.0), ("checkpoint", 3, 8.0), ("checkpoint", 6, 15.0), ("start", 6, 60.0)]
    more = [("checkpoint", 9, 68.0), ("checkpoint", 12, 75.0), ("export", 12, 76.0), ("end", 12, 77.0)]
    write_lines(out / "sessions.jsonl", [
        {"event": event, "step": step, "time": STARTED + seconds, "reached": 8 if step else 0, "workers": 8}
        for event, step, seconds in events + more
    ])  # fmt: skip
    sample = {"position": 17, "key": "clip<7>", "start": 0, "timestep": 900, "loss": None}
    told = {"step": 3, "time": STARTED, "reason": "not_finite", "applied": False, "loss": None, "grad_norm": None,
            "median_norm": 0.5, "samples": [sample]}  # fmt: skip
    write_lines(out / "skipped_steps.jsonl", [told])
    return out


def step_line(step: int) -> dict[str, float | None]:
    seconds = 40.0 if step in (1, 7) else 2.0
    return {
        "step": step, "time": STARTED + 2 * step, "loss": 1 / step, "grad_norm": 0.5, "learning_rate": 1e-5,
        "step_seconds": seconds, "tokens_per_second": 1000.0, "mfu": 0.4, "hfu": 0.5, "data_stall_fraction": 0.01,
        "skipped_steps": float(step >= 3), "spikes": 0.0, "clipped": 0.0, "peak_memory_gib": 100.0, "epoch": step / 10,
        "samples_seen": 8.0 * step, "data_seconds": 0.1, "forward_seconds": 0.6, "backward_seconds": 1.1,
        "optimizer_seconds": 0.1, "loss/t000-200": 0.1, "loss/t800-1000": 0.9,
    }  # fmt: skip


def write_lines(path: Path, lines: list[dict[str, object]] | list[dict[str, float | None]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


class Balanced(HTMLParser):
    """Follows the tags of a page, which must close in order; gathers the words."""

    VOID = frozenset({"meta", "img", "br", "circle", "line"})

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_of_a_run_with_a_restart_has_every_section_and_needs_nothing_else(run_folder: Path):
    page = Balanced(write_summary(run_folder).read_text())

    assert page.open == []
    for words in SECTIONS:
        assert words in page.words
    assert all(link.startswith("#") for link in page.links)
    assert "http" not in re.sub(r'content="[^"]*"', "", page.words)


def test_a_restart_tells_which_steps_it_took_again_and_warm_up_steps_set_no_speed(run_folder: Path):
    record = RunRecord.read(run_folder)
    first, second = record.sessions

    assert (first.first, first.last, first.repeated) == (0, 8, 0)
    assert (second.first, second.last, second.repeated) == (6, 12, 2)
    assert (record.restarts, record.checkpoints) == ([6], [3, 6, 9, 12])
    assert record.typical("step_seconds") == 2.0
    assert record.state == "stopped"


def test_a_run_is_running_while_it_speaks_and_failed_once_it_said_why(run_folder: Path):
    newest = step_line(13) | {"time": time.time()}
    with (run_folder / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps(newest) + "\n")
    (run_folder / "sessions.jsonl").unlink()
    assert RunRecord.read(run_folder).state == "running"

    (run_folder / "failure.json").write_text(json.dumps({"message": "the <loss> is nan"}))
    assert RunRecord.read(run_folder).state == "failed"
    assert "the &lt;loss&gt; is nan" in write_summary(run_folder).read_text()


def test_a_run_that_has_done_nothing_yet_has_a_page_too(tmp_path: Path):
    run = Run(name="tiny-on-cpu", data=tmp_path / "data", out=tmp_path, recipe=tiny_on_cpu())
    (tmp_path / "run.json").write_text(json.dumps(run.to_dict()))

    assert "No step yet." in Balanced(write_summary(tmp_path).read_text()).words


def test_small_clips_of_the_last_validation_lie_in_the_page_and_large_ones_are_linked(run_folder: Path):
    for step, size in ((6, 10), (12, 200)):
        folder = run_folder / "validation" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        told = {"step": step, "identity": "x", "seconds": 1.0, "finished": STARTED, "per_clip": {"clip": {}}}
        (folder / "metrics.json").write_text(json.dumps(told | {"mean": {"model": {"psnr": 20.0 + step}}}))
        (folder / "clip.mp4").write_bytes(b"0" * size)
    page = Balanced(write_summary(run_folder).read_text())
    assert "psnr" in page.words
    assert "Clips of step 12" in page.words
    assert sum(link.startswith("data:video/mp4;base64,MDAw") for link in page.links) == 1

    (run_folder / "validation" / "step-00000012" / "clip.mp4").write_bytes(b"0" * (3 * 2**20 + 1))
    links = Balanced(write_summary(run_folder).read_text()).links
    assert links.count("validation/step-00000012/clip.mp4") == 2


def test_the_command_writes_where_it_is_told_and_refuses_other_folders(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "pages" / "one.html"
    assert main(["summary", str(run_folder), "--out", str(out)]) == 0
    assert out.is_file()
    assert main(["summary", str(tmp_path)]) == 2
    assert "run.json" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="not a run folder"):
        write_summary(tmp_path)
    assert write_after(tmp_path) is None


def test_a_chart_draws_what_is_finite_thins_what_is_long_and_marks_what_happened():
    points = [(step, math.sin(step) + (math.nan if step == 5 else 2)) for step in range(1, 2001)]
    drawn = Chart("Loss", "", {"loss": points}, Marks([500, 1000], [700], [5], [9])).svg()
    assert "nan" not in drawn
    assert (drawn.count('class="saved"'), drawn.count('class="restart"')) == (2, 1)
    assert (drawn.count('class="skipped"'), drawn.count('class="spike"')) == (1, 1)
    assert len(drawn) < 40_000

    assert len(thinned(points)) <= 281
    assert thinned(points)[-1] == points[-1]
    assert smoothed([(1, 4.0)] * 200)[-1][1] == pytest.approx(4.0)
    assert "Nothing was recorded" in Chart("Loss", "", {"loss": [(1, math.nan)]}).svg()
    assert (written(0.5), written(0.5, percent=True), written(123456.0)) == ("0.5", "50 %", "123,456")


def test_one_slow_first_step_does_not_flatten_the_others():
    points = [(step, 40.0 if step == 1 else 2.0) for step in range(1, 101)]
    drawn = Chart("Seconds a step", "s", {"step_seconds": points}, from_zero=True).svg()
    ticks = [float(tick) for tick in re.findall(r'<text x="46"[^>]*>([\d.]+)</text>', drawn)]
    assert max(ticks) < 5
