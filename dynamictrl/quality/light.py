"""Light and standstill: is a picture exposed as eyes want it, is it black, does it move at all, does it jump?"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from dynamictrl.quality.samples import Grey

BLACK = 40
"""A frame whose brightest pixels (98th percentile) stay below this shows nothing."""
_CLIPPED = (4, 251)
_BLOCK = 8
"""Pixels: changes are averaged over blocks, so that noise and compression count little."""
STILL = 2.0
"""Grey levels that the most changed block of a still picture changes by between two samples, at most.

A photograph encoded as H.264 (crf 18 to 28) changes by 0.2 to 1.2, with noise of 3 grey levels by up to 1.7; the least
of a marionette that only breathes is 3.9.
"""


def exposure(small_FHW: Grey) -> dict[str, float]:
    """`brightness` (mean, 0 to 255), `contrast` (2nd to 98th percentile), `clipped` (share at either end); medians."""
    flat_FN = small_FHW.reshape(len(small_FHW), -1)
    low_F, high_F = np.percentile(flat_FN, (2, 98), axis=1)
    clipped_F = ((flat_FN <= _CLIPPED[0]) | (flat_FN >= _CLIPPED[1])).mean(axis=1)
    return {
        "brightness": float(np.median(flat_FN.mean(axis=1))),
        "contrast": float(np.median(high_F - low_F)),
        "clipped": float(np.median(clipped_F)),
    }


def standstill(small_FHW: Grey, times_F: NDArray[np.float64]) -> dict[str, float]:
    """`black` (share of the frames), `still` (share of the time), `frozen` (longest still stretch, share of the time).

    A frozen video has a high `frozen`; a slide show a high `still` with jumps between.
    """
    black = float((np.percentile(small_FHW.reshape(len(small_FHW), -1), 98, axis=1) < BLACK).mean())
    if len(small_FHW) < 2:
        return {"black": black, "still": 1.0, "frozen": 1.0}
    still_S = np.array([_most_changed(a, b) < STILL for a, b in zip(small_FHW[:-1], small_FHW[1:], strict=True)])
    steps_S = np.diff(times_F) / (times_F[-1] - times_F[0])
    return {"black": black, "still": float(steps_S[still_S].sum()), "frozen": _longest(still_S, steps_S)}


def _most_changed(one_HW: Grey, other_HW: Grey) -> float:
    difference = cv2.absdiff(one_HW, other_HW)
    size = (max(1, difference.shape[1] // _BLOCK), max(1, difference.shape[0] // _BLOCK))
    return float(cv2.resize(difference.astype(np.float32), size, interpolation=cv2.INTER_AREA).max())


def _longest(still_S: NDArray[np.bool_], steps_S: NDArray[np.float64]) -> float:
    longest = current = 0.0
    for still, step in zip(still_S, steps_S, strict=True):
        current = current + float(step) if still else 0.0
        longest = max(longest, current)
    return longest


_THUMB = 24


def jump(small_FHW: Grey, times_F: NDArray[np.float64]) -> dict[str, float]:
    """`picture_jump`: the largest sudden change of the picture, 0 to 2, and `picture_jump_at`, seconds into the clip.

    One minus the correlation of two thumbnails, less what is usual around it, so that a dancer or a pan does not count
    and neither does light that only brightens. A flash is none: the pictures before and after it are alike.
    """
    if len(small_FHW) < 4:
        return {"picture_jump": 0.0, "picture_jump_at": 0.0}
    thumbs_FN = np.stack([_thumb(grey) for grey in small_FHW])
    step_S = 1 - (thumbs_FN[:-1] * thumbs_FN[1:]).sum(axis=1)
    wide_S = step_S.copy()
    # Over a flash of one or two samples the pictures agree again.
    wide_S[1:-1] = np.minimum(step_S[1:-1], 1 - (thumbs_FN[:-3] * thumbs_FN[3:]).sum(axis=1))
    usual_S = np.array([np.median(step_S[max(0, s - 4) : s + 5]) for s in range(len(step_S))])
    sudden_S = wide_S - usual_S
    at = int(np.argmax(sudden_S))
    middle = float((times_F[at] + times_F[at + 1]) / 2)
    return {"picture_jump": max(0.0, float(sudden_S[at])), "picture_jump_at": middle}


def _thumb(grey_HW: Grey) -> NDArray[np.float64]:
    """The picture as one vector of length 1, without its mean."""
    small = cv2.resize(grey_HW, (_THUMB, _THUMB), interpolation=cv2.INTER_AREA).astype(np.float64).ravel()
    small -= small.mean()
    length = float(np.linalg.norm(small))
    return small / length if length > _THUMB else np.zeros_like(small)
