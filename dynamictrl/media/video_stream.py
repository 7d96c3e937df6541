"""One open video stream: its frames in order with their times, and a true reason when there are none.

The layer under `dynamictrl.media.video`, whose table lists the reasons.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import av.error
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from dynamictrl.errors import MediaError
from dynamictrl.media.video_container import open_container, still_image
from dynamictrl.media.video_pixels import MAX_FRAME_PIXELS, Look

logger = logging.getLogger(__name__)

VideoSource = Path | bytes | BinaryIO
"""A file, its bytes, or a file that is open for reading: it is read from its beginning, and stays open."""

_DECODER_THREADS = 2
_SEEK_FROM = 1.0
"""Seconds; nearer starts are reached by decoding."""


class FrameStream:
    """The main video stream of a file or of bytes; a context manager. Raises MediaError on opening."""

    def __init__(self, source: VideoSource, *, threads: int = _DECODER_THREADS):
        source = Path(source) if isinstance(source, str) else source
        self._label = _label(source)
        self._threads = threads
        self.damage: MediaError | None = None
        """What ended the frames early, where they were asked for in part."""
        self.mended = 0
        """Frames so far whose own time was missing or not behind the one before."""
        self._file = self._open_file(source)
        try:
            self._container = self._open_container()
            self._stream = self._choose_stream()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> FrameStream:
        return self

    def __exit__(self, *exception: object) -> None:
        self._container.close()
        self._file.close()

    def _error(self, code: str, message: str) -> MediaError:
        return MediaError(f"{self._label}: {message}", code=code)

    def _open_file(self, source: VideoSource) -> BinaryIO:
        if isinstance(source, bytes):
            size, file = len(source), io.BytesIO(source)
        elif not isinstance(source, Path):
            size, file = os.fstat(source.fileno()).st_size, os.fdopen(os.dup(source.fileno()), "rb")
        else:
            if not source.exists():
                raise self._error("not_found", f"no such file ({source})")
            if not source.is_file():
                raise self._error("unreadable", "is no regular file")
            try:
                size, file = source.stat().st_size, source.open("rb")
            except OSError as error:
                raise self._error("unreadable", f"cannot be opened: {error.strerror}") from error
        if size == 0:
            file.close()
            raise self._error("empty_file", "is empty (0 bytes)")
        return file

    def _open_container(self) -> InputContainer:
        self._file.seek(0)
        try:
            return open_container(self._file)
        except (av.error.FFmpegError, ValueError, EOFError) as error:
            if kind := still_image(self._file):
                raise self._error("still_image", f"is a {kind} picture; a video is needed") from error
            raise self._error("not_media", f"is no video that can be opened ({_words(error)})") from error

    def _choose_stream(self) -> VideoStream:
        streams = [s for s in self._container.streams.video if not s.disposition & Disposition.attached_pic]
        if not any(stream.type in ("video", "audio", "subtitle") for stream in self._container.streams):
            raise self._error("not_media", "holds nothing to show or hear: its header is cut off")
        if not streams:
            raise self._error("no_video_stream", "holds no moving pictures")
        context = streams[0].codec_context
        if context is None:
            raise self._error("unsupported_codec", "is in a format that this FFmpeg cannot decode; convert it to H.264")
        self._check_size(context.width, context.height)
        context.thread_type = "AUTO"
        context.thread_count = self._threads
        return streams[0]

    def _check_size(self, width: int, height: int) -> None:
        if width * height > MAX_FRAME_PIXELS:
            raise self._error("too_large", f"frames are {width}x{height}; at most {MAX_FRAME_PIXELS} pixels are read")

    # What the header says.

    @property
    def codec(self) -> str:
        return self._stream.codec_context.name

    @property
    def has_audio(self) -> bool:
        return bool(self._container.streams.audio)

    @property
    def header_frames(self) -> int:
        return self._stream.frames

    @property
    def header_fps(self) -> float:
        return float(self._stream.average_rate or self._stream.guessed_rate or 0)

    @property
    def header_duration(self) -> float:
        """Seconds, of the stream where it states them, else of the file; 0 where nothing does."""
        return self.own_duration or self.file_duration

    @property
    def own_duration(self) -> float:
        """Seconds that the header states for this stream alone; 0 where it states none."""
        if self._stream.duration and self._stream.time_base:
            return float(self._stream.duration * self._stream.time_base)
        return _clock_seconds(self._stream.metadata.get("DURATION", ""))

    @property
    def file_duration(self) -> float:
        """Seconds that the header states for the whole file, sound included; 0 where it states none."""
        return (self._container.duration or 0) / av.time_base

    def look(self, frame: VideoFrame, max_pixels: int | None) -> Look:
        """How this stream's frames are shown, decided by one of them."""
        look = Look.of(frame, float(self._stream.sample_aspect_ratio or 1), max_pixels)
        self._check_size(look.width, look.height)
        return look

    # Frames.

    def timed_frames(self, start: float, end: float | None, *, partial: bool) -> Iterator[tuple[float, VideoFrame]]:
        """Yields (seconds since the first frame, frame) for `start` <= seconds < `end`, in order of showing."""
        if start > _SEEK_FROM:
            timed = self._sought(start, partial)
        else:
            timed = self._from_the_beginning(partial)
        found = False
        for time, frame in timed:
            if end is not None and time >= end - 1e-6:
                break
            if time >= start - 1e-6:
                found = True
                yield time, frame
        if not found:
            raise self._error("no_such_span", f"has no frame from {start:g} s" + (f" to {end:g} s" if end else " on"))

    def has_key_between(self, position: float, start: float) -> bool:
        """Whether decoding for `start` may begin behind `position` (seconds): true where the file has no index."""
        index = self._stream.index_entries
        origin = (self._stream.start_time or 0) * self._time_base
        entry = index.search_timestamp(int((origin + start) / self._time_base)) if len(index) else -1
        return entry < 0 or float(index[entry].timestamp * self._time_base - origin) > position

    def _from_the_beginning(self, partial: bool) -> Iterator[tuple[float, VideoFrame]]:
        origin, last = None, 0.0
        for time, frame in self._clocked(self.frames(partial=partial)):
            origin = time if origin is None else origin
            last = time - origin
            yield last, frame
        if not partial:
            self._check_complete(last)

    def _sought(self, start: float, partial: bool) -> Iterator[tuple[float, VideoFrame]]:
        """As `_from_the_beginning`, but from the last key frame before `start` where the file can do that."""
        origin, _ = next(self._clocked(self.frames(partial=True)))
        time_base = self._time_base
        timed, first = iter(()), None
        try:
            self._container.seek(int((origin + start) / time_base), stream=self._stream)
            timed = self._clocked(self.frames(partial=partial))
            first = next(timed, None)
        except (av.error.FFmpegError, MediaError):
            logger.debug("%s cannot seek; decoding from its beginning", self._label)
        if first is None or first[0] - origin > start:
            self._reopen()
            yield from self._from_the_beginning(partial)
            return
        last = first[0] - origin
        yield last, first[1]
        for time, frame in timed:
            last = time - origin
            yield last, frame
        if not partial:
            self._check_complete(last)

    def _reopen(self) -> None:
        self._container.close()
        self._container = self._open_container()
        self._stream = self._choose_stream()

    def frames(self, *, partial: bool) -> Iterator[VideoFrame]:
        """Yields decoded frames from where the container stands; damage ends them or raises (see `iter_frames`)."""
        count, damage = 0, None
        packets = self._packets()
        while damage is None or count == 0:
            # A recording may begin in the middle of a group of pictures, so damage before any frame is passed over.
            try:
                packet = next(packets, None)
                if packet is None:
                    break
                if count == 0 and packet.has_sidedata("encryption_info"):
                    raise self._error("encrypted", "is protected by a key; decrypt it first")
                decoded, damage = packet.decode(), None
            except (av.error.FFmpegError, EOFError) as error:
                decoded, damage = (self._in_flight() if count else []), error
            for frame in decoded:
                count += 1
                yield frame
        self._settle(count, damage, partial)

    def _packets(self) -> Iterator[Packet[VideoStream]]:
        return self._container.demux(self._stream)

    def _in_flight(self) -> list[VideoFrame]:
        """Frames that decoder threads had finished when a later packet failed."""
        try:
            return [frame for frame in self._stream.codec_context.decode(None) if not frame.is_corrupt]
        except (av.error.FFmpegError, EOFError):
            return []

    # Sound.

    def sound(self, start: float) -> Iterator[tuple[float, AudioFrame]]:
        """Yields (seconds on the clock of `timed_frames`, decoded sound) from `start` on or a little before.

        Ends at the first damage, and yields nothing where there is no sound that can be decoded. The picture's first
        frame is 0, so sound recorded ahead of it has negative times. Afterwards the stream stands behind its sound.
        """
        origin, _ = next(self._clocked(self.frames(partial=True)))
        self._reopen()
        if start > _SEEK_FROM:
            try:
                self._container.seek(int((origin + start - _SEEK_FROM) * av.time_base))
            except av.error.FFmpegError:
                self._reopen()
        stream = self._container.streams.best("audio")
        if not isinstance(stream, AudioStream) or stream.codec_context is None:
            return
        last: float | None = None
        for frame in self._sound_frames(stream):
            if frame.pts is not None and frame.time_base:
                last = float(frame.pts * frame.time_base)
            elif last is None:
                last = origin
            yield last - origin, frame
            last += frame.samples / frame.sample_rate

    def _sound_frames(self, stream: AudioStream) -> Iterator[AudioFrame]:
        try:
            for packet in self._container.demux(stream):
                yield from packet.decode()  # pyright: ignore[reportReturnType] - of a sound stream
        except (av.error.FFmpegError, EOFError) as damage:
            logger.warning("%s: its sound is damaged (%s); the rest is silence", self._label, _words(damage))

    def _settle(self, count: int, damage: Exception | None, partial: bool) -> None:
        why = f" ({_words(damage)})" if damage else ""
        if count == 0:
            promised = f" of the {self.header_frames} it promises" if self.header_frames else ""
            raise self._error("no_frames", f"not one frame{promised} can be decoded{why}")
        if damage is None:
            return
        self.damage = self._error(
            "decode_error", f"is damaged after {count} good frames{why}; partial=True keeps those"
        )
        if not partial:
            raise self.damage
        logger.warning("%s is damaged after %d good frames%s; the rest is left out", self._label, count, why)

    def _clocked(self, frames: Iterator[VideoFrame]) -> Iterator[tuple[float, VideoFrame]]:
        """Adds each frame's time by its own clock in seconds, always increasing."""
        step = 1 / (self.header_fps or 25.0)
        # AVI knows no times, only the order of packets: B-frames would jump to and fro.
        counts_packets = self._container.format.name == "avi"
        last: float | None = None
        for frame in frames:
            # Not `frame.time`: frames drained after damage carry no time base of their own.
            stamp = frame.dts if counts_packets else frame.pts
            time = None if stamp is None else float(stamp * self._time_base)
            if time is None or (last is not None and time <= last):
                self.mended += 1
                time = 0.0 if last is None else last + step
            last = time
            yield time, frame

    def _check_complete(self, last: float) -> None:
        """Some containers end early without a word (half a Matroska file): compare with the stated length."""
        stated = [seconds for seconds in (self.header_duration, self.file_duration) if seconds > 0]
        covered = last + 1 / (self.header_fps or 25.0)
        if stated and min(stated) - covered > max(1.0, 0.1 * min(stated)):
            raise self._error(
                "truncated",
                f"ends after {covered:.2f} s of the {min(stated):.2f} s it states; partial=True keeps those",
            )

    @property
    def _time_base(self) -> Fraction:
        assert self._stream.time_base, "FFmpeg gives every stream a clock"
        return self._stream.time_base


def _label(source: VideoSource) -> str:
    if isinstance(source, bytes):
        return f"{len(source)} bytes"
    return source.name if isinstance(source, Path) else "the file"


def _clock_seconds(clock: str) -> float:
    """Matroska's "00:01:02.500000000" as seconds; 0 where it is written otherwise."""
    try:
        hours, minutes, seconds = clock.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return 0.0


def _words(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
