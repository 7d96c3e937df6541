"""What a run says while it is under way: lines for people, numbers for machines."""

import logging
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from dynamictrl.errors import ConfigError
from pipelines.clip import Clip
from pipelines.stage import Cost, Work
from pipelines.watching import meter, metrics
from pipelines.watching.meter import Meter
from pipelines.watching.metrics import METRICS, PREFIX, RunMetrics, exported, say_operators
from pipelines.watching.progress import Progress, clock, say_summary

KEPT = Clip(key="a")
SHORT = Clip(key="b", stage="keep_duration").reject("too_short")
BROKEN = Clip(fingerprint="c", stage="probe").quarantine("not_media", "no media")


@pytest.fixture(autouse=True)
def heard(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO):
        yield caplog


def worker_did(work: Path, operator: str, clips: list[Clip], seconds: float, process: int) -> None:
    """What a worker process leaves."""
    mine = Meter()
    mine.add(Work(clips, costs={"probe": Cost(len(clips), seconds, seconds / 2)}))
    mine.blocks, mine.busy_seconds = 1, seconds
    mine.save(work, operator, now=True)
    written = next(meter.folder(work).glob(f"{operator}@*-[0-9]*.json"))
    written.rename(written.with_name(f"{operator}@worker-p{process}.json"))


def parsed(text: str) -> dict[str, float]:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r'[a-z_]+(\{[a-z_]+="[^"]*"(,[a-z_]+="[^"]*")*\})? [0-9.e+-]+', line) for line in lines)
    return {line.rsplit(" ", 1)[0].removeprefix(PREFIX): float(line.rsplit(" ", 1)[1]) for line in lines}


def test_a_log_gets_lines_with_rate_outcomes_and_time(heard: pytest.LogCaptureFixture):
    with Progress("sources", 3, "sources") as progress:
        progress.advance(2, [KEPT, SHORT])
        progress.advance(1, [BROKEN])
    (line,) = heard.messages
    assert re.fullmatch(
        r"sources: 3 of 3 sources, [\d,]+ an hour, in 0:00:0\d, 1 kept, 1 rejected, 1 quarantined", line
    )


def test_a_phase_that_failed_says_nothing_of_an_end(heard: pytest.LogCaptureFixture):
    with pytest.raises(OSError, match="full"), Progress("clips", 9, "clips"):
        raise OSError("the disk is full")
    assert heard.messages == []


def test_a_phase_knows_when_it_will_end():
    phase = metrics.Phase(total=100, done=25, began=0.0, ended=50.0)
    assert (phase.eta, phase.per_hour) == (150.0, 1800.0)
    assert metrics.Phase(total=5).eta == 0.0
    assert clock(7390.4) == "2:03:10"


def test_a_counter_of_every_worker_is_added_up(tmp_path: Path):
    worker_did(tmp_path, "sources", [KEPT, SHORT], 2.0, process=1)
    worker_did(tmp_path, "sources", [BROKEN], 3.0, process=2)
    found = parsed(RunMetrics(tmp_path).text())
    assert found['stage_units_total{stage="probe"}'] == 3
    assert found['stage_seconds_total{stage="probe"}'] == 5
    assert found['stage_cpu_seconds_total{stage="probe"}'] == 2.5
    assert found['stage_refused_total{stage="keep_duration",outcome="rejected",reason="too_short"}'] == 1
    assert found['stage_refused_total{stage="probe",outcome="quarantined",reason="not_media"}'] == 1
    assert found['blocks_total{operator="sources"}'] == 2


def test_a_workers_time_is_busy_waiting_or_blocked(tmp_path: Path):
    worker_did(tmp_path, "sources", [KEPT], 12.0, process=1)
    say_operators(tmp_path, {"operators": {"sources": {"workers": 2, "seconds": 10.0, "queue": 4, "blocked": 3.0}}})
    numbers = RunMetrics(tmp_path)
    found = parsed(numbers.text())
    times = {
        s: found[f'worker_seconds_total{{operator="sources",state="{s}"}}'] for s in ("busy", "waiting", "blocked")
    }
    assert times == {"busy": 12, "waiting": 5, "blocked": 3}
    assert found['queue_blocks{operator="sources"}'] == 4
    # A worker writes late what it was busy with; a counter must not fall for that.
    worker_did(tmp_path, "sources", [KEPT], 4.0, process=2)
    later = parsed(numbers.text())
    assert later['worker_seconds_total{operator="sources",state="waiting"}'] == 5
    assert later['worker_seconds_total{operator="sources",state="busy"}'] == 16


def test_every_metric_has_its_row_in_the_table_and_none_is_made_up(tmp_path: Path):
    table = re.findall(r"^\| `(\w+)` \| (gauge|counter) \|", metrics.__doc__ or "", re.MULTILINE)
    assert dict(table) == {name: kind for name, (kind, _) in METRICS.items()}
    worker_did(tmp_path, "sources", [SHORT], 1.0, process=1)
    state = {"workers": 1, "seconds": 1.0, "queue": 0, "blocked": 0.0}
    say_operators(tmp_path, {"operators": {"sources": state}, "object_store": {"peak": 5, "spilled": 0}})
    numbers = RunMetrics(tmp_path)
    with Progress("sources", 2, "sources", numbers) as progress:
        progress.advance(1, [KEPT])
    assert {name for name, found in numbers.samples().items() if found} == set(METRICS)
    found = parsed(numbers.text())
    assert found['units{phase="sources",state="done"}'] == 1
    assert found['rows_total{phase="sources",outcome="kept"}'] == 1


def test_the_numbers_are_served_and_kept_in_a_file_without_a_dashboard(tmp_path: Path):
    with exported(tmp_path, port=0):
        pass
    with exported(tmp_path, port=_free_port()) as numbers:
        numbers.begin("clips", 7)
        port = numbers.port
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            served = answer.read().decode()
        with pytest.raises(ConfigError, match="cannot be opened"), exported(tmp_path / "other", port=port):
            pass
    assert parsed(served)['units{phase="clips",state="total"}'] == 7
    assert parsed((tmp_path / "metrics.prom").read_text())['units{phase="clips",state="total"}'] == 7


def test_bytes_are_those_of_sources_read_and_of_shards_written(tmp_path: Path):
    source = tmp_path / "a.mp4"
    source.write_bytes(b"x" * 500)
    numbers = RunMetrics(tmp_path)
    with Progress("sources", 1, "sources", numbers) as progress:
        progress.advance(1, [Clip(key=key, source=str(source)) for key in "ab"])
    metrics.say_written(tmp_path, 300)
    metrics.say_written(tmp_path, 40)
    found = parsed(numbers.text())
    assert (found['bytes_total{kind="read"}'], found['bytes_total{kind="written"}']) == (500, 340)


def test_a_run_begins_at_nothing(tmp_path: Path):
    worker_did(tmp_path, "sources", [KEPT], 2.0, process=1)
    with exported(tmp_path) as numbers:
        assert not numbers.samples()["stage_units_total"]


def test_the_end_has_a_line_per_stage(tmp_path: Path, heard: pytest.LogCaptureFixture):
    worker_did(tmp_path, "sources", [KEPT, BROKEN], 2.0, process=1)
    say_summary(RunMetrics(tmp_path))
    assert heard.messages == ["probe: 2 seen, 1 refused, 2.0 s (1.0 s of processor)"]


def _free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("", 0))
        return found.getsockname()[1]
