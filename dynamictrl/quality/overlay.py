"""What stays while the scene moves: watermarks, logos and stickers without letters, seen where the camera moves.

What it cannot see: anything under a resting camera, where the whole scene stays; soft or nearly transparent marks.

Shape suffixes: F frames, P persons, H W picture size.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from dynamictrl.quality.samples import Grey

LEAST_TRAVEL = 0.06
"""How far the camera must have gone (share of the shorter side) before what stays says anything: 10 small pixels."""
_STAYS = 0.85
"""Share of the frames in which a corner must be at the same place."""
_NEAR = 9
"""Pixels around a corner that its mark is taken to cover."""


def overlay(small_FHW: Grey, camera_travel: float) -> float:
    """Share of the picture near corners that never move though the camera does; 0 where it rests."""
    if camera_travel < LEAST_TRAVEL:
        return 0.0
    chosen = small_FHW[:: max(1, len(small_FHW) // 32)]
    stays_HW = np.mean([_corners(grey_HW) for grey_HW in chosen], axis=0) >= _STAYS
    near = cv2.dilate(stays_HW.astype(np.uint8), np.ones((_NEAR, _NEAR), np.uint8))
    return float(near.mean())


def _corners(grey_HW: Grey) -> NDArray[np.bool_]:
    """Where a corner is, give or take a pixel; edges slide along themselves unseen, corners do not."""
    strength = cv2.cornerMinEigenVal(grey_HW, 3)
    highest = cv2.dilate(strength, np.ones((5, 5), np.uint8))
    peaks = (strength >= highest) & (strength > 1e-3)
    return cv2.dilate(peaks.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
