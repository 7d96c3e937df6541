"""How much detail a picture really holds, whatever its size in pixels, its noise and its contrast.

Where a picture is blurred again by a known amount, its edges lose the more of their slope the sharper they were: the
ratio of the slopes gives the width of the edge (Elder and Zucker 1998; Zhuo and Sim 2011, "Defocus map estimation from
a single image"). Only an ideal edge obeys this exactly; on textures it is a good approximation.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from dynamictrl.quality.samples import Grey

_SLIGHT, _STRONG = 1.0, 2.5
"""Pixels (standard deviation) of the two blurs compared; the first also calms noise."""
_PIXEL_SHARP = 0.6
"""Standard deviation in pixels of an edge as sharp as its pixels can show it."""
_LEAST_SLOPE = 2.0
"""Grey levels per pixel after the strong blur: below, an edge cannot be told from noise and compression."""
_FEWEST = 20
_SHARPEST = 75.0
"""Percentile of the edges' sharpness that stands for the picture: what lies in front of a blurred background counts."""


def sharpness(details: list[Grey]) -> float:
    """Pixels of the shorter side that the picture's detail is worth: median over the pictures.

    A sharp 480-pixel video is worth 480, and still 480 after it was enlarged to 1080; out of focus or smeared it is
    worth less. 0 where there is no edge at all.
    """
    return float(np.median([min(grey_HW.shape) * _sharp_share(grey_HW) for grey_HW in details]))


def _sharp_share(grey_HW: Grey) -> float:
    """By what factor the picture could be shrunk before detail is lost, 0 to 1."""
    slight, strong = _slope(grey_HW, _SLIGHT), _slope(grey_HW, _STRONG)
    edges = _ridges(strong) & (strong > max(_LEAST_SLOPE, float(np.percentile(strong, 90))))
    if edges.sum() < _FEWEST:
        return 0.0
    ratio = float(np.percentile(slight[edges] / strong[edges], _SHARPEST))
    # Slopes are as 1/sqrt(width^2 + blur^2).
    squared = (_STRONG**2 - ratio**2 * _SLIGHT**2) / max(ratio**2 - 1, 1e-3)
    width = np.sqrt(max(squared, 0.0))
    return float(min(1.0, _PIXEL_SHARP / max(width, 1e-6)))


def _slope(grey_HW: Grey, blur: float) -> NDArray[np.float32]:
    """Grey levels per pixel after a blur by so many pixels (standard deviation)."""
    picture_HW = cv2.GaussianBlur(grey_HW.astype(np.float32), (0, 0), blur)
    across = cv2.Scharr(picture_HW, cv2.CV_32F, 1, 0) / 32
    down = cv2.Scharr(picture_HW, cv2.CV_32F, 0, 1) / 32
    return np.asarray(cv2.magnitude(across, down), np.float32)


def _ridges(slope_HW: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where the slope is highest across an edge: along rows or along columns."""
    inner = slope_HW[1:-1, 1:-1]
    across = (inner >= slope_HW[1:-1, :-2]) & (inner >= slope_HW[1:-1, 2:])
    down = (inner >= slope_HW[:-2, 1:-1]) & (inner >= slope_HW[2:, 1:-1])
    return np.pad(across | down, 1)
