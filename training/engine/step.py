"""One optimizer step, as functions of (engine, batch): loss, gradients, learning rate."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor

from dynamictrl import objective
from training.settings.optimization import Optimization

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from training.samples.batches import Batch
    from training.watching.meter import StepMeter


def forward_backward(engine: DeepSpeedEngine, schedule: objective.Schedule, batch: Batch, meter: StepMeter) -> Tensor:
    """Adds one micro-batch's gradients and returns its losses [B], detached."""
    with meter.phase("forward"):
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
        loss = losses.mean()
    with meter.phase("backward"):
        backward(engine, loss)
    return losses.detach()


def backward(engine: DeepSpeedEngine, loss: Tensor) -> None:
    """Adds a loss's gradients; of one that is not finite they are not either, and the engine skips the step."""
    # Times exactly 1, or NaN: no worker has to ask the others, or its device, what became of the loss.
    engine.backward(loss * (loss.detach() * 0 + 1))


def learning_rate(optimization: Optimization, step: int) -> float:
    """Of the step-th step, counted from 0: linear rise, then constant or half a cosine to 0."""
    peak, warmup = optimization.learning_rate, optimization.warmup_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    if optimization.schedule == "constant":
        return peak
    progress = (step - warmup) / max(1, optimization.steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))
