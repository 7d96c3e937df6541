"""What both trainings share: settings, the stream's feeder, the clock, the averaged weights, the record."""

from __future__ import annotations

import argparse
import json
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from dynamictrl.mini.flags import add_settings
from dynamictrl.mini.whole_body.layers import follow
from dynamictrl.mini.whole_body.stream import Bank

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=nn.Module)
Drawn = dict[str, Tensor]
Quality = dict[str, float]


@dataclass
class Settings:
    """One training run of the detector or the pose model."""

    seconds: float = 250.0
    """Training time, without set-up, export and the last measurement."""
    device: str = "cuda"
    workers: int = 4
    """Drawing processes; 0 draws in this one."""
    batch: int = 192
    learning_rate: float = 3e-3
    weight_decay: float = 0.03
    seed: int = 1
    max_steps: int = 0
    """0 stops by the clock alone."""
    kept: int = 5000
    """Figures held on the device."""
    report: float = 75.0
    """Seconds between two measurements on held-out marionettes."""
    held_out: int = 80
    """Held-out scenes to measure on, six frames each."""
    held_out_empty: int = 60
    """Held-out scenes without people, four frames each."""


class Feeder:
    """Draws handfuls in the background and hands over what is ready, so that no step waits."""

    def __init__(self, drawings: Iterator[Drawn]):
        self.ready: queue.Queue[Drawn] = queue.Queue(maxsize=6)
        self.ended = False
        self.problem: Exception | None = None
        self.thread = threading.Thread(target=self._draw, args=(drawings,), daemon=True)
        self.thread.start()

    def _draw(self, drawings: Iterator[Drawn]) -> None:
        try:
            while not self.ended:
                drawn = next(drawings)
                while not self.ended:
                    try:
                        self.ready.put(drawn, timeout=0.2)
                        break
                    except queue.Full:
                        continue
        except Exception as problem:  # carried over to the thread that trains
            self.problem = problem

    def fill(self, bank: Bank, figures: int) -> None:
        """Waits until the bank holds so many figures."""
        while bank.filled("paint") < figures:
            if self.problem is not None:
                raise self.problem
            try:
                bank.add(self.ready.get(timeout=1.0))
            except queue.Empty:
                continue

    def top_up(self, bank: Bank) -> None:
        """Adds one handful where one is ready."""
        if self.problem is not None:
            raise self.problem
        if not self.ready.empty():
            bank.add(self.ready.get())

    def end(self) -> None:
        """Stops drawing."""
        self.ended = True
        self.thread.join(timeout=30)


@dataclass
class Outcome:
    """What a run did."""

    steps: int
    shown: int
    seconds: float
    figures: int


def fit(
    model: Model,
    loss_of: Callable[[], Tensor],
    bank: Bank,
    feeder: Feeder,
    settings: Settings,
    measure: Callable[[Model], Quality],
) -> tuple[Model, Outcome]:
    """Trains until the seconds (or steps) are used up; returns the averaged weights and what was done."""
    average = deepcopy(model).eval()
    fused = settings.device.startswith("cuda")
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=fused
    )
    begun = told = measured = time.monotonic()
    step = 0
    while (passed := _passed(begun, step, settings)) < 1:
        feeder.top_up(bank)
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * min(1, (step + 1) / 200) * max(_cosine(passed), 1e-3)
        loss = loss_of()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        step += 1
        follow(average, model, min(0.9985, step / (step + 20)))
        now = time.monotonic()
        if now - told > 8:
            told = now
            logger.info(
                "step %d, %.0f%%, %d figures drawn, loss %.3f", step, 100 * passed, bank.count["paint"], loss.item()
            )
        if now - measured > settings.report:
            logger.info("held out: %s", rounded(measure(average)))
            measured = time.monotonic()
    return average, Outcome(step, step * settings.batch, time.monotonic() - begun, bank.count["paint"])


def _passed(begun: float, step: int, settings: Settings) -> float:
    share = (time.monotonic() - begun) / settings.seconds
    return max(share, step / settings.max_steps) if settings.max_steps else share


def _cosine(passed: float) -> float:
    """Full rate for the first fifth, then down to nothing along half a cosine."""
    return 0.5 + 0.5 * math.cos(math.pi * max(0.0, passed - 0.2) / 0.8)


def rounded(quality: Quality) -> dict[str, float]:
    """Numbers for a log line."""
    return {name: round(value, 4) for name, value in quality.items()}


def read_command(description: str | None, defaults: Settings) -> tuple[Path, Settings]:
    """The output folder and the settings of a training's command line; sets up logging."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the ONNX file and its record")
    add_settings(parser, defaults)
    options = vars(parser.parse_args())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    out: Path = options.pop("out")
    out.mkdir(parents=True, exist_ok=True)
    return out, Settings(**options)


def write_record(path: Path, settings: Settings, outcome: Outcome, quality: Quality) -> None:
    """What was done and how good it came out, as JSON."""
    record = {"settings": asdict(settings), "done": asdict(outcome), "torch": torch.__version__, "quality": quality}
    path.write_text(json.dumps(record, indent=2) + "\n")
    logger.info("%s: %s", path.stem, rounded(quality))
