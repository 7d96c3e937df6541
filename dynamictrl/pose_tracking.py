"""Who is who from frame to frame: persons found in single frames become tracks with stable ids.

A sighting continues a track where its box and its joints are near to where the track was going: people who cross keep
their ids. A person may be missed for a few frames and keeps its id.
Shape suffixes: F frames, P persons, J joints (134).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dynamictrl.pose import (
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

    @property
    def last_frame(self) -> int:
        return max(self.sightings)

    def expected(self, frame: int) -> Sighting:
        """Where the person should be in a later frame, going on as it went: people who cross keep their ways."""
        last = self.sightings[self.last_frame]
        step = self._step() * (frame - self.last_frame)
        return Sighting(last.box + np.tile(step, 2), last.keypoints + step, last.scores)

    def _step(self) -> Array:
        """[2], pixels a frame over the latest sightings; by the joints that move least by themselves."""
        last = self.last_frame
        first = min(frame for frame in self.sightings if frame >= last - _MEMORY)
        one, other = self.sightings[first], self.sightings[last]
        both = (one.scores[_TRUNK] > VISIBLE) & (other.scores[_TRUNK] > VISIBLE)
        if first == last or not both.any():
            return np.zeros(2)
        return np.median((other.keypoints[_TRUNK] - one.keypoints[_TRUNK])[both], axis=0) / (last - first)

    def area(self) -> float:
        return sum(_area(sighting.box) for sighting in self.sightings.values())


def _area(box: Array) -> float:
    return float(max(box[2] - box[0], 0) * max(box[3] - box[1], 0))


def box_overlap(one: Array, other: Array) -> float:
    """Intersection over union of two boxes."""
    low, high = np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])
    shared = float(np.prod(np.clip(high - low, 0, None)))
    return shared / max(_area(one) + _area(other) - shared, 1e-9)


def likeness(one: Sighting, other: Sighting) -> float:
    """0..1: half the overlap of the boxes, half the nearness of the body's joints (as in COCO's OKS)."""
    both = (one.scores[BODY] > VISIBLE) & (other.scores[BODY] > VISIBLE)
    overlap = box_overlap(one.box, other.box)
    if not both.any():
        return overlap / 2
    away = ((one.keypoints[BODY] - other.keypoints[BODY])[both] ** 2).sum(axis=-1)
    size = max((_area(one.box) + _area(other.box)) / 2, 1.0)
    # A tenth of a person's size between two frames halves the nearness, roughly.
    return 0.5 * overlap + 0.5 * float(np.exp(-away / (0.02 * size)).mean())


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
    table = np.array([[likeness(one, person) for person in found] for one in expected])
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
