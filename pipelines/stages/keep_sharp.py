"""Refuses clips that are out of focus, smeared, or enlarged from something small."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.limits import LimitStage, Rule


@dataclass(frozen=True)
class KeepSharp(LimitStage):
    """Refuses clips without enough detail: `blurred`.

    Score `sharpness` of `measure_picture`: the pixels of the shorter side that the detail is worth, from the width of
    the edges, so that neither noise nor contrast nor an enlargement deceives it. Burnt-in text is sharp on the most
    blurred picture and is not told apart. Default: a 320x240 video is worth 240 and would do for nothing larger than
    that; a good 512x758 one 264; sharp 720p 720, and blurred by 4 pixels (standard deviation) 138.
    """

    blurriest: float = 200.0
    """Pixels of the shorter side that the picture's detail must be worth; 0 refuses none."""

    @property
    def rules(self) -> tuple[Rule, ...]:
        return (Rule("sharpness", "blurred", "pixels of detail across", least=self.blurriest),)
