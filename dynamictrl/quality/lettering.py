"""Letters laid over a picture: subtitles, stickers, watermarks; found by their strokes, without weights or reading.

A letter is a small connected patch, much brighter or darker than its surroundings, drawn with strokes of one width; a
line of text is several of them side by side, of one height (the idea of Epshtein et al. 2010, "Detecting text in
natural scenes with stroke width transform"). Lettering that stays at its place in most pictures counts; a shirt's print
moves. What it cannot see: single logos without letters on a resting background, letters smaller than about a hundredth
of the picture, low contrast, slanted or vertical lines. Signs in the scene count where the camera rests.

Shape suffixes: D pictures, H W picture size, N patches.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from dynamictrl.quality.samples import Grey, shrink

_SIDE = 480
"""Pixels of the shorter side at which letters are sought."""
_CONTRAST = 40
"""Grey levels that a letter differs from its surroundings by, at least."""
_HEIGHTS = (7, 60)
"""Pixels."""
_FEWEST = 4
"""Letters that make a line."""
_STAYS = 0.6
"""Share of the pictures in which a pixel must be lettering to count."""

Mask = NDArray[np.bool_]


def lettering(details: list[Grey]) -> float:
    """Share of the picture that lines of text cover which stay in place."""
    if not details:
        return 0.0
    return float(lettering_mask(details).mean())


def lettering_mask(details: list[Grey]) -> Mask:
    """Where text stays, [H, W] at the size at which it was sought."""
    found = [_lines(shrink(grey_HW, _SIDE)) for grey_HW in details]
    return np.mean(found, axis=0) >= _STAYS


def _lines(grey_HW: Grey) -> Mask:
    """The boxes of the lines of text in one picture."""
    covered = np.zeros(grey_HW.shape, bool)
    for picture in (grey_HW, 255 - grey_HW):
        for left, top, width, height in _rows(_letters(np.asarray(picture, np.uint8))):
            covered[top : top + height, left : left + width] = True
    return covered


def _letters(grey_HW: Grey) -> NDArray[np.int64]:
    """Boxes of what may be bright letters: [N, 4] as left, top, width, height."""
    kernel = cv2.getStructuringElement(cv2.MORPH_RECT, (25, 25))
    # Strokes are narrower than the kernel: they are what is left when everything wider is taken away.
    raised = cv2.morphologyEx(grey_HW, cv2.MORPH_TOPHAT, kernel)
    # Half of the brightest around, so that neither soft edges nor a bright background join letters.
    brightest = cv2.dilate(raised, np.ones((13, 13), np.uint8))
    inked = (raised >= np.maximum(_CONTRAST, brightest // 2 + brightest // 8)).astype(np.uint8)
    _, labels_HW, stats_N5, _ = cv2.connectedComponentsWithStats(inked, connectivity=8)
    depth_HW = cv2.distanceTransform(inked, cv2.DIST_L2, 3)
    chosen = 1 + np.flatnonzero(_letter_like(np.asarray(stats_N5[1:], np.int32)))
    drawn = []
    for index in chosen:
        left, top, width, height, area = (int(value) for value in stats_N5[index])
        there = (slice(top, top + height), slice(left, left + width))
        stroke = 2 * float(depth_HW[there][labels_HW[there] == index].max())
        # Strokes are not thicker than a letter's; area over thickness, their length, is neither short nor endless.
        if stroke <= 0.5 * height and 0.8 * height <= area / max(stroke, 1.0) <= 8 * height:
            drawn.append(index)
    return np.asarray(stats_N5[drawn, :4], np.int64)


def _letter_like(stats_N5: NDArray[np.int32]) -> Mask:
    """[N], by size, shape and how much of its box a patch fills."""
    width, height, area = stats_N5[:, 2], stats_N5[:, 3], stats_N5[:, 4]
    sized = (height >= _HEIGHTS[0]) & (height <= _HEIGHTS[1])
    shaped = (width >= 0.15 * height) & (width <= 2.0 * height)
    filled = area / np.maximum(width * height, 1)
    return sized & shaped & (filled >= 0.15) & (filled <= 0.85)


def _rows(letters_N4: NDArray[np.int64]) -> list[tuple[int, int, int, int]]:
    """Boxes of lines: letters of like height side by side, in a chain."""
    rows: list[list[NDArray[np.int64]]] = []
    for letter in letters_N4[np.argsort(letters_N4[:, 0], kind="stable")] if len(letters_N4) else []:
        for row in rows:
            if _follows(row[-1], letter):
                row.append(letter)
                break
        else:
            rows.append([letter])
    return [_around(np.array(row)) for row in rows if len(row) >= _FEWEST]


def _follows(last: NDArray[np.int64], letter: NDArray[np.int64]) -> bool:
    height = max(last[3], letter[3])
    gap = letter[0] - (last[0] + last[2])
    level = abs((letter[1] + letter[3]) - (last[1] + last[3]))
    return bool(
        -0.2 * height <= gap <= 1.2 * height and min(last[3], letter[3]) >= 0.6 * height and level <= 0.3 * height
    )


def _around(row_N4: NDArray[np.int64]) -> tuple[int, int, int, int]:
    left, top = int(row_N4[:, 0].min()), int(row_N4[:, 1].min())
    right, bottom = int((row_N4[:, 0] + row_N4[:, 2]).max()), int((row_N4[:, 1] + row_N4[:, 3]).max())
    return left, top, right - left, bottom - top
