"""What Ray Train decides by for a run: how many workers, and what happens after a failure.

Ray's own policies know neither batches nor checkpoints. They are taken from its private modules, as the release is
pinned and has no other door; `ray_launcher.Trainer` puts these in their place. Both live in Ray's controller.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    FixedScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)
from ray.train.v2.api.config import FailureConfig, ScalingConfig
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from dynamictrl.errors import DynamiCtrlError, StoreError
from dynamictrl.samples.shards import write_json
from training.checkpoints import on_disk

logger = logging.getLogger(__name__)

RESIZE, STOP = "resize", "stop"


class Request:
    """A file in the run folder that asks the workers to make a checkpoint and leave; the first worker looks for it."""

    def __init__(self, path: Path):
        self.path = path

    def make(self, reason: str) -> None:
        """`reason` is RESIZE, after which the run goes on, or STOP."""
        write_json(self.path, {"reason": reason})

    @property
    def reason(self) -> str:
        """Empty where nothing is asked."""
        try:
            return str(json.loads(self.path.read_text())["reason"])
        except (OSError, ValueError, KeyError):
            return ""

    def clear(self) -> None:
        """Nothing is asked any more."""
        self.path.unlink(missing_ok=True)


class WholeBatches(ElasticScalingPolicy):
    """As many workers as the cluster has, of the numbers that share the batch evenly; resized at a checkpoint.

    Ray alone would tear the workers down at once and lose what came after the last checkpoint.
    """

    def __init__(self, scaling: ScalingConfig, counts: tuple[int, ...], request: Request):
        super().__init__(scaling)
        self._counts, self._request = counts, request

    def _count_possible_workers(self, reserved_resources: Any) -> int:  # noqa: ANN401 - Ray's
        leaving = _leaving_nodes()
        staying = {node: held for node, held in reserved_resources.items() if node not in leaving}
        return largest(self._counts, super()._count_possible_workers(staying))

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        decision = super().make_decision_for_non_running_worker_group()
        if isinstance(decision, ResizeDecision) and self._request.reason == RESIZE:
            self._request.clear()
        return decision

    def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> Any:  # noqa: ANN401
        decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        if not isinstance(decision, ResizeDecision):
            return decision
        if not self._request.reason:
            logger.warning("asking for a checkpoint, to go on with %d workers", decision.num_workers)
            self._request.make(RESIZE)
        return NoopDecision()


def _leaving_nodes() -> frozenset[str]:
    """Nodes that will be taken away: nothing can be started there any more, though they are counted until they go."""
    import ray

    return frozenset(ray._private.state.state.get_draining_nodes() or {})


def largest(counts: tuple[int, ...], possible: int) -> int:
    """The largest of the legal numbers that is possible; 0, which Ray waits on, where none is."""
    return max((count for count in counts if count <= possible), default=0)


class Verdicts(DefaultFailurePolicy):
    """Ends a run at once where trying again cannot help, and counts only failures without progress between."""

    def __init__(self, failure: FailureConfig, checkpoints: Path, request: Request):
        super().__init__(failure)
        self._checkpoints, self._request = checkpoints, request
        self._reached = -1

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """Leaving workers are no failure; an error of ours is final, for it would come again."""
        self._forget_after_progress()
        told = _ours(training_failed_error)
        if any(error.code == "run_stopped" for error in told):
            return FailureDecision.RAISE if self._request.reason == STOP else FailureDecision.RETRY
        if any(is_final(error) for error in told):
            return FailureDecision.RAISE
        decision = super().make_decision(training_failed_error)
        logger.warning("workers failed (%s): %s", _in_a_line(training_failed_error), decision.value)
        return decision

    def _forget_after_progress(self) -> None:
        found = on_disk.newest(self._checkpoints)
        reached = found.step if found else 0
        if reached > self._reached:
            self._reached, self._worker_group_failures = reached, 0


def is_final(error: BaseException) -> bool:
    """Whether a worker's error would come again: all that is raised on purpose, but for a store that was away."""
    return isinstance(error, DynamiCtrlError) and not isinstance(error, StoreError) and error.code != "run_stopped"


def _ours(error: TrainingFailedError) -> list[DynamiCtrlError]:
    if not isinstance(error, WorkerGroupError):
        return []
    return [failure for failure in error.worker_failures.values() if isinstance(failure, DynamiCtrlError)]


def _in_a_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def scaling_policy(scaling: ScalingConfig, counts: tuple[int, ...], request: Request) -> Any:  # noqa: ANN401 - Ray's
    """The policy for a scaling configuration, elastic or fixed."""
    return WholeBatches(scaling, counts, request) if scaling.elasticity_enabled else FixedScalingPolicy(scaling)
