"""Refuses shots too short to hold a motion."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

from pipelines.clip import Clip
from pipelines.stage import Stage


@dataclass(frozen=True)
class KeepDuration(Stage):
    """Refuses shots too short to hold a motion, before they cost an encoding."""

    per: ClassVar[Literal["source", "clip"]] = "source"

    shortest: float = 2.0
    """Seconds."""

    def process(self, clip: Clip) -> Iterable[Clip]:
        if clip.duration < self.shortest:
            yield clip.reject("too_short", f"{clip.duration:g} s; at least {self.shortest:g} s")
        else:
            yield clip
