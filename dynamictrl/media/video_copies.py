"""Finds the pairs among many videos that are worth comparing, without comparing all with all.

Each second of movement (`video_likeness`), with the mean picture, becomes words of a few bits: on which side of fixed
planes it lies. Videos that share words are candidates: copies share many, others seldom two. So that mirrored copies
and those with cut edges share them too, each video is also looked up mirrored and with its own edges cut.

The planes come from a hash and candidates are kept in one order: they depend on nothing but the videos.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from dynamictrl.media.video_hash import WAVES, VideoHash
from dynamictrl.media.video_likeness import CERTAIN, MIRROR, STILLEST, cropped, movement

TAPS = (0, 2, 4, 6, 8)
"""Samples of movement that make words: over a second, every second one."""
BANDS = 16
MOVEMENT_BITS, PICTURE_BITS = 24, 9
"""Planes of a word, in the space of movement and in that of the mean picture."""
PICTURE_SAMPLES = 16
"""Samples of one mean picture: two seconds, so that a shot is known within a longer video."""
VOTES = 2
"""Bands in which candidates share a word."""
NEIGHBOURS = 6
"""Videos that share a word are paired with so many that follow in order. Of a hundred copies of one video each is
still joined to all others, through those between them."""
ASKED_NEIGHBOURS = 500
"""The same where few are looked up: those are to be found however many clips were made of them."""
CENTRE = ((0.05, 0.05), (0.05, 0.05))
CUTS = (
    ((0.0, 0.1), (0.0, 0.1)), ((0.0, 0.1), (0.1, 0.0)), ((0.1, 0.0), (0.0, 0.1)), ((0.1, 0.0), (0.1, 0.0)),
    CENTRE, ((0.1, 0.1), (0.1, 0.1)),
)  # fmt: skip
"""Shares of the height and of the width that a video is looked up without; mirrored, without CENTRE."""
_MIXED = np.array([1.6 if y and x else 1.0 for y, x in WAVES], np.float32)[CERTAIN]
"""Cosines in both directions are weaker in most videos; so they weigh alike."""
_STEP = 1 / 32
"""Movement is counted in whole steps, so that sums are exact."""
_CHUNK = 1 << 16
"""Windows that are made into words at once."""


def candidates(hashes: Sequence[VideoHash], *, first: int = 0) -> NDArray[np.int64]:
    """[pairs, 2]: places in `hashes` of videos to compare, the earlier first, in order and each pair once.

    Time and memory grow with the number of videos and not with its square. With `first`, pairs of one of the first so
    many and one of the others: those to look up, and those to look through.
    """
    index = _index(hashes)
    count = max(1, len(hashes))
    found = [_sharing(_words(index, band), index.owner_N, count, first) for band in range(BANDS)]
    codes, votes = np.unique(np.concatenate(found), return_counts=True)
    codes = codes[votes >= VOTES]
    return np.stack([codes // count, codes % count], axis=1)


@dataclass(frozen=True)
class _Index:
    """The windows of all videos, each as it is, mirrored and cut."""

    steps_MK: NDArray[np.int8]
    """Movement, all of it in one row of samples."""
    picture_VK: NDArray[np.float32]
    """The mean pictures of each look of each video, one for each PICTURE_SAMPLES."""
    first_N: NDArray[np.int32]
    """Where in `steps_MK` each window begins."""
    look_N: NDArray[np.int32]
    owner_N: NDArray[np.int32]
    """2 i for windows of video i as it is, 2 i + 1 for those of another look of it."""


def _index(hashes: Sequence[VideoHash]) -> _Index:
    steps, pictures, first, look, owner = [np.empty((0, int(CERTAIN.sum())), np.int8)], [], [], [], []
    total = shown = 0
    for number, video in enumerate(hashes):
        levels_LTK = np.stack(_looks(video))
        moved_LTK = movement(levels_LTK * CERTAIN)[:, :, CERTAIN] * _MIXED
        length = moved_LTK.shape[1]
        steps.append(np.rint(np.clip(moved_LTK / _STEP, -127, 127)).astype(np.int8).reshape(-1, moved_LTK.shape[2]))
        moving_LN = _moving(moved_LTK)
        for place in range(len(levels_LTK)):
            begins = np.flatnonzero(moving_LN[place]).astype(np.int32)[:: 2 if place else 1]
            first.append(begins + np.int32(total + place * length))
            look.append((shown + begins // PICTURE_SAMPLES).astype(np.int32))
            shown += -(-levels_LTK.shape[1] // PICTURE_SAMPLES)
            owner.append(np.full(len(begins), 2 * number + bool(place), np.int32))
        pictures.append(_mean_pictures(levels_LTK[:, :, CERTAIN][:, :, 1:]))
        total += len(steps[-1])
    nothing = np.empty(0, np.int32)
    return _Index(
        np.concatenate(steps),
        np.concatenate([np.empty((0, int(CERTAIN.sum()) - 1), np.float32), *pictures]),
        np.concatenate([nothing, *first]),
        np.concatenate([nothing, *look]),
        np.concatenate([nothing, *owner]),
    )


def _mean_pictures(levels_LTK: NDArray[np.float32]) -> NDArray[np.float32]:
    """[looks * spans, waves]: the mean picture of every PICTURE_SAMPLES samples."""
    spans = range(0, levels_LTK.shape[1], PICTURE_SAMPLES)
    means = [levels_LTK[:, start : start + PICTURE_SAMPLES].mean(axis=1) for start in spans]
    return np.stack(means, axis=1).reshape(-1, levels_LTK.shape[2])


def _moving(moved_LTK: NDArray[np.float32]) -> NDArray[np.bool_]:
    """[looks, windows]: whether something moves in a window; all stillness is alike."""
    strength_LT = np.cumsum((moved_LTK**2).sum(axis=2), axis=1, dtype=np.float64)
    strength_LT = np.concatenate([np.zeros((len(moved_LTK), 1)), strength_LT], axis=1)
    span = TAPS[-1] + 1
    return strength_LT[:, span:] - strength_LT[:, :-span] >= STILLEST * span


def _looks(video: VideoHash) -> list[NDArray[np.float32]]:
    levels_TK = video.levels
    mirrored_TK = levels_TK * MIRROR
    return [levels_TK, mirrored_TK, cropped(mirrored_TK, *CENTRE), *(cropped(levels_TK, *cut) for cut in CUTS)]


def _words(index: _Index, band: int) -> NDArray[np.int64]:
    """[windows]: each window's word of one band."""
    planes_WB = _planes("movement", band, len(TAPS) * int(CERTAIN.sum()), MOVEMENT_BITS)
    picture_V = _packed(index.picture_VK @ _planes("picture", band, index.picture_VK.shape[1], PICTURE_BITS))
    words_N = np.empty(len(index.first_N), np.int64)
    for start in range(0, len(words_N), _CHUNK):
        part = slice(start, start + _CHUNK)
        windows_NTK = index.steps_MK[index.first_N[part, None] + np.array(TAPS)].astype(np.float32)
        moved_N = _packed(windows_NTK.reshape(len(windows_NTK), -1) @ planes_WB)
        words_N[part] = (moved_N << PICTURE_BITS) | picture_V[index.look_N[part]]
    return words_N


def _packed(heights_NB: NDArray[np.float32]) -> NDArray[np.int64]:
    """The signs of each row as one number."""
    # At most 26 bits: exact in double precision, whose products are the fast ones.
    return ((heights_NB >= 0) @ (2.0 ** np.arange(heights_NB.shape[1]))).astype(np.int64)


@cache
def _planes(space: str, band: int, rows: int, columns: int) -> NDArray[np.float32]:
    """[rows, columns] of -1 and 1, the same for ever."""
    blocks = range(-(-rows * columns // 256))
    noise = b"".join(hashlib.sha256(f"{space} {band} {block}".encode()).digest() for block in blocks)
    bits = np.unpackbits(np.frombuffer(noise, np.uint8))[: rows * columns]
    return (bits.reshape(rows, columns) * 2.0 - 1).astype(np.float32)


def _sharing(words_N: NDArray[np.int64], owner_N: NDArray[np.int32], count: int, first: int) -> NDArray[np.int64]:
    """Pairs of videos that share a word, each as one number. One of the two is seen as it is."""
    if first:
        asked = np.isin(words_N, np.unique(words_N[owner_N < 2 * first]))
        words_N, owner_N = words_N[asked], owner_N[asked]
    # Word and owner in one number: sorting it puts the owners of each word in order.
    room = int(2 * count).bit_length()
    entries = _distinct((words_N << room) | owner_N)
    word_M, owner_M = entries >> room, entries & ((1 << room) - 1)
    found = [np.empty(0, np.int64)]
    for distance in range(1, (ASKED_NEIGHBOURS if first else NEIGHBOURS) + 1):
        same = word_M[distance:] == word_M[:-distance]
        # So `a` is the earlier video.
        a, b = owner_M[:-distance][same], owner_M[distance:][same]
        useful = (a // 2 != b // 2) & ((a % 2 == 0) | (b % 2 == 0))
        if first:
            useful &= (a < 2 * first) & (b >= 2 * first)
        found.append((a[useful] // 2) * count + b[useful] // 2)
    return _distinct(np.concatenate(found))


def _distinct(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """In order and each once, in place: `np.unique` goes through a hash table, ten times slower on so many."""
    values.sort()
    return values[np.append(True, values[1:] != values[:-1])[: len(values)]]
