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
    stroke_N = np.zeros(len(stats_N5), np.float32)
    np.maximum.at(stroke_N, np.asarray(labels_HW[inked > 0], np.int64), 2 * depth_HW[inked > 0])
    letters_N5 = np.asarray(stats_N5, np.int64)
    height_N, area_N = letters_N5[:, 3], letters_N5[:, 4]
    # Strokes are not thicker than a letter's; area over thickness, their length, is neither short nor endless.
    length_N = area_N / np.maximum(stroke_N, 1)
    drawn_N = (stroke_N <= 0.5 * height_N) & (length_N >= 0.8 * height_N) & (length_N <= 8 * height_N)
    drawn_N[0] = False  # the background
    return letters_N5[drawn_N & _letter_like(letters_N5), :4]


def _letter_like(stats_N5: NDArray[np.int64]) -> Mask:
    """[N], by size, shape and how much of its box a patch fills."""
    width, height, area = stats_N5[:, 2], stats_N5[:, 3], stats_N5[:, 4]
    sized = (height >= _HEIGHTS[0]) & (height <= _HEIGHTS[1])
    shaped = (width >= 0.15 * height) & (width <= 2.0 * height)
    filled = area / np.maximum(width * height, 1)
    return sized & shaped & (filled >= 0.15) & (filled <= 0.85)


def _rows(letters_N4: NDArray[np.int64]) -> list[tuple[int, int, int, int]]:
    """Boxes of lines: letters of like height side by side, in a chain."""
    rows: list[list[NDArray[np.int64]]] = []
    last_R4 = np.zeros_like(letters_N4)
    for letter in letters_N4[np.argsort(letters_N4[:, 0], kind="stable")]:
        continued = np.flatnonzero(_follows(last_R4[: len(rows)], letter))
        row = int(continued[0]) if len(continued) else len(rows)
        if row == len(rows):
            rows.append([])
        rows[row].append(letter)
        last_R4[row] = letter
    return [_around(np.array(row)) for row in rows if len(row) >= _FEWEST]


def _follows(last_R4: NDArray[np.int64], letter_4: NDArray[np.int64]) -> Mask:
    """[R], whether a letter goes on after the last one of each row: close by, on the same line, of like height."""
    height_R = np.maximum(last_R4[:, 3], letter_4[3])
    gap_R = letter_4[0] - (last_R4[:, 0] + last_R4[:, 2])
    level_R = np.abs((letter_4[1] + letter_4[3]) - (last_R4[:, 1] + last_R4[:, 3]))
    close_R = (gap_R >= -0.2 * height_R) & (gap_R <= 1.2 * height_R)
    return close_R & (np.minimum(last_R4[:, 3], letter_4[3]) >= 0.6 * height_R) & (level_R <= 0.3 * height_R)


def _around(row_N4: NDArray[np.int64]) -> tuple[int, int, int, int]:
    left, top = int(row_N4[:, 0].min()), int(row_N4[:, 1].min())
    right, bottom = int((row_N4[:, 0] + row_N4[:, 2]).max()), int((row_N4[:, 1] + row_N4[:, 3]).max())
    return left, top, right - left, bottom - top
