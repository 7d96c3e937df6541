"""What is not picture: bars around it, and seams that put several pictures into one.

Shape suffixes: F frames, H W picture size, N lines (columns or rows).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dynamictrl.quality.samples import Grey

_FLAT = 4.0
"""Grey levels (standard deviation along a line) that a bar's line may vary by."""
_SAME = 6.0
_STEP = 10.0
"""Grey levels between the two sides of an edge that is drawn and not filmed."""
_VARIED = 25.0
"""Grey levels (standard deviation along a line) of a picture that shows something."""
_OUTER = 0.04
"""Share of a side next to the border in which no seam is sought."""
_WIDEST = 3
"""Lines from a divider's middle to the picture beside it, at most."""

Box = tuple[int, int, int, int]


def bars(small_FHW: Grey) -> tuple[float, Box]:
    """Share of the picture that bars take, and the picture inside them as (top, bottom, left, right).

    A bar is a band along a border, of one colour in all frames, that ends in a straight edge. A plain wall ends in
    none, so it is no bar; blurred copies of the picture beside it are none either (`seam` sees those).
    """
    top, bottom = _bar_ends(small_FHW.transpose(0, 2, 1))
    left, right = _bar_ends(small_FHW[:, top:bottom])
    height, width = small_FHW.shape[1:]
    return 1 - (bottom - top) * (right - left) / (height * width), (top, bottom, left, right)


def _bar_ends(frames_FHN: Grey) -> tuple[int, int]:
    """The first line inside the bar at the low end, and the one after the last at the high end."""
    count = frames_FHN.shape[2]
    low = _bar_depth(frames_FHN)
    high = count - _bar_depth(frames_FHN[:, :, ::-1])
    return (low, high) if high - low >= count // 4 else (0, count)


def _bar_depth(frames_FHN: Grey) -> int:
    """Lines of the bar at the low end; 0 where there is none."""
    mean_N, spread_N = frames_FHN.mean(axis=(0, 1)), frames_FHN.std(axis=(0, 1))
    flat_N = (spread_N <= _FLAT) & (np.abs(mean_N - mean_N[0]) <= _SAME)
    depth = int(np.argmin(flat_N)) if not flat_N.all() else 0
    if depth == 0 or depth + 2 >= frames_FHN.shape[2]:
        return 0
    # One line may be half bar, half picture.
    inner_FH = frames_FHN[:, :, depth : depth + 3].astype(np.float64) - mean_N[0]
    stands_out = (np.abs(inner_FH).max(axis=2) > _STEP).mean()
    return depth if stands_out > 0.5 else 0


def seam(small_FHW: Grey, inside: Box) -> float:
    """How surely a straight line through the whole picture joins two pictures: 0 (no line) to 1.

    Split screens, collages and blurred side pictures have an edge along the whole line in every frame, and its sign
    changes along the way, as what meets there has nothing to do with each other. A horizon or a floor is brighter on
    one side throughout and counts little. A divider of one colour counts in full.
    """
    top, bottom, left, right = inside
    picture_FHW = small_FHW[:, top:bottom, left:right]
    return max(_line(picture_FHW), _line(picture_FHW.transpose(0, 2, 1)))


def _line(frames_FHN: Grey) -> float:
    count = frames_FHN.shape[2]
    margin = max(4, round(_OUTER * count))
    if count < 4 * margin:
        return 0.0
    chosen = frames_FHN[:: max(1, len(frames_FHN) // 16)].astype(np.int16)
    # Between lines two apart, since an edge may have been resized into the middle of a line.
    step_FHN = chosen[:, :, 2:] - chosen[:, :, :-2]
    edge_FHN = np.abs(step_FHN) >= _STEP
    complete_N = edge_FHN.mean(axis=(0, 1))
    rising_N = ((step_FHN > 0) & edge_FHN).mean(axis=(0, 1)) / np.maximum(complete_N, 1e-9)
    mixed_N = np.minimum(1, 4 * np.minimum(rising_N, 1 - rising_N))
    # Two pictures differ along the line they meet at; a wall with a stripe is the same all along.
    spread_N = chosen.std(axis=1).mean(axis=0)
    varied_N = np.clip(np.minimum(spread_N[2:], spread_N[:-2]) / _VARIED, 0, 1)
    usual = float(np.median(complete_N))
    scores_N = np.maximum(
        (complete_N - usual) / (1 - usual + 1e-9) * mixed_N * varied_N, _divider(chosen, complete_N, spread_N)
    )
    return float(scores_N[margin - 1 : 1 - margin].max())


def _divider(
    frames_FHN: NDArray[np.int16], complete_N: NDArray[np.float64], spread_N: NDArray[np.float64]
) -> NDArray[np.float64]:
    """How surely a line is one of few of a single colour, varied pictures on both sides; as long as `complete_N`."""
    flat_N = frames_FHN.std(axis=(0, 1)) <= _FLAT
    scores_N = np.zeros_like(complete_N)
    for line in np.flatnonzero(flat_N[_WIDEST:-_WIDEST]) + _WIDEST:
        # `complete_N[i]` is the edge between lines i and i + 2.
        before, after = complete_N[line - _WIDEST : line].max(), complete_N[line - 1 : line + _WIDEST - 1].max()
        varied = min(spread_N[line - _WIDEST : line].max(), spread_N[line + 1 : line + _WIDEST + 1].max()) / _VARIED
        scores_N[line - 1] = min(before, after) * min(1.0, varied)
    return scores_N
