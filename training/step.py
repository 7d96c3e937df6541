"""One optimizer step, as functions of (engine, batch): loss, learning rate, what a step achieves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dynamictrl import objective
from training.settings.optimization import Optimization

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from training.batches import Batch

PEAK_TFLOPS = {"H200": 989.4, "H100": 989.4, "H20": 148.0, "A100": 312.0, "B200": 2250.0, "L40S": 362.0}
"""Dense bf16 peak by a part of the device's name, TFLOP/s; model FLOP utilisation is only told of these."""


def forward_backward(engine: DeepSpeedEngine, schedule: objective.Schedule, batch: Batch) -> Tensor:
    """Adds one micro-batch's gradients and returns its losses [B], detached."""
    losses = objective.training_loss(
        engine,
        schedule,
        batch.video,
        batch.image,
        batch.pose,
        batch.prompt,
        batch.timesteps,
        batch.noise,
    )
    engine.backward(losses.mean())
    return losses.detach()


def learning_rate(optimization: Optimization, step: int) -> float:
    """Of the step-th step, counted from 0: linear rise, then constant or half a cosine to 0."""
    peak, warmup = optimization.learning_rate, optimization.warmup_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    if optimization.schedule == "constant":
        return peak
    progress = (step - warmup) / max(1, optimization.steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Work:
    """What one sample costs, for metrics."""

    tokens: int
    forward_tflop: float

    @classmethod
    def of(cls, config: Mapping[str, Any], batch: Batch) -> Work:
        """Of the clips in a batch."""
        from training.plan import forward_flop

        _, frames, _, height, width = batch.noise.shape
        patch, patch_t = config["patch_size"], config["patch_size_t"] or 1
        video = frames // patch_t * (height // patch) * (width // patch)
        text = batch.prompt.shape[1]
        return cls(video + text, forward_flop(config, config["pose_control"], video, text) / 1e12)

    def rates(self, samples: int, seconds: float, workers: int, device_name: str) -> dict[str, float]:
        """Tokens per second over all workers, and the share of the devices' peak where that is known."""
        rates = {"tokens_per_second": self.tokens * samples / seconds}
        peak = next((value for name, value in PEAK_TFLOPS.items() if name in device_name), None)
        if peak is not None:
            rates["mfu"] = 3 * self.forward_tflop * samples / seconds / (peak * workers)
        return rates
