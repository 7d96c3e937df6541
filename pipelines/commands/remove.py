"""python -m pipelines remove"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Remove:
    """Takes a source down: its clips, captions, index entries, pictures and records, and no later run brings it back.

    Rewrites only the shards that hold it. `tombstones.jsonl` keeps hashes, time and reason, and no name.
    """

    dataset: str
    """Data set: a folder, or an s3:// or gs:// prefix."""
    source: str
    """The source's URI as the manifest has it, or the sha256 of its content."""
    reason: str = ""
    """What the tombstone says; it is published."""
    work: str = ""
    """Work folder of the runs that made the data set, if it is not DATASET/.work."""

    def run(self) -> int:
        from pipelines.datasets.takedown import take_down

        removal = take_down(self.dataset, self.source, self.reason, work=self.work)
        print(
            f"{removal.clips} clips removed; {removal.shards} shards written anew ({removal.bytes / 2**20:.1f} MiB); "
            f"{len(removal.tombstones)} tombstones in {self.dataset}"
            if removal.clips
            else f"nothing left to remove; {len(removal.tombstones)} tombstones in {self.dataset}"
        )
        return 0
