"""One full decoding of a strange video that misses nothing: pictures out, and what is wrong with the file.

Much damage raises nothing. Three overwritten bytes of an H.264 file gave every frame, no exception and no `is_corrupt`
flag; one line of FFmpeg's log was the trace. Half a Matroska file ends without a word. So four witnesses are heard:
the log of this file alone, the clock (what is covered against what the headers state, gaps, times that run back),
zeros where no encoder writes any, and the packets behind the point where the decoder gave up. Declared frame counts
prove nothing and are not asked.

What cannot be seen: damage that happens to be legal video. Of three overwritten bytes in real clips all 24 tries were
noticed; in a small clip of noise, whose every bit pattern is some picture, four of nine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, cast

import av
import av.error
import numpy as np
from av.packet import Packet
from av.stream import Stream
from av.video.stream import VideoStream
from numpy.typing import NDArray

from dynamictrl.media.video_bitstream import has_hole, nal_length_size
from dynamictrl.media.video_log import DecoderLog
from dynamictrl.media.video_pixels import RgbConverter
from dynamictrl.media.video_stream import FrameStream, VideoSource

STILL = 8
"""Levels of 256 that no pixel of a still picture may move: encoders still polish what does not change any more."""


@dataclass(frozen=True)
class Span:
    """A stretch of time, in seconds since the first frame."""

    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(frozen=True)
class Condition:
    """What one full decoding saw. Times are seconds since the first frame."""

    frames: int
    end: float
    """When the last frame has been shown, for one `step`."""
    step: float
    """Seconds that a frame is shown, the median."""
    reached: float
    """When the last packet of the pictures ends, decoded or not."""
    stated: float
    """Length that the header states for the pictures alone; 0 = none."""
    file_end: float
    """When the last packet of any stream ends, sound included."""
    file_stated: float
    """Length that the header states for the whole file; 0 = none."""
    complaints: tuple[str, ...]
    """The first lines of FFmpeg's log that tell of damage."""
    damaged_from: float
    """When the first damage was noticed: what was shown before it is sound. Infinity = never."""
    error: str
    """Why the decoder gave up; "" = it did not."""
    mended: int
    """Frames whose own time was missing or ran back, so that one was made up."""
    gaps: tuple[Span, ...]
    """Where one frame stood far longer than its neighbours, longest first."""
    stills: tuple[Span, ...]
    """Where picture after picture was the same but for an encoder's polish, longest first."""

    @property
    def missing(self) -> float:
        """Seconds that a header promises and nothing in the file delivers; 0 where all is there."""
        # Behind damage, packets tell a file that goes on from one that was cut; elsewhere pictures count alone.
        end = max(self.end, self.reached) if self.error else self.end
        return max(0.0, self.stated - end, self.file_stated - max(self.file_end, end))


class Inspection:
    """A context manager around one decoding of a whole file. Raises MediaError where not one frame comes.

    Decodes on one thread: FFmpeg's log then belongs to the thread that asked, so that other threads may decode at the
    same time, and a worker of one core loses nothing.
    """

    LEAST_GAP: ClassVar[float] = 0.5
    """Seconds; shorter stands are not listed."""
    LEAST_STILL: ClassVar[float] = 0.5
    """Seconds; shorter freezes are not listed."""

    def __init__(self, source: VideoSource, *, max_pixels: int | None = None):
        self._max_pixels = max_pixels
        self._log = DecoderLog()
        self._times: list[float] = []
        self._damaged_from = float("inf")
        self._gaps, self._stills = _Longest(self.LEAST_GAP), _Stills(self.LEAST_STILL)
        with self._log.listening(started=False):
            self._stream = _WatchedStream(source, self._log)

    def __enter__(self) -> Inspection:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stream.__exit__(*exception)

    def pictures(self) -> Iterator[tuple[float, NDArray[np.uint8]]]:
        """Yields (seconds since the first frame, [H, W, 3] RGB of at most `max_pixels`) up to the end or the damage."""
        convert: RgbConverter | None = None
        frames = self._stream.timed_from_zero()
        while (shown := self._next(frames)) is not None:
            time, frame = shown
            if convert is None:
                convert = RgbConverter(self._stream.look(frame, self._max_pixels))
            picture = convert(frame)
            if self._times:
                self._gaps.add(self._times[-1], time)
            self._stills.add(time, picture)
            self._times.append(time)
            yield time, picture
        if self._stream.damage is not None:
            self._notice()
        self._stream.read_to_the_end()

    def _next(self, frames: Iterator[tuple[float, av.VideoFrame]]) -> tuple[float, av.VideoFrame] | None:
        known = self._log.count
        with self._log.listening(started=bool(self._times)):
            shown = next(frames, None)
        if self._log.count > known:
            self._notice()
        return shown

    def _notice(self) -> None:
        # Frames that came out before the decoder met the damage cannot hold any.
        if self._damaged_from == float("inf"):
            self._damaged_from = self._times[-1] + self._step() if self._times else 0.0

    def _step(self) -> float:
        nominal = 1 / (self._stream.header_fps or 25.0)
        return float(np.median(np.diff(self._times))) if len(self._times) > 1 else nominal

    def condition(self) -> Condition:
        """What was seen, once the pictures have ended."""
        step = self._step()
        end = self._times[-1] + step if self._times else 0.0
        stream = self._stream
        return Condition(
            frames=len(self._times),
            end=end,
            step=step,
            reached=stream.reached,
            stated=max(0.0, stream.own_duration - stream.ahead),
            file_end=stream.file_end,
            file_stated=max(0.0, stream.file_duration - stream.ahead),
            complaints=tuple(self._log.lines),
            damaged_from=self._damaged_from,
            error=str(stream.damage or ""),
            mended=stream.mended,
            gaps=self._gaps.longest(),
            stills=self._stills.longest(),
        )


def decoder_complaints(source: VideoSource) -> list[str]:
    """Decodes a whole video and returns what FFmpeg's log had to say of damage; empty for a sound file.

    Raises MediaError (see `dynamictrl.media.video`) only where not one frame comes.
    """
    with Inspection(source, max_pixels=64 * 64) as inspection:
        for _ in inspection.pictures():
            pass
        return list(inspection.condition().complaints)


class _WatchedStream(FrameStream):
    """Follows every stream's packets, sound included, to know how far the file itself reaches."""

    def __init__(self, source: VideoSource, log: DecoderLog):
        self._origin: float | None = None
        self._log = log
        self._last_pictures = self._last = float("-inf")
        super().__init__(source, threads=1)

    def _packets(self) -> Iterator[Packet[VideoStream]]:
        length_size = nal_length_size(self.codec, self._stream.codec_context.extradata or b"")
        for packet in self._container.demux():
            self._follow(packet)
            if packet.stream is self._stream:
                if length_size and has_hole(self.codec, bytes(packet), length_size):
                    self._log.complain(self.codec, "zeros in the middle of a picture's bytes, where none can be")
                yield cast("Packet[VideoStream]", packet)

    def _follow(self, packet: Packet[Stream]) -> None:
        if packet.pts is None or not packet.time_base or packet.stream.type not in ("video", "audio"):
            return
        ends = float((packet.pts + (packet.duration or 0)) * packet.time_base)
        self._last = max(self._last, ends)
        if packet.stream is self._stream:
            self._last_pictures = max(self._last_pictures, ends)

    def timed_from_zero(self) -> Iterator[tuple[float, av.VideoFrame]]:
        for time, frame in self._clocked(self.frames(partial=True)):
            if self._origin is None:
                self._origin = time
            yield time - self._origin, frame

    def read_to_the_end(self) -> None:
        """Where the decoder gave up, the packets behind tell whether the file goes on: damage, or a cut."""
        if self.damage is None:
            return
        try:
            for _ in self._packets():
                pass
        except (av.error.FFmpegError, EOFError):
            return

    @property
    def file_end(self) -> float:
        return max(0.0, self._last - (self._origin or 0.0))

    @property
    def reached(self) -> float:
        return max(0.0, self._last_pictures - (self._origin or 0.0))

    @property
    def ahead(self) -> float:
        """Seconds before the first frame that this container's stated lengths include: Matroska counts from zero."""
        return max(0.0, self._origin or 0.0) if "matroska" in self._container.format.name else 0.0


class _Longest:
    """The longest spans of their kind; bounded, whatever a file does."""

    KEPT: ClassVar[int] = 64

    def __init__(self, least: float):
        self._least = least
        self._spans: list[Span] = []

    def add(self, start: float, end: float) -> None:
        if end - start >= self._least:
            self._spans.append(Span(start, end))
            if len(self._spans) > 2 * self.KEPT:
                self._spans = list(self.longest())

    def longest(self) -> tuple[Span, ...]:
        return tuple(sorted(self._spans, key=lambda s: (-s.seconds, s.start))[: self.KEPT])


class _Stills:
    """Runs of pictures that do not change: what a player shows when it repeats the last good frame."""

    def __init__(self, least: float):
        self._runs = _Longest(least)
        self._began, self._last = 0.0, 0.0
        self._picture: NDArray[np.uint8] | None = None

    def add(self, time: float, picture: NDArray[np.uint8]) -> None:
        if self._picture is None or _change(picture, self._picture) > STILL:
            self._runs.add(self._began, self._last)
            self._began, self._picture = time, picture
        self._last = time

    def longest(self) -> tuple[Span, ...]:
        self._runs.add(self._began, self._last)
        return self._runs.longest()


def _change(picture: NDArray[np.uint8], other: NDArray[np.uint8]) -> int:
    """The largest difference of a pixel; 255 where the sizes differ."""
    if picture.shape != other.shape:
        return 255
    return int((np.maximum(picture, other) - np.minimum(picture, other)).max())
