"""What is watched while a run trains, and when it is stopped."""

from __future__ import annotations

from dataclasses import dataclass

from dynamictrl.errors import ConfigError
from training.settings.fields import free, not_negative, positive


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Guards and traces."""

    timestep_bins: int = free(5)
    """Equal parts of the schedule whose losses are recorded one by one, as loss/t000-200 and so on."""
    max_skipped_steps: int = free(20)
    """Steps in a row that were not applied, after which the run stops with its last good checkpoint kept."""
    spike_factor: float = free(10.0)
    """A gradient norm above so many times its running median is told of, with its clips; 0 tells of none."""
    spike_window: int = free(128)
    """Applied steps that the running median is taken over; none is called a spike before a quarter of them."""
    skip_spikes: bool = False
    """Steps whose gradient norm is a spike are not applied."""
    profile_step: int = free(0)
    """Step, counted from 1, that is traced with the one after it, into RUN/profile; 0 traces none."""

    def __post_init__(self):
        positive(self, "timestep_bins", "max_skipped_steps", "spike_window")
        not_negative(self, "spike_factor", "profile_step")
        if self.skip_spikes and not self.spike_factor:
            raise ConfigError(
                "skip_spikes needs a spike_factor above 0, which says what a spike is; 10 is a good start",
                code="setting_conflict",
                param="skip_spikes",
            )
