"""Who is who from frame to frame: persons found in single frames become tracks with stable ids.

A sighting continues a track where its box and its joints are near to where the track was going: people who cross keep
their ids. A person may be missed for a few frames and keeps its id.
Shape suffixes: F frames, P persons, J joints (134).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from dynamictrl.poses.pose import (
    BODY,
    LEFT_HIP,
    LEFT_SHOULDER,
    NECK,
    NUM_KEYPOINTS,
    RIGHT_HIP,
    RIGHT_SHOULDER,
    VISIBLE,
    PoseSequence,
)

Array = NDArray[np.float64]

_TRUNK = [NECK, RIGHT_SHOULDER, LEFT_SHOULDER, RIGHT_HIP, LEFT_HIP]
_MEMORY = 6
"""Frames back over which a person's pace is taken."""


@dataclass(frozen=True)
class Sighting:
    """One person in one frame, in pixels."""

    box: Array
    """[4] as x1, y1, x2, y2."""
    keypoints: Array
    """[134, 2]."""
    scores: Array
    """[134]."""


@dataclass
class _Track:
    sightings: dict[int, Sighting] = field(default_factory=dict)
    """By frame, the earliest first."""

    @property
    def last_frame(self) -> int:
        return next(reversed(self.sightings))

    def expected(self, frame: int) -> Sighting:
        """Where the person should be in a later frame, going on as it went: people who cross keep their ways."""
        last = self.sightings[self.last_frame]
        step = self._step() * (frame - self.last_frame)
        return Sighting(last.box + np.tile(step, 2), last.keypoints + step, last.scores)

    def _step(self) -> Array:
        """[2], pixels a frame over the latest sightings; by the joints that move least by themselves."""
        last = self.last_frame
        first = min(takewhile(lambda frame: frame >= last - _MEMORY, reversed(self.sightings)))
        one, other = self.sightings[first], self.sightings[last]
        both = (one.scores[_TRUNK] > VISIBLE) & (other.scores[_TRUNK] > VISIBLE)
        if first == last or not both.any():
            return np.zeros(2)
        moved = np.sort((other.keypoints[_TRUNK] - one.keypoints[_TRUNK])[both], axis=0)
        # The median; numpy's own takes several times as long on five numbers.
        return (moved[(len(moved) - 1) // 2] + moved[len(moved) // 2]) / 2 / (last - first)

    def area(self) -> float:
        return sum(_area(sighting.box) for sighting in self.sightings.values())


def _area(box: Array) -> float:
    return float(max(box[2] - box[0], 0) * max(box[3] - box[1], 0))


def box_overlap(one: Array, other: Array) -> float:
    """Intersection over union of two boxes."""
    return float(_overlaps(one[None], other[None])[0, 0])


def _overlaps(ones_A4: Array, others_B4: Array) -> Array:
    """Intersection over union [A, B]."""
    low = np.maximum(ones_A4[:, None, :2], others_B4[None, :, :2])
    sides = np.maximum(np.minimum(ones_A4[:, None, 2:], others_B4[None, :, 2:]) - low, 0)
    shared = sides[..., 0] * sides[..., 1]
    return shared / np.maximum(_areas(ones_A4)[:, None] + _areas(others_B4) - shared, 1e-9)


def _areas(boxes_N4: Array) -> Array:
    sides = np.maximum(boxes_N4[:, 2:] - boxes_N4[:, :2], 0)
    return sides[:, 0] * sides[:, 1]


def likeness(one: Sighting, other: Sighting) -> float:
    """0..1: half the overlap of the boxes, half the nearness of the body's joints (as in COCO's OKS)."""
    return float(likenesses([one], [other])[0, 0])


def likenesses(ones: Sequence[Sighting], others: Sequence[Sighting]) -> Array:
    """`likeness` of each with each [A, B]; one table costs about what one pair would."""
    boxes_A4, boxes_B4 = (np.stack([who.box for who in people]) for people in (ones, others))
    points_A, points_B = (np.stack([who.keypoints[BODY] for who in people]) for people in (ones, others))
    seen_A, seen_B = (np.stack([who.scores[BODY] for who in people]) > VISIBLE for people in (ones, others))
    both_ABJ = seen_A[:, None] & seen_B
    apart_ABJ2 = points_A[:, None] - points_B
    away_ABJ = (apart_ABJ2 * apart_ABJ2).sum(axis=-1)
    size_AB = np.maximum((_areas(boxes_A4)[:, None] + _areas(boxes_B4)) / 2, 1.0)
    # A tenth of a person's size between two frames halves the nearness, roughly.
    near_ABJ = np.exp(-away_ABJ / (0.02 * size_AB)[..., None]) * both_ABJ
    near_AB = near_ABJ.sum(axis=-1) / np.maximum(both_ABJ.sum(axis=-1), 1)
    return 0.5 * _overlaps(boxes_A4, boxes_B4) + 0.5 * near_AB


def track(
    sightings: list[list[Sighting]],
    *,
    height: int,
    width: int,
    least_likeness: float = 0.15,
    longest_gap: int = 8,
    shortest_track: int = 3,
) -> PoseSequence:
    """The sightings of each frame as a clip's poses, the person who covers most of the picture first.

    `longest_gap` is how many frames a person may be missed and keep its id. Tracks of fewer than `shortest_track`
    frames (or than the clip, where that is shorter) are dropped. Ids count from 1 in the order of the result.
    """
    tracks: list[_Track] = []
    for frame, found in enumerate(sightings):
        alive = [t for t in tracks if frame - t.last_frame <= longest_gap + 1]
        for index, match in enumerate(_assign(alive, found, frame, least_likeness)):
            if match is None:
                tracks.append(_Track({frame: found[index]}))
            else:
                match.sightings[frame] = found[index]
    enough = min(shortest_track, len(sightings))
    kept = sorted((t for t in tracks if len(t.sightings) >= enough), key=_Track.area, reverse=True)
    return _gather(kept, len(sightings), height, width)


def _assign(alive: list[_Track], found: list[Sighting], frame: int, least: float) -> list[_Track | None]:
    """For each person found the track it continues, or None."""
    from scipy.optimize import linear_sum_assignment

    matches: list[_Track | None] = [None] * len(found)
    if not alive or not found:
        return matches
    expected = [track.expected(frame) for track in alive]
    table = likenesses(expected, found)
    for row, column in zip(*linear_sum_assignment(-table), strict=True):
        if table[row, column] >= least:
            matches[column] = alive[row]
    return matches


def _gather(tracks: list[_Track], frames: int, height: int, width: int) -> PoseSequence:
    count = len(tracks)
    keypoints = np.zeros((frames, count, NUM_KEYPOINTS, 2), np.float32)
    scores = np.zeros((frames, count, NUM_KEYPOINTS), np.float32)
    boxes = np.zeros((frames, count, 4), np.float32)
    size = np.array([width, height], np.float64)
    for person, one in enumerate(tracks):
        for frame, sighting in one.sightings.items():
            keypoints[frame, person] = sighting.keypoints / size
            scores[frame, person] = sighting.scores
            boxes[frame, person] = np.clip(sighting.box / np.tile(size, 2), 0, 1)
    return PoseSequence(keypoints, scores, boxes, np.arange(1, count + 1, dtype=np.int32))
