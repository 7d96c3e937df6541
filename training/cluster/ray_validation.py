"""Validations as Ray tasks, off the training workers; `validation.Validator` says which and when."""

from __future__ import annotations

import os
from typing import Any

from training.config import Run


class RayTask:
    """Samples in a task with the GPUs that the recipe gives it, or on CPUs at a low priority."""

    def __init__(self):
        self._running: Any = None

    def start(self, run: Run, step: int) -> None:
        """Begins a validation; it waits where the cluster has nothing free for it."""
        import ray

        gpus = run.recipe.validation.validation_gpus
        # A Ray of our own has no CPU to spare beside the workers; a cluster should choose a machine with one.
        cpus = 1 if os.environ.get("RAY_ADDRESS") else 0
        task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0, max_calls=1)(_sample)
        self._running = task.remote(run.to_dict(), step)

    def problem(self) -> str | None:
        """None while it runs, then "" or why it failed."""
        import ray
        from ray.exceptions import RayError

        done, _ = ray.wait([self._running], timeout=0)
        if not done:
            return None
        try:
            ray.get(self._running)
        except RayError as problem:
            return str(problem).strip().splitlines()[-1][:300]
        return ""

    def stop(self) -> None:
        """Ends what runs."""
        import ray

        if self._running is not None and ray.is_initialized():
            ray.cancel(self._running, force=True)


def _sample(values: dict[str, Any], step: int) -> None:
    run = Run.from_dict(values)
    if not run.recipe.validation.validation_gpus:
        os.environ["DS_ACCELERATOR"] = "cpu"
        os.nice(10)
    from training.validating.validation_sampling import sample

    sample(run, step)
