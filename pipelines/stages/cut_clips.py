"""Cuts shots into clips and writes each as what training expects: constant rate, upright, square pixels, H.264."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dynamictrl.errors import ConfigError
from pipelines.clip import Clip
from pipelines.stage import Stage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dynamictrl.media.video_stretches import StretchReader


@dataclass(frozen=True)
class CutClips(Stage):
    """Cuts a shot into windows of equal length and writes each as an H.264 mp4 of constant frame rate.

    A picture larger than needed is shrunk, its shape kept, until it just covers `width` x `height`; a smaller one stays
    as it is: enlarging adds bytes and no detail.

    The encoder is x264, which PyAV's wheel carries under the GPL (version 2 or later): using it binds nobody, passing
    the wheel on does. The wheel has no openh264. What it writes is H.264, which patent pools license in some countries.

    Refuses `too_small`; quarantines the source where a stretch cannot be read again (`no_such_span`, `decode_error`).
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
        try:
            for window in self._windows(clip):
                yield self._write(window)
        except BaseException:
            # Where it stands is not known.
            self._close()
            raise

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
        from dynamictrl.media.video import write_pictures

        # A clip's place is rounded to the millisecond, which must not make room for one frame more.
        most = max(1, int(clip.duration * self.fps + 0.05))
        frames = self._reader(clip).frames(clip.start, clip.end, fps=self.fps)
        pictures = (_even(self._shrink(frame_HWC)) for frame_HWC in islice(frames, most))
        first_HWC = next(pictures)
        height, width = first_HWC.shape[:2]
        if min(height, width) < 2:
            return clip.reject("too_small", f"{clip.width}x{clip.height} pixels cannot be encoded")
        clip.folder.mkdir(parents=True, exist_ok=True)
        count = write_pictures(clip.file("mp4"), chain((first_HWC,), pictures), self.fps, crf=self.crf)
        return replace(clip, fps=self.fps, frames=count, width=width, height=height).with_file("mp4")

    def _reader(self, clip: Clip) -> StretchReader:
        """The source's, still open from the clip before: all clips of a source are cut in one decoding."""
        from dynamictrl.media.video_stretches import StretchReader

        source = (clip.path, clip.fingerprint, clip.source_sha256)
        if self._open.get("source") != source:
            self._close()
            self._open.update(source=source, reader=StretchReader(Path(clip.path)))
        return self._open["reader"]

    def _close(self) -> None:
        if self._open:
            self._open["reader"].close()
            self._open.clear()

    @cached_property
    def _open(self) -> dict[str, Any]:
        return {}

    def __getstate__(self) -> dict[str, Any]:
        # An open file belongs to its process.
        return {name: value for name, value in self.__dict__.items() if name != "_open"}

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


def _even(frame_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    from dynamictrl.media.video import crop_to_even

    return crop_to_even(frame_HWC[None])[0]
