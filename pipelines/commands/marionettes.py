"""python -m pipelines marionettes"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dynamictrl.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Marionettes:
    """Writes synthetic source videos with exact keypoints, masks and captions beside them."""

    out: Path
    """Folder to write."""
    count: int = 12
    """Videos."""
    seed: int = 0
    """The same seed gives the same bytes."""

    def __post_init__(self):
        if self.count < 1:
            raise ConfigError(f"count is {self.count}; it must be at least 1", param="count")

    def run(self) -> int:
        from dynamictrl.mini.marionettes import write_marionettes
        from pipelines.watching.progress import Progress

        with Progress("marionettes", self.count, "videos") as progress:
            paths = write_marionettes(self.out, self.count, self.seed, progress=lambda done, _: progress.advance(1))
        print(f"{len(paths)} videos in {self.out}")
        return 0
