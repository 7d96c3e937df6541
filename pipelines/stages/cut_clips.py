"""Cuts shots into clips and writes each as what training expects: constant rate, upright, square pixels, H.264."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from dynamictrl.errors import ConfigError
from pipelines.clip import Clip
from pipelines.stage import Stage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class CutClips(Stage):
    """Cuts a shot into windows of equal length and writes each as an H.264 mp4 of constant frame rate.

    A picture larger than needed is shrunk, its shape kept, until it just covers `width` x `height`; a smaller one stays
    as it is: enlarging adds bytes and no detail.
    """

    per: ClassVar[Literal["source", "clip"]] = "source"
    cuts: ClassVar[bool] = True

    longest: float = 8.0
    """Seconds; longer shots become several clips of equal length."""
    fps: float = 24.0
    """Frames per second of every clip; sources of another or a variable rate are resampled by their time stamps."""
    width: int = 768
    """Pixels that the clip must still cover after shrinking."""
    height: int = 768
    """Pixels that the clip must still cover after shrinking."""
    crf: int = 18
    """x264 quality, 0 (lossless) to 51; 18 shows no loss to the eye."""

    def __post_init__(self):
        if self.longest <= 0 or not 0 < self.fps <= 120 or min(self.width, self.height) < 16:
            raise ConfigError(
                f"longest is {self.longest} s (above 0), fps {self.fps} (0 to 120), size {self.width}x{self.height} "
                f"(at least 16x16)",
                param="cut",
            )

    def process(self, clip: Clip) -> Iterable[Clip]:
        for window in self._windows(clip):
            yield self._write(window)

    def foresee(self, clip: Clip) -> Iterable[Clip]:
        scale = min(1.0, max(self.height / max(clip.height, 1), self.width / max(clip.width, 1)))
        width, height = round(clip.width * scale), round(clip.height * scale)
        for window in self._windows(clip):
            frames = max(1, int(window.duration * self.fps + 0.05))
            yield replace(window, fps=self.fps, frames=frames, width=width, height=height)

    def _windows(self, clip: Clip) -> Iterable[Clip]:
        windows = max(1, math.ceil(round(clip.duration / self.longest, 6)))
        length = clip.duration / windows
        for index in range(windows):
            yield clip.at(clip.start + index * length, clip.start + (index + 1) * length)

    def _write(self, clip: Clip) -> Clip:
        import numpy as np

        from dynamictrl.video import crop_to_even, iter_frames, write_video

        # A clip's place is rounded to the millisecond, which must not make room for one frame more.
        most = max(1, int(clip.duration * self.fps + 0.05))
        stretch = islice(iter_frames(Path(clip.path), start=clip.start, end=clip.end, fps=self.fps), most)
        frames_FHWC = crop_to_even(np.stack([self._shrink(frame_HWC) for _, frame_HWC in stretch]))
        count, height, width = frames_FHWC.shape[:3]
        if min(height, width) < 2:
            return clip.reject("too_small", f"{clip.width}x{clip.height} pixels cannot be encoded")
        clip.folder.mkdir(parents=True, exist_ok=True)
        write_video(clip.file("mp4"), frames_FHWC, self.fps, crf=self.crf)
        return replace(clip, fps=self.fps, frames=count, width=width, height=height).with_file("mp4")

    def _shrink(self, frame_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        import cv2
        import numpy as np

        height, width = frame_HWC.shape[:2]
        scale = max(self.height / height, self.width / width)
        if scale >= 1:
            return frame_HWC
        # Rounded up to even, so that the clip covers what it must.
        size = (math.ceil(width * scale / 2 - 1e-6) * 2, math.ceil(height * scale / 2 - 1e-6) * 2)
        return cv2.resize(frame_HWC, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
