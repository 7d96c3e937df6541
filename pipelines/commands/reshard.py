"""python -m pipelines reshard"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Reshard:
    """Puts the samples of a data set into shards of another size, or one kind of clip per shard."""

    dataset: str
    """Data set: a folder, or an s3:// or gs:// prefix."""
    size: float = 256.0
    """Mebibytes of a shard."""
    by: Literal["none", "size", "aspect"] = "none"
    """One frame size, or one aspect ratio, per shard; "none" = all kinds together."""
    work: str = ""
    """Work folder of the runs that made the data set, if it is not DATASET/.work."""

    def run(self) -> int:
        from pipelines.datasets.resharding import reshard

        done = reshard(self.dataset, self.size, self.by, work=self.work)
        print(f"{done.shards} shards in {self.dataset}, {done.written} of them written anew")
        return 0
