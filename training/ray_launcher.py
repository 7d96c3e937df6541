"""The loop on many machines: Ray Train starts `trainer.train` in every worker, and again when one is lost.

The only file here that imports Ray. Checkpoints are the trainer's own, in the run folder (which all nodes must see), so
Ray's share is placing, watching and restarting; its own records lie in `RUN/ray`.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dynamictrl.errors import ConfigError, DynamiCtrlError
from dynamictrl.shards import write_json
from training.callbacks.metrics_file import read_lines
from training.callbacks.progress import Progress
from training.callbacks.recording import record
from training.checkpoint import RunFolder
from training.config import Run
from training.settings.workers import Workers
from training.tracking import TrackedRun

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5


def train_on_ray(run: Run, tracked: TrackedRun | None) -> None:
    """Trains a run with Ray Train workers, on RAY_ADDRESS or on a Ray of its own that is stopped afterwards.

    Raises DynamiCtrlError (code run_failed) when the run could not be brought to its end.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    workers, folder = run.recipe.workers, RunFolder(run.out)
    with _cluster(workers), _shown(run):
        trainer = TorchTrainer(
            _work,
            train_loop_config={"run": run.to_dict(), "tracked": vars(tracked) if tracked else None},
            torch_config=TorchConfig(backend="nccl" if workers.device == "cuda" else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=workers.num_workers,
                use_gpu=workers.device == "cuda",
                resources_per_worker={"CPU": max(1, workers.threads_per_worker)} | _gpu(workers),
            ),
            run_config=RunConfig(
                name="ray",
                storage_path=str(run.out.resolve()),
                failure_config=FailureConfig(max_failures=workers.max_restarts),
            ),
        )
        problem = _fit(trainer)
    told = _failure_of(folder)
    if told is not None:
        raise told
    if problem is not None:
        raise DynamiCtrlError(
            f"training did not reach its end ({problem}); the same command goes on from the last checkpoint, Ray's "
            f"records are in {run.out / 'ray'}",
            code="run_failed",
        ) from problem


def _fit(trainer: Any) -> Exception | None:  # noqa: ANN401 - a Ray class
    from ray.train import TrainingFailedError

    try:
        trainer.fit()
    except TrainingFailedError as problem:
        logger.error("%s", problem)
        return problem
    return None


def _work(config: dict[str, Any]) -> None:
    """One worker's whole life; Ray has joined the process group already."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    import ray.train

    from training.trainer import train

    run = Run.from_dict(config["run"])
    folder = RunFolder(run.out)
    if folder.failure.is_file():
        return  # a worker gave up for good: a restart would not help
    try:
        train(
            run,
            record(run, TrackedRun(**config["tracked"]) if config["tracked"] else None),
            lambda metrics: ray.train.report(metrics),
        )
    except DynamiCtrlError as problem:
        write_json(folder.failure, {"message": str(problem)})
        raise


@contextmanager
def _cluster(workers: Workers) -> Iterator[None]:
    """A connection to the Ray there is, or a local Ray of just the size needed."""
    import ray

    if ray.is_initialized():
        yield
        return
    here = str(Path(__file__).resolve().parents[1])
    paths = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    options: dict[str, Any] = {
        "runtime_env": {"env_vars": {"PYTHONPATH": paths} | _thread_limits(workers)},
        "log_to_driver": False,
        "logging_level": logging.ERROR,
    }
    if not os.environ.get("RAY_ADDRESS"):
        _check_gpus(workers)
        cpus = workers.num_workers * max(1, workers.threads_per_worker)
        options |= {"address": "local", "num_cpus": cpus, "include_dashboard": False}
    _start(options)
    try:
        yield
    finally:
        ray.shutdown()


def _start(options: dict[str, Any]) -> None:
    """Ray gives its own processes 30 s to start, too little on a busy machine: so a second try."""
    import ray

    for last in (False, True):
        try:
            ray.init(**options)
            return
        except Exception as problem:  # Ray raises a bare Exception here
            ray.shutdown()
            if last:
                address = os.environ.get("RAY_ADDRESS", "a local Ray")
                reason = str(problem).splitlines()[0][:200]
                raise DynamiCtrlError(
                    f"{address} could not be reached or started ({reason}); try again, set RAY_ADDRESS to a cluster, "
                    "or train in this process with --num-workers 0",
                    code="run_failed",
                ) from problem
            logger.warning("Ray did not start (%s); trying once more", problem)


def _thread_limits(workers: Workers) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(workers.threads_per_worker)} if workers.threads_per_worker else {}


def _gpu(workers: Workers) -> dict[str, float]:
    return {"GPU": 1} if workers.device == "cuda" else {}


def _check_gpus(workers: Workers) -> None:
    if workers.device != "cuda":
        return
    import torch

    found = torch.cuda.device_count()
    if found < workers.num_workers:
        raise ConfigError(
            f"{workers.num_workers} workers need as many GPUs and this machine has {found}; set RAY_ADDRESS to a "
            f"cluster that has them, or lower --num-workers",
            code="too_few_gpus",
            param="num_workers",
        )


@contextmanager
def _shown(run: Run) -> Iterator[None]:
    """Shows the steps that the first worker writes down, while the block runs."""
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(run, stop), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()


def _watch(run: Run, stop: threading.Event) -> None:
    progress = Progress(run.recipe.optimization.steps, run.recipe.records.log_every)
    path = RunFolder(run.out).metrics
    logger.info("starting %d workers", run.recipe.workers.num_workers)
    before = _changed(path)
    seen, stopping = -1, False
    while not stopping:
        stopping = stop.wait(POLL_SECONDS)
        if _changed(path) == before:
            continue  # the workers are still on their way
        lines = read_lines(path)
        if seen < 0:
            seen = max((int(line["step"]) for line in lines), default=0)
            progress.on_start(seen)
        for line in lines:
            if line["step"] > seen:
                seen = int(line["step"])
                progress.on_step(seen, line)
    progress.on_close()


def _changed(path: Path) -> int:
    """When a file was last written, in nanoseconds; 0 where there is none."""
    return path.stat().st_mtime_ns if path.is_file() else 0


def _failure_of(folder: RunFolder) -> DynamiCtrlError | None:
    """Why a worker gave up, where it left word."""
    if not folder.failure.is_file():
        return None
    values = json.loads(folder.failure.read_text())
    return DynamiCtrlError(values["message"], code="run_failed")
