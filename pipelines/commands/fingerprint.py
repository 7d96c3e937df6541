"""python -m pipelines fingerprint"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dynamictrl.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class FingerprintVideos:
    """Writes the hashes of test videos as a list, by which others keep them out of a training set."""

    videos: tuple[str, ...]
    """Files, folders or globs of videos, http(s) or bucket prefixes, or lists written before, to be joined."""
    out: Path
    """List to write: .jsonl or .parquet, given as --leaks.held-out to a recipe."""

    def __post_init__(self):
        if self.out.suffix not in (".jsonl", ".parquet"):
            raise ConfigError(f"out is {self.out}; its name must end in .jsonl or .parquet", param="out")

    def run(self) -> int:
        """Raises InputError where a video cannot be read."""
        from pipelines.held_out import check_names, count, read_held_out, write_held_out
        from pipelines.watching.progress import Progress

        check_names(self.videos)
        with Progress("fingerprint", count(self.videos), "videos") as progress:
            videos = read_held_out(self.videos, advance=progress.advance)
        write_held_out(self.out, videos)
        print(f"{len(videos)} videos in {self.out}")
        return 0
