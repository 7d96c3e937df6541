"""How long and how hard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from training.settings.fields import free, not_negative, positive, share

Schedule = Literal["constant", "cosine"]


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """How long and how hard."""

    steps: int = 50_000
    """Optimizer steps."""
    batch_size: int = 32
    """Samples per step over all workers; the same samples whatever the number of workers."""
    micro_batch_size: int = free(1)
    """Samples per worker held on the device at once; the rest of the batch is accumulated."""
    learning_rate: float = 5e-6
    """Peak."""
    schedule: Schedule = "cosine"
    """Of the learning rate after the warm-up; cosine ends at 0."""
    warmup_steps: int = 1000
    """Steps of linear rise."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's two averages."""
    weight_decay: float = 1e-3
    """AdamW's, decoupled."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm; 0 clips nothing."""
    stratified_timesteps: bool = True
    """Timesteps of one batch are spread evenly over the schedule: less noise in the gradient at no cost."""
    ema_decay: float = 0.0
    """Per step, of the moving average of the weights that is exported in their stead; 0 keeps none."""

    def __post_init__(self):
        share(self, "ema_decay")
        positive(self, "steps", "batch_size", "micro_batch_size")
        not_negative(self, "learning_rate", "warmup_steps", "weight_decay", "max_grad_norm")
