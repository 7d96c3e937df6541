"""What a run can go on from."""

from __future__ import annotations

from dataclasses import dataclass

from training.settings.fields import free, positive


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """When checkpoints are written, and which are kept."""

    checkpoint_every: int = free(500)
    """Steps between checkpoints."""
    keep_checkpoints: int = free(2)
    """Newest checkpoints kept."""

    def __post_init__(self):
        positive(self, "checkpoint_every", "keep_checkpoints")
