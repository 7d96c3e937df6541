"""Refuses clips too dark, too bright, too flat or burnt out."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.limits import LimitStage, Rule


@dataclass(frozen=True)
class KeepExposed(LimitStage):
    """Refuses clips in which light hides what happens: `too_dark`, `too_bright`, `low_contrast`, `burnt_out`.

    Scores of `measure_picture`, bars left out, medians over the clip. It cannot see that only the person is in the
    dark before a bright window. Defaults: real clips were at 95 to 175 brightness, 168 to 211 contrast and below 1 %
    clipped, marionettes (night scenes among them) at 54 to 196 and 112 to 182; an almost black web video had 5.
    """

    darkest: float = 25.0
    """Mean brightness, 0 to 255."""
    brightest: float = 230.0
    """Mean brightness, 0 to 255."""
    flattest: float = 50.0
    """Grey levels between the 2nd and the 98th percentile of brightness."""
    most_clipped: float = 0.5
    """Share of the pixels that are all black or all white."""

    @property
    def rules(self) -> tuple[Rule, ...]:
        return (
            Rule("brightness", "too_dark", "mean brightness of 255", least=self.darkest),
            Rule("brightness", "too_bright", "mean brightness of 255", most=self.brightest),
            Rule("contrast", "low_contrast", "grey levels from dark to bright", least=self.flattest),
            Rule("clipped", "burnt_out", "of the pixels are black or white", most=self.most_clipped, share=True),
        )
