"""What kill -9 costs a training run: a worker or the driver at random moments, and what comes after.

    python -m tests.benchmarks.training_kills [--kills 10] [--workers 2] [--steps 300] [--seed 0] [--folder FOLDER]

A tiny model of the real classes trains on Ray CPU workers. A killed worker is replaced by the run itself; a killed
driver is started again by the same command. Compared with an unbroken run, bit for bit: every step's loss and gradient
norm, the exported weights. Told: seconds from SIGKILL to the first new step, steps done twice, MLflow runs (one,
whatever happened). Some kills hit while a run is starting, the others while it trains, writes a checkpoint or removes
one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psutil

from training.callbacks.metrics_file import read_lines

ROOT = Path(__file__).parents[2]
TARGETS = ("worker", "driver")
WORKER = "RayTrainWorker"
"""Part of the title of the processes that train."""
SHARE_STARTING = 0.2
"""Of kills that hit a run on its way to its first step."""
SPAN_SECONDS = 4.0
"""The others come this long after a first step, at most."""
EVERY = 10
"""Steps between checkpoints."""
PATIENCE = 300.0
"""Seconds without a new step after which the benchmark gives up."""


@dataclass
class Toll:
    """What the kills cost."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {target: [] for target in TARGETS})
    """From SIGKILL to the first new step."""
    lost: list[int] = field(default_factory=list)
    """Steps done again after a kill."""
    starting: int = 0
    """More kills, of drivers before a first step; their time is in that of the kill before."""


@dataclass
class Trial:
    """A run that is killed."""

    command: list[str]
    out: Path
    log: Path
    dice: random.Random
    driver: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """The same command, again."""
        with self.log.open("ab") as output:
            self.driver = subprocess.Popen(self.command, cwd=ROOT, env=environment(), stdout=output, stderr=output)

    def run(self, kills: int, toll: Toll) -> None:
        """Kills so many times, then waits for the end."""
        self.start()
        self._first_step(0.0, 0)
        for number in range(kills):
            target = TARGETS[number % len(TARGETS)]
            time.sleep(self.dice.uniform(0, SPAN_SECONDS))
            if self._ended():
                sys.exit(f"the run ended after {number} kills: give more --steps")
            killed, before, file = time.time(), last_step(self.out), identity(self.out)
            self._kill(target)
            if self.dice.random() < SHARE_STARTING and number + 1 < kills:
                time.sleep(self.dice.uniform(0, 2 * SPAN_SECONDS))
                file = identity(self.out)
                toll.starting += self._kill("driver")
            first = self._first_step(killed, file)
            toll.seconds[target].append(time.time() - killed)
            toll.lost.append(max(0, before - first + 1))
            print(f"kill {number + 1}: {target} at step {before}, on from {first - 1} in "
                  f"{toll.seconds[target][-1]:.1f} s", flush=True)  # fmt: skip
        assert self.driver is not None
        if self.driver.wait():
            sys.exit(f"the run failed; see {self.log}")

    def _ended(self) -> bool:
        assert self.driver is not None
        return self.driver.poll() is not None

    def _kill(self, target: str) -> bool:
        """SIGKILL for one process; a driver is started again when its Ray is gone."""
        assert self.driver is not None
        family = children(self.driver.pid)
        found = [process for process in family if WORKER in title(process)]
        if target == "worker" and found:
            self.dice.choice(found).kill()
            return True
        self.driver.kill()
        self.driver.wait()
        _, alive = psutil.wait_procs(family, timeout=20)
        for process in alive:
            process.kill()
        psutil.wait_procs(alive, timeout=5)
        self.start()
        return True

    def _first_step(self, after: float, file: int) -> int:
        """Waits for the first step that was done `after` (seconds since 1970) in another metrics file than `file`."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if self._ended() and self.driver is not None and self.driver.returncode:
                sys.exit(f"the run failed; see {self.log}")
            if identity(self.out) not in (0, file):
                steps = [int(line["step"]) for line in read_lines(self.out / "metrics.jsonl") if line["time"] > after]
                if steps:
                    return min(steps)
            time.sleep(0.02)
        sys.exit(f"no new step for {PATIENCE:.0f} s; see {self.log}")


def identity(out: Path) -> int:
    """Of the metrics file, which each session writes anew; 0 where there is none."""
    path = out / "metrics.jsonl"
    return path.stat().st_ino if path.is_file() else 0


def last_step(out: Path) -> int:
    return max((int(line["step"]) for line in read_lines(out / "metrics.jsonl")), default=0)


def children(driver: int) -> list[psutil.Process]:
    try:
        return psutil.Process(driver).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()[:1])
    except psutil.Error:
        return ""


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")}
    return kept | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def command(out: Path, data: Path, base: Path, steps: int, workers: int) -> list[str]:
    settings = {
        "data": data, "out": out, "base": base, "steps": steps, "num-workers": workers, "checkpoint-every": EVERY,
        "height": 32, "width": 32, "num-frames": 5, "batch-size": 4, "micro-batch-size": 1, "warmup-steps": 0,
        "fresh-pose": False, "max-restarts": 1000, "image-noise": True,
    }  # fmt: skip
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "training", "mini", *words]


def write_data(root: Path, clips: int = 24) -> Path:
    """A data set folder of marionettes, as curation writes it."""
    import numpy as np

    from dynamictrl.media.video import encode_video
    from dynamictrl.mini.marionettes import sample_clip
    from dynamictrl.samples import shards

    samples = []
    for number in range(clips):
        clip = sample_clip(np.random.default_rng(number), num_frames=13, height=96, width=64, fps=12)
        info = {"schema_version": shards.SCHEMA_VERSION, "fps": 12.0, "frames": 13, "height": 96, "width": 64}
        members = {
            "mp4": encode_video(clip.frames, 12),
            "pose.npz": clip.pose.to_npz(),
            "mask.npz": shards.pack_mask(clip.persons, clip.clothes),
            "txt": clip.caption.encode(),
            "json": json.dumps(info).encode(),
        }
        samples.append(shards.Sample(f"clip{number:04d}", members))
    shards.write_shard(root / "shards" / shards.SHARD_NAME.format(0), samples)
    shards.write_json(root / "dataset.json", {"schema_version": shards.SCHEMA_VERSION, "recipe": "benchmark"})
    return root


def differences(out: Path, whole: Path) -> list[str]:
    """What of a run is not, bit for bit, what the unbroken one left."""
    from safetensors.numpy import load_file

    lines = [read_lines(folder / "metrics.jsonl") for folder in (whole, out)]
    found = [
        name
        for name in ("step", "loss", "grad_norm", "learning_rate")
        if [line[name] for line in lines[0]] != [line[name] for line in lines[1]]
    ]
    weights = [
        load_file(folder / "model" / "transformer" / "diffusion_pytorch_model.safetensors") for folder in (whole, out)
    ]
    unequal = [name for name in weights[0] if weights[0][name].tobytes() != weights[1][name].tobytes()]
    return found + ([f"{len(unequal)} of {len(weights[0])} weights"] if unequal else [])


def mlflow_runs(out: Path) -> int:
    from training.release.tracking import TrackedRun

    client = TrackedRun(**json.loads((out / "mlflow.json").read_text())).client()
    return len(client.search_runs([experiment.experiment_id for experiment in client.search_experiments()]))


def report(toll: Toll, kills: int) -> None:
    print("\n| killed | kills | seconds to the first new step: p50 | max |\n|---|---|---|---|")
    every = [second for seconds in toll.seconds.values() for second in seconds]
    for target, seconds in [*toll.seconds.items(), ("all", every)]:
        if seconds:
            print(f"| {target} | {len(seconds)} | {median(seconds):.1f} | {max(seconds):.1f} |")
    print(
        f"\n{kills} kills and {toll.starting} more of runs that were starting (their time is in the row of the first)."
    )
    print(f"steps done again after a kill: {median(toll.lost):.0f} (p50), {max(toll.lost)} (max) of at most {EVERY}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=None, help="is emptied; a temporary one where none is given")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="training-kills-"))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    from dynamictrl.mini.tiny import write_tiny_model

    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(f"on {machine}; {given.workers} workers, {given.steps} steps, seed {given.seed}", flush=True)
    data, base, log = write_data(folder / "set"), write_tiny_model(folder / "base"), folder / "drivers.log"
    whole, out = folder / "whole", folder / "killed"
    with log.open("ab") as output:
        began = time.monotonic()
        words = command(whole, data, base, given.steps, given.workers)
        if subprocess.run(words, cwd=ROOT, env=environment(), stdout=output, stderr=output, check=False).returncode:
            sys.exit(f"the unbroken run failed; see {log}")
    lines = read_lines(whole / "metrics.jsonl")
    print(f"unbroken: {time.monotonic() - began:.0f} s, {lines[-1]['time'] - lines[0]['time']:.0f} s from the first "
          f"step to the last; drivers' log: {log}", flush=True)  # fmt: skip
    toll = Toll()
    trial = Trial(command(out, data, base, given.steps, given.workers), out, log, random.Random(given.seed))
    trial.run(given.kills, toll)
    report(toll, given.kills)
    found, runs = differences(out, whole), mlflow_runs(out)
    print(f"differences from the unbroken run: {', '.join(found) or 'none, bit for bit'}; MLflow runs: {runs}")
    sys.exit(1 if found or runs != 1 else 0)


if __name__ == "__main__":
    main()
