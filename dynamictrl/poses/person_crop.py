"""Where a picture is cut so that the persons in it stay: one place for a whole window, so that the cut never moves.

Shape suffixes: N person boxes over all frames, K candidate places.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dynamictrl.geometry import CENTRE, cover_box
from dynamictrl.poses.pose import PoseSequence

Crop = Literal["persons", "centre"]
"""What a cut is centred on: the persons of all frames, or the middle of the picture."""

SAME = 1e-6
"""Shares of a side that count as one."""


def crop_centre(
    pose: PoseSequence, height: int, width: int, target_height: int, target_width: int
) -> tuple[float, float]:
    """The centre (x, y in [0, 1]) at which a cut to the target's aspect keeps most of the persons of all frames.

    Where all of them fit they lie in its middle. Where they do not, as much of their boxes as can be is kept, upright
    ones from the head down. The middle of the picture where nobody is seen.
    """
    boxes_N4 = pose.boxes[pose.present()].astype(np.float64).clip(0, 1)
    if len(boxes_N4) == 0:
        return CENTRE
    left, top, right, bottom = cover_box(height, width, target_height, target_width)
    return (
        _best_place(boxes_N4[:, 0], boxes_N4[:, 2], (right - left) / width, at_start=False),
        _best_place(boxes_N4[:, 1], boxes_N4[:, 3], (bottom - top) / height, at_start=True),
    )


def _best_place(low_N: NDArray[np.float64], high_N: NDArray[np.float64], part: float, *, at_start: bool) -> float:
    """The middle of a stretch of length `part` of [0, 1] that overlaps most with the intervals."""
    low, high = low_N.min(), high_N.max()
    # What does not fit upright is kept from its head down.
    wish = low if at_start and high - low > part else (low + high - part) / 2
    candidates_K = np.concatenate([[wish], low_N, high_N - part]).clip(0, 1 - part)
    end_KN = np.minimum(high_N, candidates_K[:, None] + part)
    kept_K = (end_KN - np.maximum(low_N, candidates_K[:, None])).clip(0).sum(axis=1)
    best_K = candidates_K[kept_K >= kept_K.max() - SAME]
    return float(best_K[np.abs(best_K - wish).argmin()] + part / 2)
