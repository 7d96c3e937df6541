"""How far a run is: a progress bar where stderr is a terminal, log lines otherwise."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path

from training.callbacks import Callback

logger = logging.getLogger(__name__)


class Progress(Callback):
    """Shows steps, loss and speed."""

    def __init__(self, steps: int, log_every: int):
        self._steps = steps
        self._log_every = log_every
        self._bar = None

    def on_start(self, step: int) -> None:
        logger.info("training from step %d to %d", step, self._steps)
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=self._steps, initial=step, unit="step", desc="training")

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{metrics['loss']:.4f}", refresh=False)
            self._bar.update(step - self._bar.n)
        elif step % self._log_every == 0 or step == self._steps:
            logger.info(
                "step %d of %d: loss %.4f, gradient norm %.3f, %.2f s a step, %.0f tokens a second",
                step, self._steps, metrics["loss"], metrics["grad_norm"], metrics["step_seconds"],
                metrics["tokens_per_second"],
            )  # fmt: skip

    def on_checkpoint(self, step: int, folder: Path) -> None:
        if self._bar is None:
            logger.info("checkpoint %s", folder)

    def on_close(self) -> None:
        if self._bar is not None:
            self._bar.close()
