"""A pipeline without weights, sources that cost nothing to make, and processor time that no dead process takes along.

What the benchmarks of curation share. As a command it is the driver that they start, measure and kill:

    python -m tests.benchmarks.curation_pieces --videos VIDEOS --out DATASET [--workers 2] [--local]
"""

from __future__ import annotations

import argparse
import os
import platform
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from dynamictrl.poses.pose import NUM_KEYPOINTS, PoseSequence
from dynamictrl.samples.shards import pack_mask
from pipelines.clip import Clip
from pipelines.files import storage
from pipelines.pipeline import Pipeline
from pipelines.stage import Stage
from pipelines.stages.cut_clips import CutClips
from pipelines.stages.fetch import Fetch
from pipelines.stages.find_videos import FindVideos
from pipelines.stages.keep_duration import KeepDuration
from pipelines.stages.probe import Probe
from pipelines.stages.split_shots import SplitShots
from pipelines.stages.write_shards import WriteShards

ROOT = Path(__file__).parents[2]
FPS = 12
EXECUTIONS = "executions"
"""In the work folder: a line per unit that went through a stage that counts, recalled ones not."""


def note_execution(clip: Clip) -> None:
    # Opened to append: lines of several processes stay whole.
    with (Path(clip.work) / EXECUTIONS).open("a") as notes:
        notes.write(f"{clip.key or clip.fingerprint}\n")


@dataclass(frozen=True)
class CountSource(Stage):
    """Notes that a source was worked on."""

    per: ClassVar[Literal["source", "clip"]] = "source"

    def process(self, clip: Clip) -> Iterable[Clip]:
        note_execution(replace(clip, key=""))
        yield clip


@dataclass(frozen=True)
class StandStill(Stage):
    """In place of pose, masks and captions: says that someone stands in the middle."""

    def process(self, clip: Clip) -> Iterable[Clip]:
        keypoints = np.full((clip.frames, 1, NUM_KEYPOINTS, 2), (0.5, 0.5), np.float32)
        keypoints[:, 0, :18, 1] = np.linspace(0.15, 0.85, 18)
        box = np.tile(np.array([0.4, 0.1, 0.6, 0.9], np.float32), (clip.frames, 1, 1))
        pose = PoseSequence(keypoints, np.ones((clip.frames, 1, NUM_KEYPOINTS), np.float32), box, np.array([1], "i4"))
        mask = np.zeros((clip.frames, clip.height, clip.width), np.uint8)
        mask[:, clip.height // 8 : -clip.height // 8, clip.width * 2 // 5 : clip.width * 3 // 5] = 1
        storage.write_bytes(clip.file("pose.npz"), pose.to_npz())
        storage.write_bytes(clip.file("mask.npz"), pack_mask(mask))
        note_execution(clip)
        yield replace(clip, caption="someone stands still").with_file("pose.npz").with_file("mask.npz")


@dataclass(frozen=True, kw_only=True)
class Weightless(Pipeline):
    """A whole pipeline that needs no weights, with stages that count."""

    find: FindVideos = field(default_factory=FindVideos)
    fetch: Fetch = field(default_factory=Fetch)
    probe: Probe = field(default_factory=Probe)
    counted: CountSource = field(default_factory=CountSource)
    shots: SplitShots = field(default_factory=SplitShots)
    duration: KeepDuration = field(default_factory=lambda: KeepDuration(shortest=0.5))
    cut: CutClips = field(default_factory=lambda: CutClips(longest=5.0, fps=FPS, width=640, height=640))
    person: StandStill = field(default_factory=StandStill)
    shards: WriteShards = field(default_factory=lambda: WriteShards(size=1.0))


def weightless(
    videos: Path, out: Path, *, workers: int = 0, local: bool = False, shard_size: float = 1.0
) -> Weightless:
    shards = WriteShards(size=shard_size)
    return Weightless(videos=(str(videos),), out=str(out), workers=workers, local=local, shards=shards)


def moving_blocks(seed: int, frames: int, height: int, width: int) -> NDArray[np.uint8]:
    """Coarse coloured blocks, sliding."""
    blocks = np.random.default_rng(seed).integers(0, 255, (-(-height // 16), -(-width // 16), 3), dtype=np.uint8)
    picture = np.kron(blocks, np.ones((16, 16, 1), np.uint8))[:height, :width]
    return np.stack([np.roll(picture, 2 * i, axis=1) for i in range(frames)])


def write_sources(
    folder: Path,
    count: int,
    *,
    frames: Sequence[int] = (13,),
    height: int = 48,
    width: int = 64,
    per_folder: int = 1000,
) -> Path:
    """Videos of different bytes: copies of a few, each with an own `free` box behind it, as mp4 allows."""
    from dynamictrl.media.video import encode_video

    contents = [encode_video(moving_blocks(i, n, height, width), FPS) for i, n in enumerate(frames)]
    for number in range(count):
        mark = struct.pack(">I4sQ", 16, b"free", number)
        path = folder / f"{number // per_folder:03d}" / f"{number:06d}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents[number % len(contents)] + mark)
    return folder


def command(videos: Path, out: Path, *, workers: int, local: bool = False, shard_size: float = 1.0) -> list[str]:
    """The driver's command line; to be started in `ROOT`."""
    words = ["--videos", str(videos), "--out", str(out), "--workers", str(workers), "--shard-size", str(shard_size)]
    return [sys.executable, "-m", "tests.benchmarks.curation_pieces", *words, *(["--local"] if local else [])]


def environment() -> dict[str, str]:
    """Of a driver: a Ray of its own, one thread per library."""
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return {**kept, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}


def executions(out: Path) -> list[str]:
    """Units in the order in which they were worked on, again where that was so."""
    try:
        return (out / ".work" / EXECUTIONS).read_text().split()
    except FileNotFoundError:
        return []


def machine() -> str:
    """What a benchmark ran on, in a line."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else ():
        if line.startswith("model name"):
            model = line.split(":")[1].strip()
            break
    cores = len(os.sched_getaffinity(0))
    return f"{model}, {cores} cores, load {os.getloadavg()[0]:.1f} before, Python {platform.python_version()}"


@dataclass
class Account:
    """Processor seconds of a process and all that came of it, the ended ones included."""

    group: Path | None
    """A control group of its own; None where none can be made, then /proc is sampled."""
    seconds: float = 0.0
    peak_mib: float = 0.0
    """Of the driver alone."""
    _seen: dict[tuple[int, str], float] = field(default_factory=dict)

    @property
    def way(self) -> str:
        return "control group" if self.group else "/proc, 20 times a second (a lower bound)"

    def enter(self) -> None:
        """Called in the new process."""
        if self.group:
            (self.group / "cgroup.procs").write_text("0")

    def watch(self, driver: subprocess.Popen[bytes], done: threading.Event) -> None:
        """Until the driver has ended, its memory; without a group, its descendants' time too."""
        while not done.wait(0.05):
            self.peak_mib = max(self.peak_mib, _peak_mib(driver.pid))
            if self.group is None:
                self._sample(driver.pid)

    def _sample(self, root: int) -> None:
        import psutil

        for process in [psutil.Process(root), *psutil.Process(root).children(recursive=True)]:
            try:
                times, began = process.cpu_times(), process.create_time()
            except psutil.Error:
                continue
            self._seen[process.pid, f"{began}"] = times.user + times.system

    def close(self) -> None:
        if self.group is None:
            self.seconds = sum(self._seen.values())
            return
        deadline = time.monotonic() + 30
        # Ray's processes end a moment after the driver.
        while (self.group / "cgroup.procs").read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        stat = self.group / "cpu.stat"
        if (usage := self.group / "cpuacct.usage").is_file():
            self.seconds = int(usage.read_text()) / 1e9
        else:
            self.seconds = int(stat.read_text().split("usage_usec")[1].split()[0]) / 1e6
        self.group.rmdir()


@contextmanager
def accounted(words: Sequence[str], log: Path) -> Iterator[tuple[subprocess.Popen[bytes], Account]]:
    """A process that is started here; when the block is left it is waited for and its account is closed."""
    account = Account(_new_group())
    done = threading.Event()
    with log.open("wb") as output:
        driver = subprocess.Popen(
            words, cwd=ROOT, env=environment(), stdout=output, stderr=output, preexec_fn=account.enter
        )
    watching = threading.Thread(target=account.watch, args=(driver, done), daemon=True)
    watching.start()
    try:
        yield driver, account
        driver.wait()
    finally:
        driver.kill()
        done.set()
        watching.join()
        account.close()


def _new_group() -> Path | None:
    for root in (Path("/sys/fs/cgroup/cpuacct"), Path("/sys/fs/cgroup")):
        group = root / f"curation-{os.getpid()}-{time.monotonic_ns()}"
        try:
            group.mkdir()
        except OSError:
            continue
        if (group / "cgroup.procs").exists() and ((group / "cpuacct.usage").exists() or (group / "cpu.stat").exists()):
            return group
    return None


def _peak_mib(process: int) -> float:
    try:
        status = Path(f"/proc/{process}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError):
        return 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shard-size", type=float, default=1.0)
    parser.add_argument("--local", action="store_true")
    given = parser.parse_args()
    import logging

    from pipelines import job

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    # What is pickled for workers must be found there: not in a module called __main__.
    from tests.benchmarks.curation_pieces import weightless as pipeline_of

    pipeline = pipeline_of(
        given.videos, given.out, workers=given.workers, local=given.local, shard_size=given.shard_size
    )
    outcome = job.run("weightless", pipeline)
    print("done" if outcome.changed else "nothing to do", outcome.description["counts"])


if __name__ == "__main__":
    main()
