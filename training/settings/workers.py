"""Where a run trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from training.settings.fields import free, not_negative

Precision = Literal["fp32", "bf16"]
Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Where it runs."""

    num_workers: int = free(8)
    """Ray Train workers, one device each; 0 trains in this process without Ray."""
    device: Device = "cuda"
    """Device of a worker."""
    zero_stage: Literal[1, 2, 3] = free(2)
    """DeepSpeed ZeRO: 1 shards optimizer states, 2 gradients too, 3 parameters too."""
    offload_optimizer: bool = free(False)
    """Optimizer states live in host memory: less GPU memory for much time. Needs a C++ compiler on the workers."""
    precision: Precision = "bf16"
    """Of weights and activations; master weights, schedule and loss are fp32 always."""
    threads_per_worker: int = free(0)
    """CPU threads of torch in each worker; 0 leaves the choice to torch."""
    max_restarts: int = free(3)
    """Times a run that lost a worker is started again from its last checkpoint."""
    min_workers: int = free(0)
    """Fewest workers that a run goes on with where some are lost or not there yet; 0 waits for all of them."""

    def __post_init__(self):
        not_negative(self, "num_workers", "threads_per_worker", "max_restarts", "min_workers")
