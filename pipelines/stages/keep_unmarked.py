"""Refuses clips with large watermarks, logos or stickers."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.limits import LimitStage, Rule


@dataclass(frozen=True)
class KeepUnmarked(LimitStage):
    """Refuses clips in which too much stays in place while the camera moves: `watermark`.

    Score `overlay` of `measure_motion`. Under a resting camera everything stays, so nothing can be told and nothing is
    refused. Default: a dance video with an app's buttons along its top had 0.03 to 0.04; all others and the marionettes
    0.
    """

    most_overlay: float = 0.1
    """Share of the picture around corners that never move."""

    @property
    def rules(self) -> tuple[Rule, ...]:
        return (Rule("overlay", "watermark", "of the picture never moves", most=self.most_overlay, share=True),)
