"""What watching costs a training step: the loop's time outside data, forward, backward and optimizer.

    python -m tests.benchmarks.training_overhead [--steps 60] [--rounds 3] [--shape tiny-1.5] [--device cpu]

Real steps of a random base on random encodings, in this process, in turns: with nothing that watches, with the metrics
file, and with MLflow in a SQLite file, on a local server, and on one that does not answer (those three where mlflow is
installed). What is counted is the wall time from one step's end to the next, less the step's four phases: the meter's
own arithmetic and collective, the guard, the callbacks. It is told per step in milliseconds and as a share of a step of
`--step-seconds`. The first steps of every run are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import logging
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median, quantiles

import torch

from tests.benchmarks.training_pieces import SHAPES, recipe_for, write_base, write_data
from training.callbacks import Callback
from training.callbacks.metrics_file import MetricsFile
from training.callbacks.mlflow_log import MlflowLog
from training.callbacks.progress import Progress
from training.callbacks.sessions import Sessions
from training.config import Recipe, Run
from training.release.tracking import TrackedRun
from training.trainer import train

WARM_UP = 5
PHASES = ("data", "forward", "backward", "optimizer")
Watching = Callable[[Run], list[Callback]]


class Laps(Callback):
    """Stands last: from the end of one step to the end of the next, and what of it were the step's phases."""

    def __init__(self):
        self.outside: list[float] = []
        self.whole: list[float] = []
        self._before = 0.0

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        now = time.perf_counter()
        if step > WARM_UP:
            self.whole.append(now - self._before)
            self.outside.append(self.whole[-1] - sum(metrics[f"{phase}_seconds"] for phase in PHASES))
        self._before = now


def nothing(run: Run) -> list[Callback]:
    """No callback; meter and guard belong to the loop."""
    return []


def files(run: Run) -> list[Callback]:
    """What every run keeps in its folder, and its progress."""
    metrics = run.out / "metrics.jsonl"
    shown = Progress(run.recipe.optimization.steps, log_every=10)
    return [Sessions(run.out / "sessions.jsonl", metrics), MetricsFile(metrics), shown]


def with_mlflow(uri_of: Callable[[Run], str]) -> Watching:
    """The files and a new MLflow run on a server."""

    def callbacks(run: Run) -> list[Callback]:
        uri = uri_of(run)
        known = TrackedRun(uri, "0" * 32)
        if "127.0.0.1:9/" not in uri:
            client = known.client()
            experiment = client.create_experiment(run.out.name)
            known = TrackedRun(uri, client.create_run(experiment).info.run_id)
        return [*files(run), MlflowLog(known, run.out / "metrics.jsonl")]

    return callbacks


@contextlib.contextmanager
def tracking_server(folder: Path) -> Iterator[str]:
    """A local MLflow server's address, while the block runs."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
               "--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]  # fmt: skip
    log = (folder / "server.log").open("w")
    server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        for _ in range(300):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            time.sleep(1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def measured(recipe: Recipe, data: Path, out: Path, watching: Watching) -> Laps:
    """One run's laps."""
    out.mkdir()
    run = Run(name="overhead", data=data, out=out, recipe=recipe)
    laps = Laps()
    train(run, [*watching(run), laps])
    return laps


def report(found: Mapping[str, list[Laps]], step_seconds: float) -> None:
    """One row a way of watching."""
    share_of = f"of {step_seconds:g} s"
    print(f"\n{'watching':<22}{'outside, ms':>12}{'95 of 100':>11}{share_of:>11}{'steps/s':>9}{'speed':>8}")
    fastest = median(lap for laps in found["nothing"] for lap in laps.whole)
    for name, every in found.items():
        outside = [1000 * lap for laps in every for lap in laps.outside]
        whole = median(lap for laps in every for lap in laps.whole)
        share = median(outside) / 1000 / step_seconds
        print(
            f"{name:<22}{median(outside):>12.2f}{quantiles(outside, n=20)[-1]:>11.2f}{share:>11.3%}"
            f"{1 / whole:>9.2f}{fastest / whole:>8.3f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shape", default="tiny-1.5", choices=list(SHAPES))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--step-seconds", type=float, default=2.4)
    settings = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    os.environ.setdefault("DS_ACCELERATOR", settings.device)
    shape = SHAPES[settings.shape]
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        base = write_base(root / "base", shape, torch.device(settings.device))
        data = write_data(root / "data", shape, base, samples=4)
        recipe = recipe_for(shape, base, device=settings.device)
        recipe = replace(
            recipe,
            optimization=replace(recipe.optimization, steps=settings.steps + WARM_UP),
            checkpoints=replace(recipe.checkpoints, checkpoint_every=10**6),
        )
        ways: dict[str, Watching] = {"nothing": nothing, "files and progress": files}
        if importlib.util.find_spec("mlflow") is not None:
            server = stack.enter_context(tracking_server(root))
            ways["+ MLflow, SQLite"] = with_mlflow(lambda run: f"sqlite:///{run.out / 'mlflow.db'}")
            ways["+ MLflow, server"] = with_mlflow(lambda run: server)
            ways["+ MLflow, dead server"] = with_mlflow(lambda run: "http://127.0.0.1:9/")
        found: dict[str, list[Laps]] = {name: [] for name in ways}
        for turn in range(settings.rounds):
            for number, (name, watching) in enumerate(ways.items()):
                found[name].append(measured(recipe, data, root / f"run-{turn}-{number}", watching))
        device = torch.cuda.get_device_name() if settings.device == "cuda" else platform.processor() or "CPU"
        print(
            f"{settings.rounds} runs of {settings.steps} steps each, {settings.shape} on {device}, "
            f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}"
        )
    report(found, settings.step_seconds)


if __name__ == "__main__":
    main()
