"""The Ray that a run trains on: the one there is, a cluster at RAY_ADDRESS, or a local one of the size needed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dynamictrl.errors import ConfigError, DynamiCtrlError
from training.settings.workers import Workers

logger = logging.getLogger(__name__)


@contextmanager
def connected(workers: Workers, fewest: int) -> Iterator[None]:
    """A connection to Ray for the block; `fewest` workers must find a place on this machine where it is a local one.

    A local Ray ends with this process, also by SIGKILL: the kernel tells its processes.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    for name, value in knobs(workers).items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield
        return
    _start(_options(workers, fewest))
    try:
        yield
    finally:
        ray.shutdown()


def knobs(workers: Workers) -> dict[str, str]:
    """Ray Train's settings that it takes from the environment; what is set there already is left alone."""
    stall = workers.stall_minutes * 60
    chosen = {
        # How soon a dead worker is seen. Ray asks its workers so often, which costs milliseconds.
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": f"{stall:g}",
        "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "2",
        # Survivors of a lost worker are killed anyhow: half a minute of politeness towards a hung collective is lost.
        "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "3",
        # One value for driver, controller and workers: processes of one environment are taken from one pool.
        "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",
    }
    if workers.device == "cuda":
        chosen |= {
            # Tells which rank and collective hang, in the run folder; the ending is left to the timeouts.
            "RAY_TRAIN_ENABLE_NCCL_HANG_DETECTOR": "1",
            "RAY_TRAIN_NCCL_RAS_ACTION": "observe",
            "RAY_TRAIN_NCCL_RAS_CONFIRM_DURATION_S": f"{stall / 2:g}",
        }
    return chosen


def _options(workers: Workers, fewest: int) -> dict[str, Any]:
    here = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    environment = {"PYTHONPATH": paths} | {name: os.environ[name] for name in knobs(workers)}
    if workers.threads_per_worker:
        environment["OMP_NUM_THREADS"] = str(workers.threads_per_worker)
    options: dict[str, Any] = {
        "runtime_env": {"env_vars": environment},
        "log_to_driver": False,
        "logging_level": logging.ERROR,
    }
    if not os.environ.get("RAY_ADDRESS"):
        _check_gpus(workers, fewest)
        # Ray gives its workers way to everything else on the machine, and here they are what the machine is for.
        os.environ.setdefault("RAY_worker_niceness", "0")
        cpus = workers.num_workers * max(1, workers.threads_per_worker)
        options |= {"address": "local", "num_cpus": cpus, "include_dashboard": False}
    return options


def _check_gpus(workers: Workers, fewest: int) -> None:
    if workers.device != "cuda":
        return
    import torch

    found = torch.cuda.device_count()
    if found < fewest:
        raise ConfigError(
            f"{fewest} workers need as many GPUs and this machine has {found}; set RAY_ADDRESS to a cluster that has "
            "them, or lower --num-workers",
            code="too_few_gpus",
            param="num_workers",
        )


def _start(options: dict[str, Any]) -> None:
    """Ray gives its own processes 30 s to start, too little on a busy machine: so more than one try."""
    import ray

    for last in (False, False, False, False, True):
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
            logger.warning("Ray did not start (%s); trying again", problem)
