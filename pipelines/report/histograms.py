"""How each score is spread over kept and refused clips, and where its limits lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.datasets.stage_list import Limit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Row = dict[str, Any]
BINS = 32
TALL = 40.0
"""Height of the drawing; it is 100 wide."""
TAIL = 0.5
"""Per cent of the values at either end that may fall into the outermost bars, so that one outlier flattens nothing."""


@dataclass(frozen=True)
class Bar:
    """One bar, in units of the drawing."""

    x: float
    width: float
    kept: float
    refused: float


@dataclass(frozen=True)
class Mark:
    """One limit, as a line across the drawing."""

    x: float
    label: str
    stage: str
    refused: int
    """Clips outside it."""


@dataclass(frozen=True)
class Histogram:
    """One score."""

    name: str
    count: int
    low: float
    """What the left edge stands for; there may be values below."""
    high: float
    median: float
    outliers: tuple[int, int]
    """Values below and above what is drawn; they are counted in the outermost bars."""
    bars: Sequence[Bar]
    marks: Sequence[Mark]


def histograms(rows: Sequence[Row], limits: Sequence[Limit] = ()) -> list[Histogram]:
    """One per score, those with limits first, then in order of name."""
    values: dict[str, list[float]] = {}
    kept: dict[str, list[bool]] = {}
    for row in rows:
        for name, value in row["scores"].items():
            values.setdefault(name, []).append(value)
            kept.setdefault(name, []).append(not row["reason"])
    limited = {limit.score for limit in limits}
    names = sorted(values, key=lambda name: (name not in limited, name))
    return [_histogram(name, values[name], kept[name], [m for m in limits if m.score == name]) for name in names]


def _histogram(name: str, found: list[float], is_kept: list[bool], limits: Sequence[Limit]) -> Histogram:
    import numpy as np

    values, kept = np.array(found, np.float64), np.array(is_kept)
    finite = np.isfinite(values)
    values, kept = values[finite], kept[finite]
    if not len(values):
        return Histogram(name, 0, 0.0, 1.0, 0.0, (0, 0), (), ())
    low, high = _span(values, [side for limit in limits for side in limit[2:] if side is not None])
    inside = np.clip(values, low, high)
    kept_counts, _ = np.histogram(inside[kept], BINS, (low, high))
    all_counts, _ = np.histogram(inside, BINS, (low, high))
    tallest = max(1, int(all_counts.max()))
    bars = [
        Bar(100 * i / BINS, 100 / BINS, TALL * int(k) / tallest, TALL * int(a - k) / tallest)
        for i, (k, a) in enumerate(zip(kept_counts, all_counts, strict=True))
    ]
    outliers = (int((values < low).sum()), int((values > high).sum()))
    marks = [mark for limit in limits for mark in _marks(limit, values, low, high)]
    return Histogram(name, len(values), low, high, float(np.median(values)), outliers, bars, marks)


def _span(values: NDArray[np.float64], limits: Sequence[float]) -> tuple[float, float]:
    """What is drawn: nearly all values, and every limit."""
    import numpy as np

    low, high = (float(v) for v in np.percentile(values, (TAIL, 100 - TAIL)))
    if high - low > 0.2 * (float(values.max()) - float(values.min())):
        # The tails are short: show them.
        low, high = float(values.min()), float(values.max())
    low, high = min([low, *limits]), max([high, *limits])
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _marks(limit: Limit, values: NDArray[np.float64], low: float, high: float) -> list[Mark]:
    found = []
    for side, words, outside in (
        (limit.low, "at least", lambda v: int((values < v).sum())),
        (limit.high, "at most", lambda v: int((values > v).sum())),
    ):
        if side is not None:
            x = 100 * (side - low) / (high - low)
            found.append(Mark(x, f"{words} {side:g}", limit.stage, outside(side)))
    return found
