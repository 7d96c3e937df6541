"""Units that kill their worker, and rows that must not fill the object store, on a local Ray."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from dynamictrl.errors import CheckpointError
from pipelines.clip import Clip
from pipelines.records import attempts
from pipelines.stage import Stage
from pipelines.watching import metrics
from pipelines.watching.progress import Progress
from pipelines.work.clip_operator import ClipOperator
from pipelines.work.operators import Operator
from pipelines.work.runner import LocalRunner, Runner


@dataclass(frozen=True)
class Poisonous(Stage):
    """Dies of some clips, as a decoder or a driver of a GPU does."""

    deadly: tuple[str, ...] = ()

    def process(self, clip: Clip) -> Iterable[Clip]:
        if clip.key in self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        with (Path(clip.work) / "looked-at").open("a") as notes:
            notes.write(f"{clip.key}\n")
        yield clip.with_scores(looked=1)


@dataclass(frozen=True)
class BreaksInSetup(Stage):
    """Kills the process that loads it."""

    def setup(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def process(self, clip: Clip) -> Iterable[Clip]:
        yield clip


@dataclass(frozen=True)
class Slow(Stage):
    """Takes a hundredth of a second per frame."""

    def process(self, clip: Clip) -> Iterable[Clip]:
        time.sleep(clip.frames / 100)
        yield clip.with_scores(slow=1)


def clips(work: Path, count: int, frames: Sequence[int] = (40,)) -> list[Clip]:
    work.mkdir(exist_ok=True)
    return [Clip(key=f"clip-{i:03d}", work=str(work), frames=frames[i % len(frames)]) for i in range(count)]


def taken(runner: Runner, operators: Sequence[Operator], units: Sequence[Clip]) -> dict[str, Clip]:
    rows: list[Clip] = []
    counts: list[int] = []

    def advance(units: int, clips: Sequence[Clip]) -> None:
        counts.append(units)
        rows.extend(clips)

    runner.run(list(operators), units, advance)
    assert sum(counts) == len(units) == len(rows)
    return {row.key: row for row in rows}


@pytest.fixture
def runner(local_ray: None) -> Runner:
    from pipelines.cluster.ray_runner import RayRunner

    return RayRunner(workers=2)


def test_what_kills_its_worker_is_charged_and_its_neighbours_are_done_once(runner: Runner, tmp_path: Path):
    work, deadly = tmp_path / "work", ("clip-007", "clip-031")
    units = clips(work, 40)
    with metrics.exported(work) as numbers, Progress("clips", 40, "clips", numbers) as progress:
        rows: list[Clip] = []
        operator = ClipOperator("poisonous", (Poisonous(deadly=deadly),), work, run_id="first")
        runner.run([operator], units, lambda n, clips: (progress.advance(n, clips), rows.extend(clips))[0])
        refused = {row.key: (row.rejected, row.stage) for row in rows if row.rejected}
        assert refused == dict.fromkeys(deadly, (attempts.CRASHED, "poisonous"))
        looked = Counter((work / "looked-at").read_text().split())
        assert looked == dict.fromkeys((u.key for u in units if u.key not in deadly), 1)
        lost = [value for _, value in numbers.samples()["attempts_lost_total"]]
        assert sum(lost) == attempts.MOST * len(deadly)
    # It is on record: the next run does not die of it again, nor look at anything.
    again = taken(runner, [operator], units)
    assert {key for key, row in again.items() if row.rejected} == set(deadly)
    assert Counter((work / "looked-at").read_text().split()) == looked


def test_workers_that_die_while_they_set_up_end_the_run(runner: Runner, tmp_path: Path):
    operator = ClipOperator("breaks", (BreaksInSetup(),), tmp_path / "work", run_id="first")
    with pytest.raises(CheckpointError, match="processes in a row died while they set up breaks"):
        taken(runner, [operator], clips(tmp_path / "work", 4))


def test_ten_times_longer_clips_fill_no_store_and_come_out_as_in_a_loop(runner: Runner, tmp_path: Path):
    units = clips(tmp_path / "work", 120, frames=(4, 4, 4, 4, 4, 4, 4, 4, 4, 40))
    operators = [ClipOperator("slow", (Slow(),), tmp_path / "work")]
    with metrics.exported(tmp_path / "work") as numbers:
        rows = taken(runner, operators, units)
        store = {labels["state"]: value for labels, value in numbers.samples()["object_store_bytes"]}
    assert store["spilled"] == 0
    assert 0 < store["peak"] < 2**20
    local = [Clip.from_row({**unit.to_row(), "work": str(tmp_path / "loop")}) for unit in units]
    looped = taken(LocalRunner(), [ClipOperator("slow", (Slow(),), tmp_path / "loop")], local)
    assert {key: row.digest for key, row in rows.items()} == {key: row.digest for key, row in looped.items()}


@pytest.fixture(autouse=True)
def quiet() -> None:
    logging.getLogger("ray").setLevel(logging.ERROR)
