"""The loop on many machines: Ray Train starts `trainer.train` in every worker, and again when one is lost.

Checkpoints are the trainer's own, in the run folder (which all nodes must see), so Ray's share is placing, watching and
restarting; its own records lie in `RUN/ray`. `ray_cluster` finds a Ray; `ray_policies` says how many workers there may
be and what happens after a failure.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dynamictrl.errors import DynamiCtrlError
from dynamictrl.samples.shards import write_json
from training.callbacks.recording import record
from training.cluster.following import shown
from training.cluster.ray_cluster import connected
from training.cluster.ray_validation import RayTask
from training.cluster.vigil import Vigil
from training.cluster.worker_counts import legal_counts
from training.config import Run
from training.release import provenance
from training.release.tracking import TrackedRun
from training.run_folder import RunFolder
from training.settings.workers import Workers
from training.validating.validation import alongside

logger = logging.getLogger(__name__)

REQUEST = ".leave.json"


def train_on_ray(run: Run, tracked: TrackedRun | None) -> None:
    """Trains a run with Ray Train workers, on RAY_ADDRESS or on a Ray of its own that is stopped afterwards.

    SIGTERM and Ctrl-C make a checkpoint at the end of the step and stop the run; a second one stops it at once. Raises
    DynamiCtrlError when the run was not brought to its end: code run_stopped where it was told to, else run_failed.
    """
    workers, folder = run.recipe.workers, RunFolder(run.out)
    counts = legal_counts(run.recipe)
    with connected(workers, fewest=counts[0]):
        from training.cluster.ray_policies import STOP, Request

        request = Request(run.out / REQUEST)
        request.clear()  # of a session that was killed
        trainer = _trainer(run, tracked, counts, request)
        with shown(run), _told_to_stop(lambda: request.make(STOP)), alongside(run, tracked, RayTask()):
            problem = _fit(trainer)
        stopped = request.reason == STOP
        request.clear()
    if problem is None:
        return
    if stopped:
        raise DynamiCtrlError("stopped; the same command goes on from the last checkpoint", code="run_stopped")
    raise _failure_of(folder) or DynamiCtrlError(
        f"training did not reach its end ({_reason(problem)}); the same command goes on from the last checkpoint, "
        f"Ray's records are in {run.out / 'ray'}",
        code="run_failed",
    ) from problem


def validate_on_ray(run: Run, tracked: TrackedRun | None) -> None:
    """Makes up for the validations that a finished run lacks."""
    with connected(run.recipe.workers, fewest=1), alongside(run, tracked, RayTask()):
        pass


def _trainer(run: Run, tracked: TrackedRun | None, counts: tuple[int, ...], request: Any) -> Any:  # noqa: ANN401 - Ray's
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from training.cluster import ray_policies

    workers, checkpoints = run.recipe.workers, RunFolder(run.out).checkpoints
    scaling = ScalingConfig(
        num_workers=(counts[0], counts[-1]) if workers.min_workers else workers.num_workers,
        use_gpu=workers.device == "cuda",
        resources_per_worker=_resources(workers),
        elastic_resize_monitor_interval_s=workers.resize_seconds,
    )
    failure = FailureConfig(max_failures=workers.max_restarts)

    class Trainer(TorchTrainer):
        """Ray's, with our policies in the place of its own: there is no public way to give them."""

        def _initialize_and_run_controller(self, **given: Any) -> Any:  # noqa: ANN401
            given["scaling_policy"] = ray_policies.scaling_policy(scaling, counts, request)
            given["failure_policy"] = ray_policies.Verdicts(failure, checkpoints, request)
            return super()._initialize_and_run_controller(**given)

    return Trainer(
        _work,
        train_loop_config={"run": run.to_dict(), "tracked": vars(tracked) if tracked else None},
        torch_config=TorchConfig(
            backend="nccl" if workers.device == "cuda" else "gloo", timeout_s=max(1, round(workers.stall_minutes * 60))
        ),
        scaling_config=scaling,
        run_config=RunConfig(name="ray", storage_path=str(run.out.resolve()), failure_config=failure),
    )


def _resources(workers: Workers) -> dict[str, float]:
    gpus = {"GPU": 1.0} if workers.device == "cuda" else {}
    return {"CPU": float(max(1, workers.threads_per_worker))} | gpus


def _fit(trainer: Any) -> BaseException | None:  # noqa: ANN401 - a Ray class
    """What ended the training early, None where it reached its end.

    In a thread of its own: in the main one Ray would take Ctrl-C for itself and end without a checkpoint.
    """
    problems: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as problem:  # whatever it is, it is the reason why the run ended
            problems.append(problem)

    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.5)
    return problems[0] if problems else None


@contextmanager
def _told_to_stop(ask: Callable[[], None]) -> Iterator[None]:
    """The first SIGTERM or Ctrl-C calls `ask`, the second ends the block by KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []

    def take(number: int, frame: object) -> None:
        asked.append(number)
        if len(asked) > 1:
            raise KeyboardInterrupt
        logger.warning("a checkpoint is made when this step is done, then the run stops; once more stops it at once")
        ask()

    before = {number: signal.signal(number, take) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _work(config: dict[str, Any]) -> None:
    """One worker's whole life; Ray has joined the process group already."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    import ray.train

    from training.cluster.ray_policies import is_final

    started = time.monotonic()
    run = Run.from_dict(config["run"])
    folder, rank = RunFolder(run.out), ray.train.get_context().get_world_rank()
    if folder.failure.is_file():
        raise _failure_of(folder) or DynamiCtrlError("a worker gave up", code="run_failed")
    vigil = Vigil(run.recipe.workers.stall_minutes * 60, run.out / "stalls" / f"worker-{rank}.txt").start()
    try:
        from training.trainer import train

        logger.info("worker %d: the trainer is loaded after %.1f s", rank, time.monotonic() - started)
        if not run.recipe.workers.threads_per_worker:
            _use_share_of_cores(ray.train.get_context().get_local_world_size())
        if rank == 0:
            provenance.write_environment(run.out)
        tracked = TrackedRun(**config["tracked"]) if config["tracked"] else None
        train(run, record(run, tracked), lambda metrics: ray.train.report(metrics), _leaving(run, rank, vigil))
    except DynamiCtrlError as problem:
        if is_final(problem):
            write_json(folder.failure, {"message": str(problem), "code": problem.code})
        raise
    finally:
        vigil.stop()


def _use_share_of_cores(neighbours: int) -> None:
    """Ray gives a worker of one CPU one thread, too few for an optimizer in host memory; the node's cores are ours."""
    import torch

    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // neighbours))


def _leaving(run: Run, rank: int, vigil: Vigil) -> Callable[[], bool]:
    """What a worker is asked after every step: whether its machine goes away, or the run is to stop or to grow.

    Ray's public `get_preemption_info` waits for all workers through an actor; each step's own collective does that for
    nothing, so this worker's part is read where Ray keeps it.
    """
    from ray.train.v2._internal.execution.context import get_train_context

    preemption, asked = get_train_context().preemption_context, run.out / REQUEST

    def is_leaving() -> bool:
        vigil.beat()
        return preemption.preemption_info is not None or (rank == 0 and asked.exists())

    return is_leaving


def _reason(problem: BaseException) -> str:
    return " ".join(str(problem).split())[:500] or type(problem).__name__


def _failure_of(folder: RunFolder) -> DynamiCtrlError | None:
    """Why a worker gave up, where it left word."""
    if not folder.failure.is_file():
        return None
    values = json.loads(folder.failure.read_text())
    return DynamiCtrlError(values["message"], code="run_failed")
