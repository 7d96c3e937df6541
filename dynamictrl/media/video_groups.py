"""Which videos of many are copies of others, and which of them to keep: the same answer in whatever order they come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dynamictrl.media.video_copies import candidates
from dynamictrl.media.video_hash import VideoHash
from dynamictrl.media.video_likeness import Likeness, Track, compare

MOST_TRACKS = 2000
"""Videos whose movement is held in memory at once: about 20 kB each."""


@dataclass(frozen=True)
class Copy:
    """A video that shows what another one shows."""

    video: int
    """Its place among the videos."""
    keeper: int
    likeness: Likeness


def find_copies(
    hashes: Sequence[VideoHash],
    rank: Callable[[int], object],
    similarity: Callable[[int, int], float],
    *,
    overlap: float,
) -> list[Copy]:
    """The videos to leave out so that no two of those left are found alike.

    `similarity` says from what likeness on two videos are alike. From the best `rank` (the least) on, a video is left
    out if it is like one that stays: so each copy is like its own keeper, the most alike of those that stay, however
    long the chain of videos that resemble their neighbours. Give `hashes` in an order of their content (by key), and
    the result does not depend on the order in which they were found.
    """
    pairs = _Pairs(hashes, similarity, overlap)
    to_compare = [*_identical(hashes), *((int(a), int(b)) for a, b in candidates(hashes))]
    alike = [pair for pair in to_compare if pairs.likeness(*pair)]
    copies = []
    for group in _joined(alike):
        kept: list[int] = []
        for video in sorted(group, key=lambda v: (rank(v), v)):  # type: ignore[type-var]
            found = [Copy(video, k, like) for k in kept if (like := pairs.likeness(k, video))]
            if found:
                copies.append(max(found, key=lambda copy: copy.likeness.similarity))
            else:
                kept.append(video)
        pairs.forget(group)
    return sorted(copies, key=lambda copy: copy.video)


def find_known(
    known: Sequence[VideoHash], hashes: Sequence[VideoHash], *, similarity: float, overlap: float
) -> list[Copy]:
    """Those of `hashes` that show what one of `known` shows, each with the most alike; `keeper` is its place there.

    In doubt they do: what is known must not be missed.
    """
    both = [*known, *hashes]
    pairs = _Pairs(both, lambda _, __: similarity, overlap, lenient=True)
    best: dict[int, Copy] = {}
    same = [(a, b) for a, b in _identical(both) if a < len(known) <= b]
    for a, b in [*same, *((int(a), int(b)) for a, b in candidates(both, first=len(known)))]:
        place, likeness = b - len(known), pairs.likeness(a, b)
        if likeness and (place not in best or likeness.similarity > best[place].likeness.similarity):
            best[place] = Copy(place, a, likeness)
    return [best[place] for place in sorted(best)]


@dataclass
class _Pairs:
    """What has been compared so far."""

    hashes: Sequence[VideoHash]
    similarity: Callable[[int, int], float]
    overlap: float
    lenient: bool = False
    _tracks: dict[int, Track] = field(default_factory=dict)
    _known: dict[tuple[int, int], Likeness | None] = field(default_factory=dict)

    def likeness(self, a: int, b: int) -> Likeness | None:
        """How alike two videos are; None where that is not enough."""
        a, b = min(a, b), max(a, b)
        if (a, b) not in self._known:
            enough = self.similarity(a, b)
            found = self._compared(a, b, enough)
            self._known[a, b] = found if found is not None and found.similarity >= enough else None
        return self._known[a, b]

    def _compared(self, a: int, b: int, enough: float) -> Likeness | None:
        if _content(self.hashes[a]) == _content(self.hashes[b]):
            return Likeness(1.0, self.hashes[a].seconds, 0.0, mirrored=False)
        return compare(self._track(a), self._track(b), overlap=self.overlap, enough=enough, lenient=self.lenient)

    def _track(self, place: int) -> Track:
        if len(self._tracks) > MOST_TRACKS:
            self._tracks.clear()
        if place not in self._tracks:
            self._tracks[place] = Track(self.hashes[place])
        return self._tracks[place]

    def forget(self, group: Sequence[int]) -> None:
        for place in group:
            self._tracks.pop(place, None)


def _content(video: VideoHash) -> bytes:
    return video.middle_K.tobytes() + video.steps_TK.tobytes()


def _identical(hashes: Sequence[VideoHash]) -> list[tuple[int, int]]:
    """Each video with the first one of the same pictures, also where nothing moves in them."""
    first: dict[bytes, int] = {}
    pairs = ((first.setdefault(_content(video), place), place) for place, video in enumerate(hashes))
    return [(a, b) for a, b in pairs if a != b]


def _joined(pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The connected groups, each in order."""
    parent: dict[int, int] = {}

    def root(place: int) -> int:
        while parent.setdefault(place, place) != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    for a, b in pairs:
        one, other = sorted((root(a), root(b)))
        parent[other] = one
    groups: dict[int, list[int]] = {}
    for place in sorted(parent):
        groups.setdefault(root(place), []).append(place)
    return list(groups.values())
