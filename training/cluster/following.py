"""Shows in the command's own process what the workers write down."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from training.callbacks.metrics_file import Tail, read_lines
from training.callbacks.progress import Progress
from training.callbacks.sessions import FILE as SESSIONS
from training.config import Run
from training.run_folder import RunFolder

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5


@contextmanager
def shown(run: Run) -> Iterator[None]:
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
    before, sessions = _changed(path), Tail(run.out / SESSIONS)
    sessions.read(most=1 << 30)  # those of earlier commands
    seen, stopping = -1, False
    while not stopping:
        stopping = stop.wait(POLL_SECONDS)
        for event in sessions.read():
            if event["event"] == "start" and seen >= 0:
                logger.warning("started again from step %d with %d workers", event["step"], event["workers"])
        if _changed(path) == before:
            continue  # nothing new, or the workers are still on their way
        before = _changed(path)
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
