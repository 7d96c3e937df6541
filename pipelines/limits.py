"""Filters that compare scores with limits: what most `keep_*` stages are.

A stage lists its limits; the report draws them into the histogram of each score.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dynamictrl.errors import ConfigError
from pipelines.clip import Clip
from pipelines.stage import Stage


@dataclass(frozen=True)
class Limit:
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
    """A filter that refuses a clip at the first limit its scores break. Subclasses say `limits`; scores that they
    measure themselves come from `measure`, the others from a stage before."""

    @property
    def limits(self) -> tuple[Limit, ...]:
        """In the order in which they are looked at."""
        raise AssertionError(f"{type(self).__name__} defines no limits")

    def measure(self, clip: Clip) -> Clip:
        """The clip with more scores; as it is where a stage before has measured all."""
        return clip

    def process(self, clip: Clip) -> Iterable[Clip]:
        yield judge(self.measure(clip), self.limits, self.name)


def judge(clip: Clip, limits: Iterable[Limit], stage: str) -> Clip:
    """The clip, refused where a limit is broken. Raises ConfigError where a score was never measured."""
    for limit in limits:
        if limit.score not in clip.scores:
            raise ConfigError(
                f"{stage} needs the score {limit.score!r}, and no stage before it measured that. Put the one that does "
                f"(measure_picture before the pose, measure_motion after it) ahead of {stage} in the recipe.",
                param=stage,
            )
        if problem := limit.problem(clip.scores[limit.score]):
            return clip.reject(limit.reason, problem)
    return clip
