"""Where a run trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dynamictrl.errors import ConfigError
from training.settings.fields import free, not_negative, positive

Precision = Literal["fp32", "bf16"]
Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Where it runs."""

    num_workers: int = free(8)
    """Ray Train workers, one device each; 0 trains in this process without Ray."""
    device: Device = "cuda"
    """Device of a worker."""
    zero_stage: Literal[0, 1, 2, 3] = free(2)
    """DeepSpeed ZeRO: 1 shards optimizer states, 2 gradients too, 3 parameters too; 0 takes the fastest that fits."""
    offload_optimizer: bool = free(False)
    """Optimizer states live in host memory: less GPU memory for more time. Needs no compiler."""
    gpu_memory_gib: float = free(0.0)
    """GiB of a worker's GPU, for the check that a run fits; 0 asks this machine's GPU, and where there is none (a
    cluster's head) nothing is checked."""
    precision: Precision = "bf16"
    """Of weights and activations; master weights, schedule and loss are fp32 always."""
    threads_per_worker: int = free(0)
    """CPU threads of torch in each worker; 0 leaves the choice to torch."""
    max_restarts: int = free(3)
    """Times in a row, without a new checkpoint between, that a run which lost a worker is started again from its last
    one. Machines that were taken away are not counted."""
    min_workers: int = free(0)
    """Fewest workers that a run goes on with where some are lost or not there yet, in numbers that share the batch
    evenly; 0 waits for all of them."""
    resize_seconds: float = free(60.0)
    """How often a run with min_workers looks for more machines; it takes a checkpoint before it grows."""
    stall_minutes: float = free(30.0)
    """Without a step for so long, a worker is taken for dead and the run is started again; starting up may take four
    times as long. Longer than the slowest step, checkpoint and export."""

    def __post_init__(self):
        not_negative(self, "num_workers", "threads_per_worker", "max_restarts", "min_workers", "gpu_memory_gib")
        positive(self, "resize_seconds", "stall_minutes")
        if self.min_workers > self.num_workers:
            raise ConfigError(
                f"min_workers {self.min_workers} is above num_workers {self.num_workers}; num_workers is the most that "
                "are used, min_workers the fewest",
                code="setting_conflict",
                param="min_workers",
            )
