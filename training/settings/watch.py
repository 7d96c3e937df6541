"""What is watched while a run trains, and when it is stopped."""

from __future__ import annotations

from dataclasses import dataclass

from training.settings.fields import free, not_negative, positive


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Guards and traces."""

    timestep_bins: int = free(5)
    """Equal parts of the schedule whose losses are recorded one by one, as loss/t000-200 and so on."""
    max_skipped_steps: int = free(20)
    """Steps in a row whose gradients were not finite, after which the run stops at its last good checkpoint."""
    spike_factor: float = free(0.0)
    """A gradient norm above so many times its running median is told of in the log; 0 tells of none."""
    profile_step: int = free(0)
    """Step, counted from 1, whose trace is written to RUN/profile; 0 traces none."""

    def __post_init__(self):
        positive(self, "timestep_bins", "max_skipped_steps")
        not_negative(self, "spike_factor", "profile_step")
