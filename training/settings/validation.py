"""Clips that are sampled and measured while a run trains."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from training.settings.fields import free, not_negative, positive


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What is sampled, when, and what the exported model must reach."""

    validate_every: int = free(0)
    """Steps between validations; 0 validates nothing."""
    validation_data: Path | None = free(None)
    """Data set folder whose clips are sampled; needed where validate_every is set. Never the training data."""
    validation_clips: int = free(4)
    """Clips sampled each time, the first of the data set's order."""
    validation_steps: int = free(25)
    """Denoising steps."""
    validation_guidance: float = free(3.0)
    """Classifier-free guidance on the caption; 1 is off."""
    validation_gpus: float = free(0.0)
    """GPUs of the task that samples, off the training workers; 0 samples on CPUs."""

    def __post_init__(self):
        not_negative(self, "validate_every", "validation_gpus")
        positive(self, "validation_clips", "validation_steps")
