"""Refuses clips that bars, or several pictures in one, leave little room for the person."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.limits import LimitStage, Rule


@dataclass(frozen=True)
class KeepFramed(LimitStage):
    """Refuses clips with large bars (`letterboxed`) and split screens (`split_screen`).

    Scores of `measure_picture`. Bars are found in any colour if they end in a straight edge, blurred ones are not.
    `seam` finds every collage with a dividing line between lively pictures but only about one in six of those without;
    it prefers silence to a false alarm. Defaults: two good clips have black pillars of 18 % and 22 %; upright video in
    a wide frame has 68 %. `seam` was at most 0.86 on real clips and marionettes, and 1.0 on collages with dividers.
    """

    most_bars: float = 0.35
    """Share of the picture that bars take."""
    most_seam: float = 0.9
    """How surely a straight line joins two pictures, 0 to 1; 1 refuses none."""

    @property
    def rules(self) -> tuple[Rule, ...]:
        return (
            Rule("bars", "letterboxed", "of the picture is bars", most=self.most_bars, share=True),
            Rule("seam", "split_screen", "of a line between two pictures is found", most=self.most_seam, share=True),
        )
