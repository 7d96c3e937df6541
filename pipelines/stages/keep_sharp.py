"""Refuses clips that are out of focus, empty or smeared throughout."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pipelines.clip import Clip
from pipelines.stage import Stage

SAMPLED_FRAMES = 8
ANALYSIS_HEIGHT = 256
"""Sharpness depends on the size at which it is measured, so all clips are measured at one."""


@dataclass(frozen=True)
class KeepSharp(Stage):
    """Refuses clips without detail: out of focus, smeared, or one plain colour."""

    blurriest: float = 20.0
    """Variance of the Laplacian of brightness (0 to 255) at 256 pixels height, median of 8 frames; 0 refuses none."""

    def process(self, clip: Clip) -> Iterable[Clip]:
        import cv2
        import numpy as np

        from dynamictrl.video import read_video

        frames_FHWC = read_video(clip.file("mp4")).frames
        chosen = np.linspace(0, len(frames_FHWC) - 1, min(SAMPLED_FRAMES, len(frames_FHWC))).round().astype(int)
        variances = []
        for frame_HWC in frames_FHWC[chosen]:
            size = (max(1, round(frame_HWC.shape[1] * ANALYSIS_HEIGHT / frame_HWC.shape[0])), ANALYSIS_HEIGHT)
            grey_HW = cv2.cvtColor(cv2.resize(frame_HWC, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
            variances.append(float(cv2.Laplacian(grey_HW, cv2.CV_64F).var()))
        sharpness = float(np.median(variances))
        measured = clip.with_scores(sharpness=sharpness)
        if sharpness < self.blurriest:
            yield measured.reject("blurred", f"sharpness {sharpness:.1f}; at least {self.blurriest:g}")
        else:
            yield measured
