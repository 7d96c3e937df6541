"""What kill -9 costs a curation: the driver, a worker or the raylet at random points, and the same command again.

    python -m tests.benchmarks.curation_kills [--kills 50] [--sources 60] [--workers 2] [--seed 0] [--folder FOLDER]

Compared with an unbroken run: clips lost and doubled, the bytes of every shard, of the manifest and of the quarantine.
Rework is counted by the stages themselves (units that went through a stage that counts, more often than once); it may
be one unit per worker process that died. Every second kill of a driver or raylet leaves its workers alone, which go on
for up to a minute, and the command is given again at once. A run that ends before it could be killed is compared, and
the kills go on in a new folder; a worker's death does not end a run, so several may hit the same one.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from dynamictrl.samples.shards import open_dataset
from pipelines.datasets.verify import verify
from pipelines.publishing import dataset_files
from tests.benchmarks.curation_pieces import EXECUTIONS, ROOT, command, environment, executions, machine, write_sources

TARGETS = ("driver", "worker", "raylet")
WORKING = tuple(f"ray::{name}" for name in ("MapBatches", "_map_task", "MapWorker", "_commit"))
"""Titles of processes that are at work for us; Ray's own actors are none."""
PATIENCE = 120
"""Seconds for a driver to end by itself when its raylet is gone."""
MOST_FAILED = 5
SHARE_FROM_START = 0.2
"""Of kills at any moment from the start of the command on; the others hit while units are worked on."""


@dataclass
class Toll:
    """What happened so far."""

    kills: Counter[str] = field(default_factory=Counter)
    at_once: int = 0
    """Kills after which the command was given again beside what was left of the dead run."""
    starts: int = 0
    failed: int = 0
    """Starts that ended with an error without having been killed, as where Ray does not come up on a busy machine."""
    folders: int = 0
    lost: int = 0
    doubled: int = 0
    unequal: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    rework: int = 0
    units: int = 0
    window: float = 0.8
    """Share of an unbroken run's time in which kills are placed; less, where runs ended before they were hit."""
    in_flight: int = 0
    """Units that may have been in the hands of the processes that died."""


@dataclass(frozen=True)
class Trial:
    """How a run is started and killed."""

    videos: Path
    out: Path
    workers: int
    dice: random.Random
    seconds: float
    """That work takes in an unbroken run."""
    startup: float
    """Seconds of an unbroken run before the first unit."""

    def run(self, toll: Toll, target: str, log: Path) -> tuple[bool, int]:
        """One start of the command; whether it ended by itself, and how often it was hit."""
        with log.open("ab") as output:
            words = command(self.videos, self.out, workers=self.workers, shard_size=0.05)
            driver = subprocess.Popen(words, cwd=ROOT, env=environment(), stdout=output, stderr=output)
        toll.starts += 1
        before, began, hits = len(executions(self.out)), time.monotonic(), 0
        anywhere = self.dice.random() < SHARE_FROM_START
        span = toll.window * (self.startup + self.seconds if anywhere else self.seconds)
        until = self.dice.uniform(0, span)
        while driver.poll() is None:
            if not anywhere and len(executions(self.out)) <= before and hits == 0:
                began = time.monotonic()
            if time.monotonic() - began > until and self._kill(driver, target, toll):
                hits += 1
                if target != "worker":
                    break
                # The run goes on: the next death is someone else's.
                target = TARGETS[(sum(toll.kills.values())) % len(TARGETS)]
                began, until, anywhere = time.monotonic(), self.dice.uniform(0, toll.window * self.seconds), True
            time.sleep(0.02)
        _end(driver)
        return driver.returncode == 0, hits

    def _kill(self, driver: subprocess.Popen[bytes], target: str, toll: Toll) -> bool:
        """Kills -9 one process of a run; False where there is none of the kind at the moment."""
        found = _processes(driver.pid, target)
        if not found:
            return False
        family = [] if target == "worker" else psutil.Process(driver.pid).children(recursive=True)
        victim = self.dice.choice(found)
        try:
            victim.kill()
        except psutil.NoSuchProcess:
            return False
        toll.kills[target] += 1
        toll.in_flight += 1 if target == "worker" else self.workers
        if target == "driver":
            driver.wait()
        if target == "raylet":
            _wait(driver)
        if target != "worker" and self.dice.random() < 0.5:
            toll.at_once += 1
        else:
            _bury(family)
        return True


def _processes(driver: int, target: str) -> list[psutil.Process]:
    try:
        if target == "driver":
            return [psutil.Process(driver)]
        family = psutil.Process(driver).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    found = []
    for process in family:
        try:
            line = process.cmdline()
        except psutil.Error:
            continue
        name = line[0] if line else ""
        if (target == "worker" and name.startswith(WORKING)) or (target == "raylet" and Path(name).name == "raylet"):
            found.append(process)
    return sorted(found, key=lambda process: process.pid)


def _wait(driver: subprocess.Popen[bytes]) -> None:
    try:
        driver.wait(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        driver.kill()
        driver.wait()


def _end(driver: subprocess.Popen[bytes]) -> None:
    if driver.poll() is None:
        _wait(driver)


def _bury(family: list[psutil.Process]) -> None:
    """Waits for what Ray leaves behind, and kills it: as a cluster manager that starts nodes anew."""
    _, alive = psutil.wait_procs(family, timeout=20)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=5)


def contents(out: Path) -> dict[str, bytes]:
    """What must be equal, by name."""
    names = [*sorted(p.relative_to(out) for p in (out / "shards").glob("*.tar")), Path("manifest.parquet")]
    return {str(name): (out / name).read_bytes() for name in [*names, Path("quarantine.jsonl")]}


def compare(out: Path, whole: Path, toll: Toll) -> None:
    """Adds a finished folder to the toll."""
    expected, found = contents(whole), contents(out)
    toll.folders += 1
    toll.unequal += [n for n in sorted(expected.keys() | found.keys()) if expected.get(n) != found.get(n)]
    keys = Counter(row["key"] for row in dataset_files.read_manifest(out / "manifest.parquet"))
    wanted = {row["key"] for row in dataset_files.read_manifest(whole / "manifest.parquet")}
    toll.lost += len(wanted - keys.keys())
    toll.doubled += sum(count - 1 for count in keys.values()) + len(keys.keys() - wanted)
    toll.problems += verify(open_dataset(out).root)
    count_rework(out, toll)


def count_rework(out: Path, toll: Toll) -> None:
    units = Counter(executions(out))
    toll.units += len(units)
    toll.rework += units.total() - len(units)


def unbroken(videos: Path, out: Path, workers: int, log: Path) -> tuple[float, float]:
    """Runs without a kill; seconds before the first unit, and from there to the end."""
    began = time.monotonic()
    with log.open("ab") as output:
        words = command(videos, out, workers=workers, shard_size=0.05)
        driver = subprocess.Popen(words, cwd=ROOT, env=environment(), stdout=output, stderr=output)
    first = 0.0
    while driver.poll() is None:
        if not first and (out / ".work" / EXECUTIONS).is_file():
            first = time.monotonic()
        time.sleep(0.05)
    if driver.returncode:
        sys.exit(f"the unbroken run failed; see {log}")
    return first - began, time.monotonic() - first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--sources", type=int, default=60)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=None, help="is emptied; a temporary one where none is given")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="curation-kills-"))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    print(f"on {machine()}; {given.sources} sources, {given.workers} workers, seed {given.seed}")
    videos = write_sources(folder / "videos", given.sources, frames=(13, 40, 90), height=96, width=128)
    (folder / "videos" / "000" / "broken.mp4").write_bytes(b"no video")
    log = folder / "drivers.log"
    startup, seconds = unbroken(videos, folder / "whole" / "set", given.workers, log)
    print(f"unbroken: {startup:.1f} s to the first unit, {seconds:.1f} s from there; drivers' log: {log}", flush=True)
    toll, dice = Toll(), random.Random(given.seed)
    while True:
        out = folder / f"killed-{toll.folders}" / "set"
        trial = Trial(videos, out, given.workers, dice, seconds, startup)
        ended = False
        while not ended:
            enough = sum(toll.kills.values()) >= given.kills
            target = TARGETS[sum(toll.kills.values()) % len(TARGETS)]
            if enough:
                trial = Trial(videos, out, given.workers, dice, 1e9, 0.0)
            ended, hits = trial.run(toll, target, log)
            if ended and not hits:
                toll.window *= 0.7
            if not ended and not hits:
                toll.failed += 1
                if toll.failed > MOST_FAILED:
                    sys.exit(f"{toll.failed} runs failed that nobody had killed; see {log}")
            print(
                f"  {sum(toll.kills.values())} kills, {toll.starts} starts, {len(set(executions(out)))} units",
                flush=True,
            )
        compare(out, folder / "whole" / "set", toll)
        if sum(toll.kills.values()) >= given.kills:
            break
    print(table(toll))
    sys.exit(bool(toll.lost or toll.doubled or toll.unequal or toll.problems or toll.rework > toll.in_flight))


def table(toll: Toll) -> str:
    kills = ", ".join(f"{name} {count}" for name, count in sorted(toll.kills.items()))
    rows = [
        ("kills", f"{sum(toll.kills.values())} ({kills})"),
        ("of them followed at once by the same command, beside workers of the dead run", toll.at_once),
        ("starts of the command, failed ones that were not killed", f"{toll.starts}, {toll.failed}"),
        ("data sets finished", f"{toll.folders}"),
        ("clips lost, doubled", f"{toll.lost}, {toll.doubled}"),
        ("files whose bytes differ from the unbroken run's", f"{len(toll.unequal)} {toll.unequal[:3] or ''}"),
        ("problems that `verify` finds", f"{len(toll.problems)}"),
        ("units worked on again, of those that dead processes may have held", f"{toll.rework} of {toll.in_flight}"),
        ("units in all", f"{toll.units}"),
    ]
    return "\n".join(["| what | count |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


if __name__ == "__main__":
    main()
