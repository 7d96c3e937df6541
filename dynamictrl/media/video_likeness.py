"""Whether two videos are copies of one another, judged by their hashes (`video_hash`).

What counts is movement: the change of each cosine over half a second, brought to one strength. Two takes filmed in one
room share the room and not the movement, and people who do the same thing one after the other do not do it in step.
The shift in time that fits best decides; a mirrored copy and one with cut edges are undone before comparing. Where
movement alone leaves doubt, the mean pictures have to agree as only copies' do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from dynamictrl.media.video_hash import RATE, WAVES, VideoHash

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
SAME_PICTURE, VERY_PICTURE = 0.8, 0.9975
"""Correlation of the mean pictures below which equal movement is a coincidence or another dancer's, and from which the
place and the pose are beyond doubt. Of 300 drawn clips, copies encoded, scaled or timed anew reach 0.9987, other takes
in step with one another 0.992 to 0.9985."""
VERY_LIKE = 0.97
"""Likeness from which movement is beyond doubt. Below it, the mean pictures have to be: who shares the sway of the
camera and not the arms' movement stands otherwise; new colours change pictures and leave movement at 0.98."""
OTHER_POSE, OTHER_EDGES = 0.98, 0.9
"""Correlations of the mean pictures below which edges are cut rather than a pose another, and below which they must be
found cut; between the two, only copies with edges slightly cut reach LIKE_AS_CUT."""
LIKE_AS_CUT = 0.95
LIKE_CUT, LIKE_CUT_IN_DOUBT, SAME_PICTURE_CUT = 0.9, 0.87, 0.9
"""Likeness, and correlation of the pictures, that edges cut off must leave. With many cuts tried, takes of two figures
who do the same thing in two plain rooms reach 0.92 now and then, other takes 0.86; of cropped copies three in four have
0.92 and more. In doubt is where a copy must not be missed."""
CUT_EXPLAINS, RINGING = 0.6, 0.003
"""Share of what the mean pictures differ that may be left where a cut is why they do, and what may be left besides:
cosines cut off short ring, whatever is cut. Where pictures hardly differ without any cut, that counts only if movement
agrees by BETTER_CUT more with it."""
BETTER_CUT = 0.01
_CUTS = ((0.0, 0.0), (0.0, 0.05), (0.05, 0.0), (0.05, 0.05), (0.0, 0.1), (0.1, 0.0), (0.1, 0.1))
"""Shares cut off the two ends of a side that are tried."""
_POINTS, _MARGIN, _BLUR = 8, 0.08, 2.5
"""Where two videos are looked at when edges are cut: points a side, how far they keep from the edges, and the half
waves at which a cosine weighs 0.6. Cosines cut off short ring, and a crop brings the ringing elsewhere."""

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


def compare(
    first: Track, second: Track, *, overlap: float = 0.5, enough: float = 0.85, lenient: bool = False
) -> Likeness | None:
    """How alike two videos are over at least `overlap` of the shorter one; None where they cannot be copies.

    Cut edges are looked for where the similarity is not `enough` or leaves doubt, unless more is asked for than cut
    edges leave. `lenient`: doubt is no reason to take them for two.
    """
    need = max(SHORTEST, round(overlap * min(len(first.movement), len(second.movement))))
    if min(len(first.movement), len(second.movement)) < need:
        return None
    similarity, shift, view = _best_view(first.movement, second, need)
    if similarity < PROMISING:
        return None
    mirrored, levels = second.views[view]
    pair = _shared(first.hash.levels, levels, shift)
    picture = _picture_alike(*pair, _NO_CUT)
    if similarity < _needed(picture, enough, lenient=lenient):
        moved = _alike_when_cut(pair, picture) if enough <= VERY_LIKE else -1.0
        cut = moved >= (LIKE_CUT_IN_DOUBT if lenient else LIKE_CUT)
        if not cut and (similarity >= enough or picture < SAME_PICTURE):
            return None
        similarity = moved if cut else similarity
    late = 0.5 * (view % 2)
    return Likeness(round(float(similarity), 4), len(pair[0]) / RATE, (shift - late) / RATE, mirrored)


def _needed(picture: float, enough: float, *, lenient: bool) -> float:
    """The likeness from which movement decides where the mean pictures agree so far; infinite where it never does."""
    if picture >= VERY_PICTURE or (lenient and picture >= SAME_PICTURE):
        return enough
    if picture >= OTHER_POSE:
        return max(enough, VERY_LIKE)
    return max(enough, LIKE_AS_CUT) if picture >= OTHER_EDGES else math.inf


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


Cut = tuple[float, float, float, float]
_NO_CUT: Cut = (0.0, 0.0, 0.0, 0.0)


def _alike_when_cut(pair: tuple[Array, Array], picture: float) -> float:
    """How alike movement is with the edges of one video cut so that movement and pictures agree most.

    -1 where cut edges are not why the mean pictures agree only so far.
    """
    ways = [(*down, *across) for down in _CUTS for across in _CUTS]
    tried = [(whole, part, cut) for whole, part in (pair, pair[::-1]) for cut in ways]
    seen = [_picture_alike(*one) for one in tried]
    least = max(SAME_PICTURE_CUT, 1 - CUT_EXPLAINS * (1 - picture) - RINGING)
    if max(seen) < least:
        return -1.0
    moved = [_movement_alike(*one) for one in tried]
    best = max(range(len(tried)), key=lambda i: moved[i] + seen[i])
    # The first way is to cut nothing.
    if picture >= OTHER_POSE and moved[best] < moved[0] + BETTER_CUT:
        least += RINGING
    return moved[best] if seen[best] >= least else -1.0


def _movement_alike(whole_TK: Array, part_TK: Array, cut: Cut) -> float:
    """How alike movement is where the second video shows the first with its edges cut."""
    a_TP = movement(whole_TK @ _seeing(cut, whole=True))
    b_TP = movement(part_TK @ _seeing(cut, whole=False))
    norm = float(np.sqrt((a_TP * a_TP).sum() * (b_TP * b_TP).sum()))
    return float((a_TP * b_TP).sum()) / norm if norm > STILLEST * len(a_TP) else -1.0


def _picture_alike(whole_TK: Array, part_TK: Array, cut: Cut) -> float:
    """How far the mean pictures then agree, their brightness aside: 1 = but for contrast."""
    a_P = whole_TK.mean(axis=0) @ _seeing(cut, whole=True)
    b_P = part_TK.mean(axis=0) @ _seeing(cut, whole=False)
    a_P, b_P = a_P - a_P.mean(), b_P - b_P.mean()
    return float(a_P @ b_P) / float(np.sqrt((a_P @ a_P) * (b_P @ b_P)) + 1e-9)


@cache
def _seeing(cut: Cut, *, whole: bool) -> Array:
    """[waves, points]: cosines to what is seen, blurred, at points of what is left of a picture.

    The same points with the same blur, from the cosines of the whole or of the part that is left.
    """
    ys, xs = np.array(WAVES).T
    of_y, of_x = _seeing_1d(cut[0], cut[1], whole), _seeing_1d(cut[2], cut[3], whole)
    seeing_KP = (of_y[ys][:, :, None] * of_x[xs][:, None, :]).reshape(len(WAVES), -1) / _POINTS
    return seeing_KP.astype(np.float32)


def _seeing_1d(before: float, after: float, whole: bool) -> NDArray[np.float64]:
    left = 1 - before - after
    waves = np.arange(1 + max(max(wave) for wave in WAVES))
    points = _MARGIN + (1 - 2 * _MARGIN) * (np.arange(_POINTS) + 0.5) / _POINTS
    blur = np.exp(-((waves / (1 if whole else left) / _BLUR) ** 2) / 2)
    # A cosine series has its mean once and everything else twice.
    weight = np.where(waves == 0, 1, 2) * blur
    return np.cos(np.pi * waves[:, None] * (before + left * points if whole else points)) * weight[:, None]


def _shared(a_TK: Array, b_TK: Array, shift: int) -> tuple[Array, Array]:
    """The parts of both that lie on each other when the second begins `shift` samples after the first."""
    a, b = a_TK[max(0, shift) :], b_TK[max(0, -shift) :]
    length = min(len(a), len(b))
    return a[:length], b[:length]


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
