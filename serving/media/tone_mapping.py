"""High dynamic range (PQ, HLG; BT.2020 colours) to what an sRGB screen shows, so that people do not come out grey.

Channel by channel, on 8-bit frames: good enough to find poses and to be looked at, not for grading.
"""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

PQ, HLG = 16, 18
"""Transfer characteristics by their number in ITU-T H.273."""
_WHITE_NITS = 203.0
"""What BT.2408 takes for the white of a page."""
_PEAK_NITS = 1000.0
_BT2020_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)
_STEPS = 4096


def to_sdr(frame: NDArray[np.uint8], transfer: int) -> NDArray[np.uint8]:
    """[H, W, 3] RGB of `transfer` (PQ or HLG) -> [H, W, 3] sRGB."""
    shown = cv2.transform(cv2.LUT(frame, _screen_light(transfer)), _BT2020_TO_BT709)
    np.clip(shown, 0.0, 1.0, out=shown)
    return _encoded()[(shown * (_STEPS - 1) + 0.5).astype(np.uint16)]


@cache
def _screen_light(transfer: int) -> NDArray[np.float32]:
    """Of each 8-bit value, the light that a screen shows: [0, 1], highlights rolled off (Reinhard's curve)."""
    code = np.arange(256) / 255
    nits = _pq_nits(code) if transfer == PQ else _hlg_nits(code)
    light, brightest = nits / _WHITE_NITS, _PEAK_NITS / _WHITE_NITS
    return (light * (1 + light / brightest**2) / (1 + light)).clip(0, 1).astype(np.float32)


def _pq_nits(code: NDArray[np.float64]) -> NDArray[np.float64]:
    """SMPTE ST 2084."""
    m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
    power = code ** (1 / m2)
    return 10_000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)


def _hlg_nits(code: NDArray[np.float64]) -> NDArray[np.float64]:
    """ARIB STD-B67, shown on a screen of 1,000 nits (system gamma 1.2)."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)
    return _PEAK_NITS * scene**1.2


@cache
def _encoded() -> NDArray[np.uint8]:
    light = np.linspace(0, 1, _STEPS)
    srgb = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return (srgb * 255 + 0.5).astype(np.uint8)
