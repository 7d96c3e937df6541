"""Whether two videos are copies of one another, judged by their hashes (`video_hash`).

What counts is movement: the change of each cosine over half a second, brought to one strength. Two takes filmed in one
room share the room and not the movement, and people who do the same thing one after the other do not do it in step.
The shift in time that fits best decides; a mirrored copy and one with cut edges are undone before comparing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from dynamictrl.video_hash import RATE, WAVES, VideoHash

Array = NDArray[np.float32]

LAG = 4
"""Samples over which change is taken: half a second."""
STRENGTH_SAMPLES = 9
"""Samples over which the strength of movement is levelled: about a second, so that each second counts alike."""
FAINTEST = 0.15
"""Grey levels of change, over all cosines, that encoders make of nothing; movement near it counts little."""
STILLEST = 0.2
"""Share of full strength below which a stretch shows no movement to compare."""
SHORTEST = 8
"""Samples of movement that two videos must share: 1.5 s of video."""
HOPELESS = 0.35
"""Likeness at whole samples below which half a sample's shift will not help."""
PROMISING = 0.5
"""Likeness without any cut edges undone below which undoing them will not help."""
SAME_PICTURE, SAME_PICTURE_CUT = 0.8, 0.5
"""Correlation of the mean pictures below which equal movement is a coincidence or another dancer's; what was cut off is
known less well."""
_CUTS = ((0.0, 0.0), (0.0, 0.05), (0.05, 0.0), (0.05, 0.05), (0.0, 0.1), (0.1, 0.0), (0.1, 0.1))
"""Shares cut off the two ends of a side that are tried."""

CERTAIN = np.array([y + x < 5 for y, x in WAVES])
"""The cosines that are known well after edges are cut: the highest would need those that no hash holds."""

MIRROR = np.array([-1 if x % 2 else 1 for _, x in WAVES], np.float32)


@dataclass(frozen=True)
class Likeness:
    """How alike two videos are where they fit best."""

    similarity: float
    """1 for the same movement at the same times; two takes of one scene reach 0.6, seldom 0.8."""
    seconds: float
    """Length of what they share."""
    shift: float
    """Seconds: where the second video's first frame lies on the first one's clock."""
    mirrored: bool


@dataclass(frozen=True, eq=False)
class Track:
    """One video's hash with what comparing needs worked out once."""

    hash: VideoHash
    _moved: dict[int, Array] = field(default_factory=dict, repr=False)

    @cached_property
    def movement(self) -> Array:
        """[T - LAG, waves], each second of it about as strong; [0, waves] where the video is too short."""
        return movement(self.hash.levels)

    @cached_property
    def views(self) -> list[tuple[bool, Array]]:
        """(mirrored, levels): as it is and mirrored, in step and half a sample later."""
        plain = self.hash.levels
        return [(m, v) for m, p in ((False, plain), (True, plain * MIRROR)) for v in (p, (p[1:] + p[:-1]) / 2)]

    def moved(self, view: int) -> Array:
        """The movement of one of the views."""
        if view not in self._moved:
            self._moved[view] = movement(self.views[view][1])
        return self._moved[view]


def movement(levels_TK: Array) -> Array:
    """[..., T - LAG, waves]: the change over LAG samples, divided by its own strength nearby; any number of videos."""
    padded = np.concatenate([levels_TK[..., :1, :], levels_TK, levels_TK[..., -1:, :]], axis=-2)
    smooth_TK = (padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]) / 4
    change_TK = smooth_TK[..., LAG:, :] - smooth_TK[..., :-LAG, :]
    strength_T = _mean_nearby((change_TK**2).sum(axis=-1))
    return (change_TK / np.sqrt(strength_T + FAINTEST**2)[..., None]).astype(np.float32)


def _mean_nearby(values_T: Array) -> NDArray[np.float64]:
    sums = np.cumsum(np.concatenate([np.zeros_like(values_T[..., :1]), values_T], axis=-1), axis=-1, dtype=np.float64)
    low, high = _nearby(values_T.shape[-1])
    return (sums[..., high] - sums[..., low]) / (high - low)


@lru_cache(maxsize=64)
def _nearby(count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where what is near each sample begins and ends."""
    at = np.arange(count)
    return np.maximum(at - STRENGTH_SAMPLES // 2, 0), np.minimum(at + STRENGTH_SAMPLES // 2 + 1, count)


def compare(first: Track, second: Track, *, overlap: float = 0.5, enough: float = 0.85) -> Likeness | None:
    """How alike two videos are over at least `overlap` of the shorter one; None where they cannot be copies.

    Cut edges are looked for until the similarity is `enough`.
    """
    need = max(SHORTEST, round(overlap * min(len(first.movement), len(second.movement))))
    if min(len(first.movement), len(second.movement)) < need:
        return None
    similarity, shift, view = _best_view(first.movement, second, need)
    if similarity < PROMISING:
        return None
    mirrored, levels = second.views[view]
    pair = (first.hash.levels, levels)
    least = SAME_PICTURE
    if similarity < enough or _picture_likeness(*_shared(*pair, shift)) < least:
        similarity, shift, pair = _undo_cuts(pair, need, similarity, shift)
        least = SAME_PICTURE_CUT
    if _picture_likeness(*_shared(*pair, shift)) < least:
        return None
    length = len(_shared(*pair, shift)[0])
    late = 0.5 * (view % 2)
    return Likeness(round(float(similarity), 4), length / RATE, (shift - late) / RATE, mirrored)


def _best_view(a_TK: Array, second: Track, need: int) -> tuple[float, int, int]:
    """The greatest likeness, its shift, and the place in `Track.views` of how the second video has it."""
    found = []
    for view in (0, 2):
        found.append((*_best_shift(a_TK, second.moved(view), need), view))
        if found[-1][0] > HOPELESS:
            found.append((*_best_shift(a_TK, second.moved(view + 1), need), view + 1))
    return max(found, key=lambda f: f[0])


def _best_shift(a_TK: Array, b_TK: Array, need: int) -> tuple[float, int]:
    """The greatest likeness over all shifts that leave `need` samples in common, and that shift."""
    if len(b_TK) < need:
        return -1.0, 0
    together = np.bincount(_lags(len(a_TK), len(b_TK)), (a_TK @ b_TK.T).ravel())
    shifts = np.arange(len(together)) - (len(b_TK) - 1)
    start, stop = np.maximum(shifts, 0), np.minimum(shifts + len(b_TK), len(a_TK))
    first, second = _energy(a_TK, start, stop), _energy(b_TK, start - shifts, stop - shifts)
    length = stop - start
    quiet = (length < need) | (np.minimum(first, second) < STILLEST * length)
    likeness = np.where(quiet, -1.0, together / np.sqrt(np.maximum(first * second, 1e-9)))
    best = int(np.argmax(likeness))
    return float(likeness[best]), int(shifts[best])


@lru_cache(maxsize=64)
def _lags(a: int, b: int) -> NDArray[np.intp]:
    """For each pair of samples, how much later the first one's is; counted from 0."""
    rows, columns = np.indices((a, b))
    return (rows - columns + b - 1).ravel()


def _energy(a_TK: Array, start: NDArray[np.int64], stop: NDArray[np.int64]) -> NDArray[np.float64]:
    sums = np.concatenate([[0.0], np.cumsum((a_TK.astype(np.float64) ** 2).sum(axis=1))])
    return sums[stop] - sums[start]


def _undo_cuts(
    pair: tuple[Array, Array], need: int, similarity: float, shift: int
) -> tuple[float, int, tuple[Array, Array]]:
    """The likeness with the edges cut that make the two most alike: of the one, or of the other."""
    best = (similarity, shift, pair)
    for side in (0, 1):
        cuts = ((0.0, 0.0), (0.0, 0.0))
        for axis in (0, 1, 0, 1):
            for option in [(c, cuts[1]) if axis == 0 else (cuts[0], c) for c in _CUTS]:
                cut = cropped(pair[side], *option)
                both = (cut, pair[1]) if side == 0 else (pair[0], cut)
                result = _near_shift(movement(both[0] * CERTAIN), movement(both[1] * CERTAIN), shift, need)
                if result[0] > best[0]:
                    best, cuts = (*result, both), option
    return best


def _near_shift(a_TK: Array, b_TK: Array, shift: int, need: int) -> tuple[float, int]:
    found = []
    for near in (shift - 1, shift, shift + 1):
        a, b = _shared(a_TK, b_TK, near)
        norm = float(np.sqrt((a * a).sum() * (b * b).sum()))
        if len(a) >= need and norm > STILLEST * len(a):
            found.append((float((a * b).sum()) / norm, near))
    return max(found, default=(-1.0, shift))


def _shared(a_TK: Array, b_TK: Array, shift: int) -> tuple[Array, Array]:
    """The parts of both that lie on each other when the second begins `shift` samples after the first."""
    a, b = a_TK[max(0, shift) :], b_TK[max(0, -shift) :]
    length = min(len(a), len(b))
    return a[:length], b[:length]


def _picture_likeness(a_TK: Array, b_TK: Array) -> float:
    """How far the mean pictures agree, their brightness aside: 1 = but for contrast."""
    a_K, b_K = a_TK.mean(axis=0)[1:], b_TK.mean(axis=0)[1:]
    return float(a_K @ b_K) / float(np.sqrt((a_K @ a_K) * (b_K @ b_K)) + 1e-9)


def cropped(levels_TK: Array, down: tuple[float, float], across: tuple[float, float]) -> Array:
    """The levels of a video of which those shares of the height and of the width are cut off, as far as they tell."""
    return levels_TK @ _cropping(down, across)


@cache
def _cropping(down: tuple[float, float], across: tuple[float, float]) -> Array:
    """[waves, waves]: the cosines of a picture to those of what is left of it, as far as 21 of them tell."""
    ys, xs = np.array(WAVES).T
    of_y, of_x = _cropping_1d(*down), _cropping_1d(*across)
    return (of_y[ys[:, None], ys] * of_x[xs[:, None], xs]).T.astype(np.float32)


def _cropping_1d(before: float, after: float, points: int = 400) -> NDArray[np.float64]:
    waves = np.arange(1 + max(max(wave) for wave in WAVES))
    inside = (np.arange(points) + 0.5) / points
    # A cosine series has its mean once and everything else twice.
    picture = np.cos(np.pi * (before + (1 - before - after) * inside)[:, None] * waves) * np.where(waves == 0, 1, 2)
    return np.cos(np.pi * inside[:, None] * waves).T @ picture / points
