"""What a description says of its stages, so that reports and commands need no stage objects.

A stage that refuses by a score says so in a property `limits`: `{score: (lowest, highest)}` of what it keeps, where
minus or plus infinity, or None, stands for no limit on that side. `KeepSharp(blurriest=20)` has
`{"sharpness": (20.0, inf)}`. It is for people: no result depends on it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pipelines.stage import Stage


class Limit(NamedTuple):
    """Which values of one score a stage keeps; None = no limit on that side."""

    stage: str
    score: str
    low: float | None
    high: float | None

    def refused(self, row: Mapping[str, Any]) -> bool:
        """Whether a row that its stage refused lies outside it."""
        return self.score in row["scores"] and self.distance(row["scores"][self.score]) < 0

    def distance(self, value: float) -> float:
        """How far a value is inside (positive) or outside (negative), in units of the nearer limit's size."""
        gaps = []
        if self.low is not None:
            gaps.append((value - self.low) / (abs(self.low) or 1.0))
        if self.high is not None:
            gaps.append((self.high - value) / (abs(self.high) or 1.0))
        return min(gaps, default=math.inf)

    def __str__(self) -> str:
        if self.low is not None and self.high is not None:
            return f"{self.low:g} to {self.high:g}"
        if self.low is not None:
            return f"at least {self.low:g}"
        return f"at most {self.high:g}" if self.high is not None else "no limit"


def stage_list(stages: Mapping[str, Stage]) -> list[dict[str, Any]]:
    """The stages at work, by field and in order, as `dataset.json` lists them under `stages`."""
    return [
        {
            "field": name,
            "stage": stage.name,
            "per": stage.per,
            "version": stage.version,
            "limits": {score: [_plain(side) for side in sides] for score, sides in _limits(stage).items()},
        }
        for name, stage in stages.items()
    ]


def listed(description: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The stages of a description in order of work; by the recipe where an older description lists none."""
    found = description.get("stages")
    if found:
        return list(found)
    settings = description["settings"]
    order = [name for name in _order_of_recipe(description.get("recipe", "")) if name in settings]
    rest = [name for name in settings if name not in order]
    return [{"field": name, "stage": settings[name]["stage"], "limits": {}} for name in [*order, *rest]]


def limits(description: Mapping[str, Any]) -> list[Limit]:
    """Every limit of a description, in order of work."""
    found = []
    for entry in listed(description):
        for score, (low, high) in (entry.get("limits") or {}).items():
            if low is not None or high is not None:
                found.append(Limit(entry["stage"], score, low, high))
    return found


def default_settings(recipe: str) -> dict[str, dict[str, Any]]:
    """The settings that a recipe has when nothing is said; empty where this release has no such recipe."""
    from pipelines.recipes import RECIPES

    return RECIPES[recipe]().settings() if recipe in RECIPES else {}


def _order_of_recipe(recipe: str) -> Sequence[str]:
    return list(default_settings(recipe))


def _limits(stage: Stage) -> Mapping[str, tuple[float | None, float | None]]:
    said = getattr(stage, "limits", {})
    return said if isinstance(said, Mapping) else {limit.score: (limit.least, limit.most) for limit in said}


def _plain(side: float | None) -> float | None:
    """JSON knows no infinity."""
    return None if side is None or math.isinf(side) else float(side)
