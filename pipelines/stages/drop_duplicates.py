"""Refuses clips that show what another clip shows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from dynamictrl.errors import ConfigError
from pipelines.clip import Clip
from pipelines.stage import Per, Stage

REPEATED = 0.99
"""Likeness from which two clips of one source are one: a loop repeats its pictures, an exercise only nearly (drawn ones
reach 0.987)."""


@dataclass(frozen=True)
class DropDuplicates(Stage):
    """Keeps one clip of those that show the same, be it encoded anew, scaled, cropped, mirrored or cut at other times.

    The one with most pixels stays, then the longest, then the sharpest, then the first key: whatever order or number
    of workers they come from. Two takes of one dancer in one room are told apart by their movement; where nothing
    moves only the very same pictures are a copy. Needs `Fingerprint` before it.

    Codes: `duplicate_source` (the same bytes under another name), `near_duplicate` (score `duplicate_similarity`).
    """

    per: ClassVar[Per] = "dataset"
    version: ClassVar[int] = 2

    similarity: float = 0.88
    """Likeness of two clips' movement, 0 to 1, from which they are one; below 0.8 two takes may pass for one."""
    overlap: float = 0.5
    """Share of the shorter clip that both must show."""

    def __post_init__(self):
        if not 0.5 <= self.similarity <= 1 or not 0 < self.overlap <= 1:
            raise ConfigError(
                f"similarity is {self.similarity} (0.5 to 1) and overlap {self.overlap} (above 0, at most 1)",
                param="duplicates",
            )

    def decide(self, clips: Sequence[Clip]) -> Iterable[Clip]:
        """Every clip back; copies refused with their keeper's key in the message."""
        from dynamictrl.media.video_groups import find_copies
        from dynamictrl.media.video_hash import VideoHash

        decided = {id(clip): clip for clip in clips}
        for clip, first in _same_bytes(clips):
            decided[id(clip)] = clip.reject("duplicate_source", f"the same bytes as {first.source}")
        # In order of content: the pairs that are compared, and so the result, do not depend on who came first.
        left = [c for c in clips if not decided[id(c)].rejected and c.video_hash]
        left.sort(key=lambda c: (c.key, c.source))
        hashes = [VideoHash.from_text(clip.video_hash) for clip in left]

        def enough(a: int, b: int) -> float:
            repeats = left[a].source_sha256 == left[b].source_sha256
            return max(self.similarity, REPEATED) if repeats else self.similarity

        for copy in find_copies(hashes, lambda place: _rank(left[place]), enough, overlap=self.overlap):
            clip, keeper, like = left[copy.video], left[copy.keeper], copy.likeness
            mirrored = ", mirrored" if like.mirrored else ""
            refused = clip.reject(
                "near_duplicate",
                f"shows {like.seconds:.1f} s of {keeper.key} ({keeper.source}){mirrored}; similarity "
                f"{like.similarity:.2f}, below {self.similarity:g} they would be two clips",
            )
            decided[id(clip)] = refused.with_scores(duplicate_similarity=like.similarity)
        return [decided[id(clip)] for clip in clips]


def _same_bytes(clips: Iterable[Clip]) -> list[tuple[Clip, Clip]]:
    """(copy, the one that stays) of clips from one place in sources of the same bytes."""
    taken: dict[tuple[str, float, float], Clip] = {}
    found = []
    for clip in sorted(clips, key=lambda c: (c.source, c.key)):
        if clip.rejected or not clip.source_sha256:
            continue
        first = taken.setdefault((clip.source_sha256, clip.start, clip.end), clip)
        if first is not clip:
            found.append((clip, first))
    return found


def _rank(clip: Clip) -> tuple[float, float, float, float, str]:
    """Best first: what is kept must not depend on where or when it was found."""
    source = clip.scores.get("source_width", 0) * clip.scores.get("source_height", 0)
    return -clip.width * clip.height, -source, -clip.duration, -clip.scores.get("sharpness", 0), clip.key
