"""Filters that compare scores with limits: what most `keep_*` stages are.

A stage lists its rules; the report draws their limits into the histogram of each score.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from dynamictrl.errors import ConfigError
from pipelines.clip import Clip
from pipelines.stage import Stage


@dataclass(frozen=True)
class Rule:
    """What a score must be for a clip to be kept; both ends count as kept."""

    score: str
    """Name in `Clip.scores`."""
    reason: str
    """Code of the refusal, snake_case: it never changes."""
    words: str
    """What the number is, as the message goes on after it: "of the picture's height"."""
    least: float = float("-inf")
    most: float = float("inf")
    share: bool = False
    """Shown as a percentage."""

    def problem(self, value: float) -> str:
        """Value, limit and what they are, in a sentence; "" where the value is within the limits."""
        if self.least <= value <= self.most:
            return ""
        side, limit = ("at least", self.least) if not value >= self.least else ("at most", self.most)
        return f"{self._shown(value)} {self.words}; {side} {self._shown(limit)}"

    def _shown(self, value: float) -> str:
        # Enough digits that a value just beyond its limit does not read like it.
        return f"{100 * value:.4g} %" if self.share else f"{value:.4g}"


@dataclass(frozen=True)
class LimitStage(Stage):
    """A filter that refuses a clip at the first rule its scores break. Subclasses say `rules`; scores that they
    measure themselves come from `measure`, the others from a stage before."""

    reads: ClassVar[tuple[str, ...] | None] = ("scores",)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """In the order in which they are looked at."""
        raise AssertionError(f"{type(self).__name__} defines no rules")

    @property
    def limits(self) -> dict[str, tuple[float, float]]:
        """The lowest and the highest value of each score that is kept, for reports (see `stage_list`)."""
        found: dict[str, tuple[float, float]] = {}
        for rule in self.rules:
            low, high = found.get(rule.score, (float("-inf"), float("inf")))
            found[rule.score] = (max(low, rule.least), min(high, rule.most))
        return found

    def measure(self, clip: Clip) -> Clip:
        """The clip with more scores; as it is where a stage before has measured all."""
        return clip

    def process(self, clip: Clip) -> Iterable[Clip]:
        yield judge(self.measure(clip), self.rules, self.name)


def judge(clip: Clip, rules: Iterable[Rule], stage: str) -> Clip:
    """The clip, refused where a rule is broken. Raises ConfigError where a score was never measured."""
    for rule in rules:
        if rule.score not in clip.scores:
            raise ConfigError(
                f"{stage} needs the score {rule.score!r}, and no stage before it measured that. Put the one that does "
                f"(measure_picture before the pose, measure_motion after it) ahead of {stage} in the recipe.",
                param=stage,
            )
        if problem := rule.problem(clip.scores[rule.score]):
            return clip.reject(rule.reason, problem)
    return clip
