"""Step time through Ray Train and DeepSpeed by number of workers, and what a killed worker costs.

    python -m tests.benchmarks.training_on_ray --shape 5b --device cuda --workers 1 2 --steps 40
    python -m tests.benchmarks.training_on_ray --shape 2b --device cuda --workers 2 --steps 30 --kill-at-step 17 \
        --checkpoint-every 5 --deterministic
    python -m tests.benchmarks.training_on_ray --shape tiny --device cpu --workers 1 2 --steps 12

Random weights of the true architecture, random latents at the true shape, one clip a worker and step (weak scaling).
Every run is a process of its own on a Ray of its own and is killed once its last step is on record: neither a last
checkpoint nor an export is waited for. Step times come from RUN/metrics.jsonl. With --kill-at-step one worker is killed
(SIGKILL) after that step, and losses and gradient norms are compared to those of the run that was left alone.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.benchmarks.training_pieces import SHAPES, recipe_for, with_speed, write_base, write_data
from training.callbacks.metrics_file import read_lines
from training.callbacks.sessions import FILE as SESSIONS
from training.config import Run

ROOT = Path(__file__).resolve().parents[2]
Lines = list[dict[str, float]]


def main() -> None:
    """Writes base and data, trains with each number of workers, prints the table."""
    if sys.argv[1:2] == ["--run"]:
        _train(Path(sys.argv[2]))
        return
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # so that the run under way is ended too
    settings = _arguments()
    folder = settings.folder.resolve()
    base, data = _pieces(folder, settings)
    print(f"{_machine(settings.device)}; shape {settings.shape}, ZeRO-{settings.zero_stage}, {settings.steps} steps")
    if settings.kill_at_step:
        for workers in settings.workers:
            _compare(folder, base, data, settings, workers)
        return
    print("| workers | s a step, p50 | p95 | clips/s | weak scaling | MFU | peak GiB | first step after |")
    print("|---|---|---|---|---|---|---|---|")
    alone = math.nan
    for workers in settings.workers:
        lines, waited, _ = _measure(_run(folder / f"workers-{workers}", base, data, settings, workers), settings)
        steady = lines[settings.warm_up :]
        middle = _middle(steady, "step_seconds")
        alone = middle if math.isnan(alone) else alone
        slow = sorted(line["step_seconds"] for line in steady)[int(0.95 * (len(steady) - 1))]
        print(
            f"| {workers} | {middle:.3f} | {slow:.3f} | {workers / middle:.3f} | {alone / middle:.1%} | "
            f"{_middle(steady, 'mfu'):.1%} | {max(line['peak_memory_gib'] for line in lines):.1f} | {waited:.0f} s |",
            flush=True,
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="tiny")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--warm-up", type=int, default=10, help="steps that are not counted: they compile and probe")
    parser.add_argument("--zero-stage", type=int, default=2)
    parser.add_argument("--kill-at-step", type=int, default=0)
    parser.add_argument("--checkpoint-every", type=int, default=10**9)
    parser.add_argument("--deterministic", action="store_true")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/training_on_ray"))
    parser.add_argument("--limit", type=float, default=1500.0, help="seconds that one run may take")
    settings = parser.parse_args()
    if settings.kill_at_step and settings.checkpoint_every >= 10**9:
        settings.checkpoint_every = max(1, settings.kill_at_step // 3)
    settings.warm_up = min(settings.warm_up, settings.steps // 2)
    return settings


def _pieces(folder: Path, settings: argparse.Namespace) -> tuple[Path, Path]:
    import torch

    shape, base, data = SHAPES[settings.shape], folder / f"base-{settings.shape}", folder / f"data-{settings.shape}"
    if not (base / "DONE").is_file():
        shutil.rmtree(base, ignore_errors=True)
        write_base(base, shape, torch.device(settings.device))
        (base / "DONE").touch()
    if not (data / "dataset.json").is_file():
        write_data(data, shape, base)
    return base, data


def _run(out: Path, base: Path, data: Path, settings: argparse.Namespace, workers: int) -> Run:
    recipe = recipe_for(SHAPES[settings.shape], base, device=settings.device, workers=workers)
    recipe = with_speed(recipe, deterministic=settings.deterministic, compile_blocks=not settings.no_compile)
    threads = 1 if settings.device == "cpu" else 0
    recipe = replace(
        recipe,
        workers=replace(
            recipe.workers, num_workers=workers, zero_stage=settings.zero_stage, threads_per_worker=threads
        ),
        checkpoints=replace(recipe.checkpoints, checkpoint_every=settings.checkpoint_every, keep_checkpoints=1),
    )
    return Run(name=f"benchmark-{settings.shape}", data=data, out=out, recipe=recipe)


def _train(file: Path) -> None:
    import logging

    from training.cluster.ray_launcher import train_on_ray

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    train_on_ray(Run.from_dict(json.loads(file.read_text())), None)


def _measure(run: Run, settings: argparse.Namespace, kill_at: int = 0) -> tuple[Lines, float, Mapping[str, float]]:
    """The lines of all steps, seconds until the first, and what the kill cost where there was one."""
    shutil.rmtree(run.out, ignore_errors=True)
    run.out.mkdir(parents=True)
    file = run.out.with_suffix(".json")
    file.write_text(json.dumps(run.to_dict()))
    started = time.time()
    with run.out.with_suffix(".log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.training_on_ray", "--run", str(file)],
            cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    metrics = run.out / "metrics.jsonl"
    cost: dict[str, float] = {}
    try:
        _wait(process, lambda: bool(read_lines(metrics)), settings.limit, run)
        first = read_lines(metrics)[0]["time"] - started
        if kill_at:
            cost = _kill_a_worker(process, metrics, kill_at, settings.limit, run)
        _wait(process, lambda: _reached(metrics) >= settings.steps, settings.limit, run)
        return [line for line in read_lines(metrics) if line["step"] <= settings.steps], first, cost
    finally:
        _end(process)
        shutil.rmtree(run.out / "checkpoints", ignore_errors=True)  # tens of GB each


def _kill_a_worker(
    process: subprocess.Popen[bytes], metrics: Path, kill_at: int, limit: float, run: Run
) -> dict[str, float]:
    _wait(process, lambda: _reached(metrics) >= kill_at, limit, run)
    found = workers_of(process.pid)
    lost = _reached(metrics)
    killed = time.time()
    os.kill(found[-1], signal.SIGKILL)
    _wait(process, lambda: any(line["time"] > killed + 0.5 for line in _recent(run.out, killed)), limit, run)
    again = min(_recent(run.out, killed), key=lambda line: line["step"])
    resumed = int(again["step"]) - 1
    return {"seconds": again["time"] - killed, "lost": float(lost - resumed), "resumed": float(resumed)}


def _recent(out: Path, killed: float) -> Lines:
    """Steps of the session that began after the kill; those of the old one may still be on their way to the file."""
    sessions = [json.loads(line) for line in (out / SESSIONS).read_text().splitlines()]
    begun = [entry["time"] for entry in sessions if entry["event"] == "start" and entry["time"] > killed]
    return [line for line in read_lines(out / "metrics.jsonl") if begun and line["time"] >= begun[-1]]


def workers_of(driver: int) -> list[int]:
    """Process ids of the Ray Train workers below a process."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if b"RayTrainWorker" in (entry / "cmdline").read_bytes() and driver in _ancestors(int(entry.name)):
                found.append(int(entry.name))
        except OSError:
            continue
    return sorted(found)


def _ancestors(pid: int) -> list[int]:
    above: list[int] = []
    while pid > 1:
        pid = int((Path("/proc") / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()[1])
        above.append(pid)
    return above


def _reached(metrics: Path) -> int:
    return max((int(line["step"]) for line in read_lines(metrics)), default=0)


def _wait(process: subprocess.Popen[bytes], happened: Callable[[], bool], limit: float, run: Run) -> None:
    deadline = time.monotonic() + limit
    while not happened():
        if process.poll() is not None or time.monotonic() > deadline:
            tail = run.out.with_suffix(".log").read_text()[-3000:]
            raise SystemExit(f"the run {run.out} ended or took too long (exit {process.poll()}):\n{tail}")
        time.sleep(0.05)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kills the run; its local Ray ends with it, and is waited for so that the next one finds the GPUs free."""
    workers = workers_of(process.pid) if process.poll() is None else []
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 60
    while any((Path("/proc") / str(pid)).exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.2)


def _compare(folder: Path, base: Path, data: Path, settings: argparse.Namespace, workers: int) -> None:
    straight_run = _run(folder / f"straight-{workers}", base, data, settings, workers)
    checkpoints = replace(straight_run.recipe.checkpoints, checkpoint_every=10**9)
    straight_run = replace(straight_run, recipe=replace(straight_run.recipe, checkpoints=checkpoints))
    straight, _, _ = _measure(straight_run, settings)
    broken_run = _run(folder / f"killed-{workers}", base, data, settings, workers)
    broken, _, cost = _measure(broken_run, settings, settings.kill_at_step)
    print(
        f"{workers} workers: one killed after step {settings.kill_at_step}, first new step {cost['seconds']:.1f} s "
        f"later, from step {cost['resumed']:.0f} ({cost['lost']:.0f} steps taken again)"
    )
    print("| | equal bits | largest relative difference |")
    print("|---|---|---|")
    for name in ("loss", "grad_norm"):
        pairs = [(one[name], two[name]) for one, two in zip(straight, broken, strict=True)]
        largest = max(abs(one - two) / max(abs(one), 1e-12) for one, two in pairs)
        print(f"| {name} | {sum(one == two for one, two in pairs)} of {len(pairs)} | {largest:.2e} |", flush=True)


def _middle(lines: Lines, name: str) -> float:
    return statistics.median(line.get(name, math.nan) for line in lines)


def _machine(device: str) -> str:
    import torch

    gpus: Any = f", {torch.cuda.device_count()} x {torch.cuda.get_device_name()}" if device == "cuda" else ""
    return f"{platform.machine()}, {os.cpu_count()} CPU cores{gpus}, torch {torch.__version__}"


if __name__ == "__main__":
    main()
