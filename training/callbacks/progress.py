"""How far a run is: a progress bar where stderr is a terminal, log lines otherwise."""

from __future__ import annotations

import logging
import statistics
import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from training.callbacks import Callback

logger = logging.getLogger(__name__)

RECENT = 20
"""Steps whose median time says how long the rest will take: the first one of a session compiles."""


class Progress(Callback):
    """Shows steps, loss, speed, and what is left."""

    def __init__(self, steps: int, log_every: int):
        self._steps = steps
        self._log_every = log_every
        self._seconds: deque[float] = deque(maxlen=RECENT)
        self._bar = None

    def on_start(self, step: int) -> None:
        logger.info("training from step %d to %d", step, self._steps)
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=self._steps, initial=step, unit="step", desc="training")

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        self._seconds.append(metrics["step_seconds"])
        if self._bar is not None:
            known = {"mfu": f"{metrics['mfu']:.1%}"} if "mfu" in metrics else {}
            self._bar.set_postfix({"loss": f"{metrics['loss']:.4f}"} | known, refresh=False)
            self._bar.update(step - self._bar.n)
        elif step % self._log_every == 0 or step == self._steps:
            logger.info("%s", self.line(step, metrics))

    def on_checkpoint(self, step: int, folder: Path) -> None:
        if self._bar is None:
            logger.info("checkpoint %s", folder)

    def on_close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def line(self, step: int, metrics: Mapping[str, float]) -> str:
        """One step for people."""
        parts = [
            f"loss {metrics['loss']:.4f}",
            f"gradient norm {metrics['grad_norm']:.3f}",
            f"{metrics['step_seconds']:.2f} s a step",
            f"{metrics['tokens_per_second']:.0f} tokens a second",
        ]
        if "mfu" in metrics:
            parts.append(f"MFU {100 * metrics['mfu']:.1f} %")
        if step < self._steps:
            parts.append(f"{duration((self._steps - step) * statistics.median(self._seconds))} left")
        return f"step {step} of {self._steps}: {', '.join(parts)}"


def duration(seconds: float) -> str:
    """Seconds as people say them: `45 s`, `12 min`, `3 h 20 min`, `4 d 2 h`."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{hours // 24} d {hours % 24} h"
