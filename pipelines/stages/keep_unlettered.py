"""Refuses clips whose picture is written over."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.limits import LimitStage, Rule


@dataclass(frozen=True)
class KeepUnlettered(LimitStage):
    """Refuses clips with too much text that stays in place: `text_overlay`.

    Score `lettering` of `measure_picture`: letters are found by their strokes, without weights; nothing is read. It
    cannot see vertical or very small text (below about a fiftieth of the picture's shorter side), and takes signs in
    the scene for subtitles where the camera rests. Default: a dance video with four burnt-in captions before a lettered
    wall had 0.03 to 0.09, one subtitle across the picture 0.02 to 0.08; clips without text 0 to 0.02 (leaves before a
    light background), marionettes 0.
    """

    most_lettering: float = 0.12
    """Share of the picture that lines of text cover."""

    @property
    def rules(self) -> tuple[Rule, ...]:
        return (Rule("lettering", "text_overlay", "of the picture is lettering", most=self.most_lettering, share=True),)
