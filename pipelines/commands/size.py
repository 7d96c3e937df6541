"""python -m pipelines size"""

from __future__ import annotations

from dataclasses import dataclass

from dynamictrl.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Size:
    """Counts clips, hours and bytes by member, resolution, aspect, length and licence; shards against their target."""

    dataset: str
    """Data set: a folder, or an s3:// or gs:// prefix."""
    sample: int = -1
    """Clips whose members are measured; 0 = all, -1 = all on a disk and a hundred in a store."""
    work: str = ""
    """Work folder of the run; "" = where a run keeps it by itself."""

    def __post_init__(self):
        if self.sample < -1:
            raise ConfigError(f"sample is {self.sample}; it is a number of clips, 0 or -1", param="sample")

    def run(self) -> int:
        from pipelines.datasets import sizes
        from pipelines.datasets.dataset_view import open_view

        view = open_view(self.dataset, self.work)
        print("\n".join(sizes.text(view, None if self.sample < 0 else self.sample)))
        return 0
