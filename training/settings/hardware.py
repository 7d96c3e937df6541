"""What a plan is made for."""

from __future__ import annotations

from dataclasses import dataclass

from training.settings.fields import not_negative, positive


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What the plan is made for."""

    gpus: int = 0
    """Number of GPUs; 0 takes the recipe's number of workers."""
    gpu: str = "h200"
    """Kind of GPU: h200 (its rates are measured), h100, a100, h20, b200 (estimates by their datasheets)."""
    link_gb_per_second: float = 0.0
    """Between GPUs, decimal GB a second and direction; 0 takes NVLink's up to 8 GPUs and 45 beyond."""
    disk_gb_per_second: float = 2.0
    """At which checkpoints are written, decimal GB a second of all workers together."""
    precomputed: bool = True
    """The data set has encodings (`python -m pipelines encode`); off: clips are encoded while the run trains."""
    gpu_hour_price: float = 0.0
    """Of one GPU, in any currency; 0 tells of no price."""

    def __post_init__(self):
        not_negative(self, "gpus", "link_gb_per_second", "gpu_hour_price")
        positive(self, "disk_gb_per_second")
