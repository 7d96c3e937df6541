"""Measures all that the filters of the picture judge, in one decoding."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from pipelines.clip import Clip
from pipelines.stage import Stage


@dataclass(frozen=True)
class MeasurePicture(Stage):
    """Decodes a cut clip once and writes the scores that the filters after it only compare with their limits.

    `sharpness`, `brightness`, `contrast`, `clipped`, `black`, `still`, `frozen`, `bars`, `seam`, `lettering`,
    `picture_jump`, `picture_jump_at`: each explained where it is measured, in `dynamictrl.quality`. Refuses nothing.
    """

    reads: ClassVar[tuple[str, ...] | None] = ("mp4",)
    seconds_per_frame: ClassVar[float] = 0.01

    def process(self, clip: Clip) -> Iterable[Clip]:
        from dynamictrl.quality.picture import measure_picture
        from dynamictrl.quality.samples import read_samples

        yield clip.with_scores(**measure_picture(read_samples(clip.file("mp4"))))
