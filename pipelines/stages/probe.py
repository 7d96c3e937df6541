"""Opens a source video and reads what it says of itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from pipelines.clip import Clip
from pipelines.stage import Stage


@dataclass(frozen=True)
class Probe(Stage):
    """Opens a source and decodes its first frame; what cannot be opened is quarantined under MediaError's code."""

    per: ClassVar[Literal["source", "clip"]] = "source"

    def process(self, clip: Clip) -> Iterable[Clip]:
        from dynamictrl.media.video import probe

        info = probe(Path(clip.path))
        found = replace(clip, fps=info.fps, frames=info.frames, width=info.width, height=info.height)
        yield found.at(0.0, info.duration).with_scores(source_width=info.width, source_height=info.height)
