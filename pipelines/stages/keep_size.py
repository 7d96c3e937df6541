"""Refuses pictures too small to learn from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

from pipelines.clip import Clip
from pipelines.stage import Stage


@dataclass(frozen=True)
class KeepSize(Stage):
    """Refuses sources whose picture is too small."""

    per: ClassVar[Literal["source", "clip"]] = "source"

    smallest: int = 480
    """Pixels of the shorter side, upright."""

    def process(self, clip: Clip) -> Iterable[Clip]:
        if min(clip.width, clip.height) < self.smallest:
            yield clip.reject(
                "too_small", f"{clip.width}x{clip.height} pixels; the shorter side must be at least {self.smallest}"
            )
        else:
            yield clip
