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
    """Newest whole checkpoints kept."""
    checkpoint_in_background: bool = free(True)
    """Steps wait only until states are copied to host memory, and go on while they are written; off: until the
    checkpoint is whole."""
    checkpoint_on_signal: bool = free(True)
    """SIGTERM, as batch systems send it before they take a machine away, makes a checkpoint at the end of the step and
    ends the session; the same command goes on."""

    def __post_init__(self):
        positive(self, "checkpoint_every", "keep_checkpoints")
