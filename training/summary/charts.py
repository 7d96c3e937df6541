"""Line charts as inline SVG: raw values as a band, their running mean as a line, marks where something happened."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

WIDE, TALL = 560.0, 190.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 8.0, 8.0, 22.0
POINTS = 280
"""Most points of a line; more steps are drawn as a band from their least to their greatest."""
LOG_SPAN = 30.0
"""Positive values that span more than this factor are drawn on a logarithmic scale."""
OUTLIER = 3.0
"""A greatest value of so many times what 98 of 100 stay below is drawn at the edge: first steps compile."""
COLOURS = ("var(--kept)", "var(--out)", "var(--mark)", "var(--bad)", "var(--c5)", "var(--c6)", "var(--soft)")

Points = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Marks:
    """What happened at which steps."""

    checkpoints: Sequence[int] = ()
    restarts: Sequence[int] = ()
    skipped: Sequence[int] = ()
    spikes: Sequence[int] = ()


@dataclass(frozen=True)
class Chart:
    """One drawing; `series` are (step, value) by name, NaN left out."""

    title: str
    unit: str
    series: Mapping[str, Points]
    marks: Marks = field(default_factory=Marks)
    percent: bool = False
    smooth: bool = True
    """Draws running means, with every value behind a line that stands alone."""
    share: bool = False
    """Values are 0 or 1, of which only the running mean can be read."""
    from_zero: bool = False

    def svg(self) -> str:
        """The drawing, or a sentence where there is nothing to draw."""
        finite = {name: [(s, v) for s, v in points if math.isfinite(v)] for name, points in self.series.items()}
        finite = {name: points for name, points in finite.items() if points}
        if not finite:
            return '<p class="soft">Nothing was recorded.</p>'
        lines = {name: smoothed(points) if self.smooth else points for name, points in finite.items()}
        alone = self.smooth and not self.share and len(lines) == 1
        scale = _Scale.of([p for points in (finite if alone else lines).values() for p in points], self.from_zero)
        drawn = [_line(i, points, scale) for i, points in enumerate(lines.values())]
        bands = [_band(points, scale) for points in finite.values()] if alone else []
        label = html.escape(f"{self.title} by step")
        return (
            f'<svg class="chart" viewBox="0 0 {WIDE:g} {TALL:g}" role="img" aria-label="{label}">'
            f"{scale.grid(self.percent)}{''.join(bands)}{''.join(drawn)}{_marked(self.marks, scale)}</svg>"
            f"{self._legend(list(finite))}"
        )

    def _legend(self, names: list[str]) -> str:
        if len(names) < 2:
            return ""
        entries = "".join(
            f'<span class="swatch" style="background: {COLOURS[i % len(COLOURS)]}"></span>{html.escape(name)}'
            for i, name in enumerate(names)
        )
        return f'<p class="legend soft">{entries}</p>'


@dataclass(frozen=True)
class _Scale:
    steps: tuple[float, float]
    values: tuple[float, float]
    log: bool

    @classmethod
    def of(cls, points: Points, from_zero: bool) -> _Scale:
        steps, values = [s for s, _ in points], sorted(v for _, v in points)
        low, high = values[0], values[-1]
        log = not from_zero and low > 0 and high / low > LOG_SPAN
        usual = values[int(0.98 * (len(values) - 1))]
        if not log and high > OUTLIER * usual > 0:
            high = 1.3 * usual
        if log:
            low, high = low / 1.1, high * 1.1
        else:
            room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
            low, high = (0.0 if from_zero or 0 <= low < 0.25 * high else low - room), high + room
        return cls((min(steps), max(max(steps), min(steps) + 1)), (low, high), log)

    def x(self, step: float) -> float:
        first, last = self.steps
        return LEFT + (WIDE - LEFT - RIGHT) * (step - first) / (last - first)

    def y(self, value: float) -> float:
        value = min(max(value, self.values[0]), self.values[1])
        low, high, value = (math.log(v) for v in (*self.values, value)) if self.log else (*self.values, value)
        return TALL - BOTTOM - (TALL - TOP - BOTTOM) * (value - low) / (high - low)

    def grid(self, percent: bool) -> str:
        rows = "".join(
            f'<line class="grid-line" x1="{LEFT:g}" x2="{WIDE - RIGHT:g}" y1="{self.y(v):.1f}" y2="{self.y(v):.1f}"/>'
            f'<text x="{LEFT - 6:g}" y="{self.y(v) + 3.5:.1f}" text-anchor="end">{written(v, percent)}</text>'
            for v in self._value_ticks()
        )
        columns = "".join(
            f'<text x="{self.x(s):.1f}" y="{TALL - 6:g}" text-anchor="{_anchor(s, self.steps)}">{s:,.0f}</text>'
            for s in _step_ticks(*self.steps)
        )
        return rows + columns

    def _value_ticks(self) -> list[float]:
        low, high = self.values
        if self.log:
            found = [10.0**e for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
            if len(found) > 6:
                found = found[:: math.ceil(len(found) / 5)]
            inside = [value for value in found if low <= value <= high]
            return inside if len(inside) > 1 else [low * 1.1, high / 1.1]
        return _nice(low, high, 4)


def smoothed(points: Points) -> list[tuple[int, float]]:
    """Running means over about a fiftieth of the points (an exponential window, without its start's bias)."""
    keep = 1 - 1 / max(1.0, len(points) / 50)
    total, weight, means = 0.0, 0.0, []
    for step, value in points:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        means.append((step, total / weight))
    return means


def thinned(points: Points) -> list[tuple[int, float]]:
    """At most POINTS points, the last among them."""
    every = max(1, math.ceil(len(points) / POINTS))
    found = list(points[::every])
    return found if not points or found[-1] == points[-1] else [*found, points[-1]]


def written(value: float, percent: bool = False) -> str:
    """A number as short as it can be read."""
    if percent:
        return f"{100 * value:.3g} %"
    if value == 0 or 0.01 <= abs(value) < 10_000:
        return f"{value:.4g}"
    return f"{value:,.0f}" if 10_000 <= abs(value) < 1e7 else f"{value:.2g}"


def _line(index: int, points: Points, scale: _Scale) -> str:
    colour = COLOURS[index % len(COLOURS)]
    if len(points) == 1:
        step, value = points[0]
        return f'<circle cx="{scale.x(step):.1f}" cy="{scale.y(value):.1f}" r="3" fill="{colour}"/>'
    drawn = _path([(scale.x(s), scale.y(v)) for s, v in thinned(points)])
    return f'<path class="line" d="{drawn}" style="stroke: {colour}"/>'


def _band(points: Points, scale: _Scale) -> str:
    """From the least to the greatest of neighbouring values."""
    every = max(1, math.ceil(len(points) / POINTS))
    groups = [points[i : i + every] for i in range(0, len(points), every)]
    if every == 1:
        return f'<path class="raw" d="{_path([(scale.x(s), scale.y(v)) for s, v in points])}"/>'
    tops = [(scale.x(g[0][0]), scale.y(max(v for _, v in g))) for g in groups]
    bottoms = [(scale.x(g[0][0]), scale.y(min(v for _, v in g))) for g in reversed(groups)]
    return f'<path class="band" d="{_path(tops + bottoms)}Z"/>'


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _marked(marks: Marks, scale: _Scale) -> str:
    first, last = scale.steps
    bottom = TALL - BOTTOM

    def inside(steps: Sequence[int]) -> list[float]:
        return [scale.x(step) for step in sorted(set(steps)) if first <= step <= last]

    ticks = "".join(f'<path class="saved" d="M{x:.1f} {bottom:g}v-7"/>' for x in inside(marks.checkpoints)[-200:])
    bars = "".join(f'<path class="restart" d="M{x:.1f} {TOP:g}V{bottom:g}"/>' for x in inside(marks.restarts))
    dots = "".join(
        f'<circle class="{kind}" cx="{x:.1f}" cy="{TOP + 4:g}" r="3.2"/>'
        for kind, steps in (("skipped", marks.skipped), ("spike", marks.spikes))
        for x in inside(steps)[-200:]
    )
    return ticks + bars + dots


def _nice(low: float, high: float, wanted: int) -> list[float]:
    """Round numbers in a span, about so many."""
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    width = next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= rough)
    first = math.ceil(low / width - 1e-9)
    return [number * width for number in range(first, math.floor(high / width + 1e-9) + 1)]


def _step_ticks(first: float, last: float) -> list[float]:
    """The ends, and round whole steps that stand well apart from them."""
    apart = 0.12 * (last - first)
    inner = [s for s in _nice(first, last, 5) if s == round(s) and first + apart < s < last - apart]
    return [first, *inner, last]


def _anchor(step: float, ends: tuple[float, float]) -> str:
    return "start" if step == ends[0] else "end" if step == ends[1] else "middle"
