"""What Ray Data knows of its operators while they run: queues, and workers that it holds back.

Called by Ray in the driver at each of its scheduling steps; does nothing more than twice a second. Imports no Ray: it
reads the executor it is handed, whose shape is that of the version pinned in `pyproject.toml`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from pipelines.watching import metrics

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_BETWEEN_STORE_LOOKS = 5.0


class Watch:
    """Adds up, by operator, for how long its workers were there and for how many seconds they were held back."""

    def __init__(self, store: Callable[[], Mapping[str, float]]):
        """`store` says how many bytes the object store holds (`used`) and has spilled (`spilled`)."""
        self._store = store
        self._said: dict[str, Any] = {"operators": {}, "object_store": {"peak": 0.0, "spilled": 0.0}}
        self._workers: dict[str, int] = {}
        self._work = Path()
        self._looked = self._asked = 0.0

    def begin(self, work: Path, workers: Mapping[str, int]) -> None:
        """The operators that run next, in the order of the topology, with their numbers of workers."""
        self._work, self._workers, self._looked = work, dict(workers), time.monotonic()
        for name, count in workers.items():
            state = self._said["operators"].setdefault(name, {"workers": 0, "seconds": 0.0, "queue": 0, "blocked": 0.0})
            state["workers"] = count

    def look(self, executor: Any) -> None:  # noqa: ANN401
        """Notes the state of Ray Data's streaming executor."""
        passed = time.monotonic() - self._looked
        if passed < SECONDS_BETWEEN_LOOKS:
            return
        self._looked += passed
        # The first is the input; where Ray fused operators, what it says cannot be told apart.
        found = list(executor._topology.items())[1:]
        for (operator, state), name in zip(found, self._workers, strict=False):
            said = self._said["operators"][name]
            said["seconds"] += passed
            said["queue"] = state.total_enqueued_input_blocks()
            if said["queue"]:
                said["blocked"] += passed * max(0, self._workers[name] - operator.num_active_tasks())
        self._say()

    def end(self) -> None:
        """Nothing waits any more; looks at the object store a last time."""
        for name in self._workers:
            self._said["operators"][name]["queue"] = 0
        self._asked = 0.0
        self._say()

    def _say(self) -> None:
        if time.monotonic() - self._asked > SECONDS_BETWEEN_STORE_LOOKS:
            self._asked = time.monotonic()
            self._look_at_store()
        metrics.say_operators(self._work, self._said)

    def _look_at_store(self) -> None:
        try:
            now = self._store()
        except Exception as problem:
            # Ray's own numbers, by way of its private parts: a run must not end for want of them.
            logger.warning("the object store cannot be asked for its size: %s", problem)
            self._store = lambda: {"used": 0.0, "spilled": 0.0}
            return
        said = self._said["object_store"]
        said["peak"] = max(said["peak"], now["used"])
        said["spilled"] = max(said["spilled"], now["spilled"])


class Callback:
    """The class that Ray Data makes an instance of for each execution, without arguments."""

    watch: ClassVar[Watch | None] = None
    """Whom to tell, in this process."""

    def before_execution_starts(self, executor: Any) -> None:  # noqa: ANN401
        pass

    def on_execution_step(self, executor: Any) -> None:  # noqa: ANN401
        if self.watch is not None:
            self.watch.look(executor)

    def after_execution_succeeds(self, executor: Any) -> None:  # noqa: ANN401
        pass

    def after_execution_fails(self, executor: Any, error: Exception) -> None:  # noqa: ANN401
        pass
