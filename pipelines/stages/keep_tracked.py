"""Refuses clips whose poses tremble too much to be true."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.limits import LimitStage, Rule


@dataclass(frozen=True)
class KeepTracked(LimitStage):
    """Refuses clips whose pose cannot be relied on: `pose_jitter`.

    Score `jitter` of `keep_person`: how far joints jump off a smooth way from frame to frame, in hundredths of the
    person's height. It cannot see a pose that is wrong but calm. Default: marionettes measured by the mini model at 12
    frames per second have 0.2 to 2.7, where fast motion counts four times what it does at 24; independent errors of 3 %
    of the height at every joint give about 4.5.
    """

    most_jitter: float = 4.0
    """Hundredths of the person's height."""

    @property
    def rules(self) -> tuple[Rule, ...]:
        words = "hundredths of the person's height that joints jump"
        return (Rule("jitter", "pose_jitter", words, most=self.most_jitter),)
