"""Refuses clips of videos that the model will be tested on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from dynamictrl.errors import ConfigError
from pipelines.clip import Clip
from pipelines.stage import Per, Stage

CACHE = "held_out"
"""Folder in the work folder for the hashes of held-out videos."""


@dataclass(frozen=True)
class DropLeaks(Stage):
    """Keeps test videos (TikTok 335 to 340, Unseen100) out of the training set, whatever was done to the copies.

    A stretch is enough: a leak is worse than a clip too few. Needs `Fingerprint` before it, and stands before
    `DropDuplicates`, so that no clip is dropped in favour of one that leaks. At rest without `held_out`.

    Code: `held_out` (score `held_out_similarity`).
    """

    per: ClassVar[Per] = "dataset"
    version: ClassVar[int] = 2

    held_out: tuple[str, ...] = ()
    """Files, folders or globs of held-out videos, or lists of their hashes (.jsonl, .parquet) that the command
    `fingerprint` wrote; lists need no videos."""
    similarity: float = 0.8
    """Likeness of movement, 0 to 1, from which a clip shows a held-out video."""
    overlap: float = 0.25
    """Share of the shorter of the two that both must show."""

    def __post_init__(self):
        if not 0.5 <= self.similarity <= 1 or not 0 < self.overlap <= 1:
            raise ConfigError(
                f"similarity is {self.similarity} (0.5 to 1) and overlap {self.overlap} (above 0, at most 1)",
                param="leaks",
            )

    @property
    def active(self) -> bool:
        return bool(self.held_out)

    @property
    def weights(self) -> tuple[str, ...]:
        """What is held out shapes the result as weights do: by its content."""
        return self.held_out

    def check(self) -> None:
        """Raises ConfigError where a name is nothing."""
        from pipelines.held_out import check_names

        check_names(self.held_out)

    def decide(self, clips: Sequence[Clip]) -> Iterable[Clip]:
        """Every clip back; those that show a held-out video refused with its name. Raises as `read_held_out`."""
        from dynamictrl.media.video_groups import find_known
        from dynamictrl.media.video_hash import VideoHash
        from pipelines.held_out import read_held_out

        left = [clip for clip in clips if not clip.rejected]
        if not left:
            return clips
        held_out = read_held_out(self.held_out, Path(left[0].work) / CACHE)
        by_sha256 = {video.sha256: video.name for video in held_out if video.sha256}
        decided = {id(c): _leak(c, by_sha256[c.source_sha256], 1.0) for c in left if c.source_sha256 in by_sha256}
        hashed = sorted((c for c in left if id(c) not in decided and c.video_hash), key=lambda c: (c.key, c.source))
        known = [video for video in held_out if video.video_hash]
        names = [video.name for video in known]
        hashes = [VideoHash.from_text(video.video_hash) for video in known]
        # A copy of what leaks leaks, though it be too far from the held-out video itself.
        while hashes and hashed:
            looked_through = [VideoHash.from_text(clip.video_hash) for clip in hashed]
            copies = find_known(hashes, looked_through, similarity=self.similarity, overlap=self.overlap)
            found = [(hashed[c.video], names[c.keeper], c.likeness.similarity) for c in copies]
            decided |= {id(clip): _leak(clip, name, similarity) for clip, name, similarity in found}
            hashed = [clip for clip in hashed if id(clip) not in decided]
            names = [name for _, name, _ in found]
            hashes = [looked_through[c.video] for c in copies]
        return [decided.get(id(clip), clip) for clip in clips]


def _leak(clip: Clip, name: str, similarity: float) -> Clip:
    refused = clip.reject("held_out", f"shows what is held out: {name}, similarity {similarity:.2f}")
    return refused.with_scores(held_out_similarity=similarity)
