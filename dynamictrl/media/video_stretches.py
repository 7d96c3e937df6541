"""Stretches of one video, one after another, in one decoding.

Opening a file anew for every clip costs a decoding from the last key frame each time: in a file with one key frame,
N clips would cost N * N / 2.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from dynamictrl.errors import MediaError
from dynamictrl.media.video import resampled
from dynamictrl.media.video_pixels import RgbConverter
from dynamictrl.media.video_stream import FrameStream, VideoSource

WORTH_SEEKING = 10.0
"""Seconds; what lies between two stretches is decoded and dropped if it is shorter."""


class StretchReader:
    """One open video. Stretches asked for in order of time are read in one go; an earlier one opens the file anew.

    The pictures of a stretch are the same whatever was read before it.
    """

    def __init__(self, source: VideoSource):
        self._source = source
        self._stream: FrameStream | None = None
        self._timed: Iterator[tuple[float, VideoFrame]] = iter(())
        self._held: tuple[float, VideoFrame] | None = None
        """The first frame behind the last stretch."""
        self._reached = 0.0
        """Seconds; where the last stretch ended."""
        self._convert: RgbConverter | None = None

    def frames(self, start: float, end: float, *, fps: float) -> Iterator[NDArray[np.uint8]]:
        """Yields [H, W, 3] RGB, one picture every 1/`fps` seconds, of `start` <= seconds < `end`.

        Times are those of `dynamictrl.media.video.iter_frames`. Raises MediaError: `no_such_span` where the stretch
        holds no frame, or the damage that cuts it short.
        """
        for _, frame in resampled(self._between(start, end), start, end, fps):
            assert self._stream is not None
            self._convert = self._convert or RgbConverter(self._stream.look(frame, None))
            yield self._convert(frame)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.__exit__()
        self._stream, self._timed, self._held, self._convert = None, iter(()), None, None

    def _between(self, start: float, end: float) -> Iterator[tuple[float, VideoFrame]]:
        stream = self._at(start)
        self._reached = end
        found = False
        for time, frame in self._onward():
            if time >= end - 1e-6:
                self._held = time, frame
                break
            if time >= start - 1e-6:
                found = True
                yield time, frame
        else:
            if stream.damage is not None:
                raise stream.damage
        if not found:
            raise MediaError(f"there is no frame from {start:g} s to {end:g} s", code="no_such_span")

    def _onward(self) -> Iterator[tuple[float, VideoFrame]]:
        if self._held is not None:
            held, self._held = self._held, None
            yield held
        # Not `yield from`: that would close the decoding together with a stretch that is left early.
        for timed in self._timed:  # noqa: UP028
            yield timed

    def _at(self, start: float) -> FrameStream:
        """The open stream, standing at or before `start`."""
        if self._stream is not None:
            ahead = start - self._reached
            # A key frame behind the place where the decoder stands is worth a jump, one before it a loss.
            if ahead + 1e-6 >= 0 and (ahead < WORTH_SEEKING or not self._stream.has_key_between(self._reached, start)):
                return self._stream
            self.close()
        self._stream = FrameStream(self._source)
        self._timed = self._stream.timed_frames(start, None, partial=True)
        return self._stream
