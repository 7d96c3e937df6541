"""Refuses clips that are black, frozen, or a row of photographs."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.limits import LimitStage, Rule


@dataclass(frozen=True)
class KeepLive(LimitStage):
    """Refuses clips whose picture does not live: `black`, `frozen`, `slide_show`.

    Scores of `measure_picture`. A frame is black where even its brightest pixels are dark; a moment is still where no
    block of the picture changes by more than compression does. A photograph slowly zoomed is not still: there the pose
    shows that nobody moves (`keep_steady`). Someone who holds still before a resting camera is still, and refused where
    that takes most of the clip. Defaults: real clips of people had `frozen` of at most 0.05 and `still` of 0.03, a
    room that stayed empty for most of the clip 0.37 and 0.72; marionettes 0 and 0; a frozen video 1 and 1.
    """

    most_black: float = 0.1
    """Share of the frames."""
    longest_frozen: float = 0.5
    """Longest still stretch as a share of the clip."""
    most_still: float = 0.8
    """Share of the time in which nothing changes."""

    @property
    def rules(self) -> tuple[Rule, ...]:
        return (
            Rule("black", "black", "of the frames are black", most=self.most_black, share=True),
            Rule("frozen", "frozen", "of the clip in one still stretch", most=self.longest_frozen, share=True),
            Rule("still", "slide_show", "of the time nothing moves", most=self.most_still, share=True),
        )
