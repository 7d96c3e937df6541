"""Clips that are sampled and measured while a run trains."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dynamictrl.errors import ConfigError
from training.settings.fields import free, not_negative, positive


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What is sampled, when, and with how much patience; `gate_metric` says what the exported model must reach."""

    validate_every: int = free(0)
    """Steps between validations, each of a checkpoint that is made then; the last step is validated too. 0: none."""
    validation_data: Path | None = free(None)
    """Data set folder whose clips are sampled; needed where validate_every is set. Never the training data."""
    validation_clips: int = free(4)
    """Clips sampled each time, the first of the data set's order."""
    validation_steps: int = free(25)
    """Denoising steps."""
    validation_guidance: float = free(3.0)
    """Classifier-free guidance on the caption; 1 is off."""
    validation_seed: int = free(42)
    """Of the initial noise, the same each time, so that steps and runs can be compared."""
    validation_gpus: float = free(0.0)
    """GPUs of the task that samples, off the training workers; 0 samples on CPUs."""
    validation_wait_minutes: float = free(60.0)
    """How long the end of a run waits for validations that are still on their way."""

    def __post_init__(self):
        not_negative(self, "validate_every", "validation_gpus", "validation_wait_minutes", "validation_seed")
        positive(self, "validation_clips", "validation_steps")
        if self.validate_every and self.validation_data is None:
            raise ConfigError(
                f"validate_every is {self.validate_every} and there is no validation_data; name a data set folder of "
                "clips that are not trained on, or leave validate_every 0",
                code="setting_conflict",
                param="validation_data",
            )

    def is_due(self, step: int, last: int) -> bool:
        """Whether the checkpoint after so many steps is validated; `last` is the run's last step."""
        return self.validate_every > 0 and (step % self.validate_every == 0 or step == last)
