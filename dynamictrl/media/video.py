"""Reading and writing video as people see it: upright, square pixels, true times, RGB.

PyAV, because its wheel carries FFmpeg: nothing to install beside it (torchcodec wants a system FFmpeg). Headers are
hints here: sizes, orientation, counts and times come from decoded frames. Interlaced video is not de-interlaced.

What cannot be read raises MediaError; its `code` is one of:

| code | meaning |
|---|---|
| not_found | no such file |
| unreadable | the file system refuses: a folder, permissions, an I/O error |
| empty_file | zero bytes |
| not_media | no known video container (text, HTML, a git-lfs pointer, a header without its index) |
| still_image | a picture, whatever its name says |
| no_video_stream | sound, subtitles or cover art only |
| unsupported_codec | this FFmpeg has no decoder for it |
| encrypted | common encryption: pictures come only with a key |
| no_frames | it opens, but not one frame decodes |
| decode_error | damaged in the middle; the message says how many frames came before |
| truncated | it ends, without complaint, well before the length it states |
| too_large | a frame, or the whole reading, would not fit in memory |
| no_such_span | `start` lies behind the last frame |
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from dynamictrl.errors import InputError, MediaError
from dynamictrl.media.video_pixels import RgbConverter, rgb_to_yuv420p
from dynamictrl.media.video_stream import FrameStream, VideoSource

MAX_READ_BYTES = 8 * 2**30
"""What `read_video` may hold at once: about 45 s of 1080p at 30 fps. `iter_frames` has no such limit."""

_ENCODER_THREADS = 4
"""Fixed, because x264's bytes depend on it: the same frames give the same file on every machine."""

_SAME_BYTES: dict[str, str] = {"x264-params": "cpu-independent=1"}
"""Without it x264's macroblock tree reads past small frames: one encoding in ten differed (measured, 96x96)."""


@dataclass(frozen=True)
class VideoInfo:
    """What a video is, its first frame having been decoded."""

    width: int
    """Pixels, upright and square."""
    height: int
    fps: float
    """The header's average rate; 0 where it states none."""
    frames: int
    """The header's count: a hint, 0 where it states none."""
    duration: float
    """Seconds by the header; 0 where it states none."""
    codec: str
    pixel_format: str
    rotation: int
    """Degrees counter-clockwise that the stored picture is turned to stand upright: 0, 90, 180 or 270."""
    has_audio: bool
    hdr: bool = False
    """PQ or HLG transfer: colours will look flat, as nothing is tone-mapped."""


@dataclass(frozen=True)
class Video:
    """A stretch of video in memory."""

    frames: NDArray[np.uint8]
    """[F, H, W, 3] RGB."""
    fps: float
    timestamps: NDArray[np.float64]
    """[F], seconds since the file's first frame."""

    @property
    def height(self) -> int:
        return self.frames.shape[1]

    @property
    def width(self) -> int:
        return self.frames.shape[2]


def probe(source: VideoSource) -> VideoInfo:
    """Opens a video and decodes one frame of it; raises MediaError with a code of the table above."""
    with FrameStream(source) as stream:
        frame = next(stream.frames(partial=True))
        look = stream.look(frame, None)
        height, width = look.upright_size
        return VideoInfo(
            width=width,
            height=height,
            fps=stream.header_fps,
            frames=stream.header_frames,
            duration=stream.header_duration,
            codec=stream.codec,
            pixel_format=frame.format.name,
            rotation=look.orientation.quarters * 90,
            has_audio=stream.has_audio,
            hdr=int(frame.color_trc) in (16, 18),
        )


def iter_frames(
    source: VideoSource,
    *,
    start: float = 0.0,
    end: float | None = None,
    fps: float | None = None,
    max_pixels: int | None = None,
    partial: bool = False,
) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    """Yields (seconds since the file's first frame, [H, W, 3]) one by one; memory does not grow with the length.

    Frames with `start` <= time < `end`. With `fps`, one picture every 1/fps seconds from `start`: the source frame
    nearest in time, so a variable frame rate becomes constant. Larger frames are shrunk to at most `max_pixels`, their
    shape kept. `partial=True` ends at damage instead of raising, if at least one frame came.
    """
    with FrameStream(source) as stream:
        convert: RgbConverter | None = None
        timed = stream.timed_frames(start, end, partial=partial)
        for time, frame in timed if fps is None else resampled(timed, start, end, fps):
            if convert is None:
                convert = RgbConverter(stream.look(frame, max_pixels))
            yield time, convert(frame)


def resampled(
    timed: Iterator[tuple[float, VideoFrame]], start: float, end: float | None, fps: float
) -> Iterator[tuple[float, VideoFrame]]:
    """Of frames at any times, the one nearest to each tick `start + k / fps`; the last frame lasts one mean step."""
    if not fps > 0:
        raise InputError(f"fps is {fps}; it must be positive", code="fps", param="fps")
    tick, count, first, shown = 0, 0, 0.0, None
    for time, frame in timed:
        if shown is None:
            first = time
        else:
            while start + tick / fps <= (shown[0] + time) / 2:
                yield start + tick / fps, shown[1]
                tick += 1
        shown, count = (time, frame), count + 1
    if shown is None:
        return
    step = (shown[0] - first) / (count - 1) if count > 1 else 1 / fps
    stop = shown[0] + step if end is None else min(end, shown[0] + step)
    # A thousandth of a tick: 83 frames at 30 fps are 83 ticks of 1/30 s, not 84 by rounding.
    while start + tick / fps < stop - 1e-3 / fps:
        yield start + tick / fps, shown[1]
        tick += 1


def read_video(
    source: VideoSource,
    *,
    start: float = 0.0,
    end: float | None = None,
    fps: float | None = None,
    num_frames: int | None = None,
    max_pixels: int | None = None,
    partial: bool = False,
) -> Video:
    """Reads a stretch of video into memory; the arguments are those of `iter_frames`.

    At most `num_frames` frames, fewer where the stretch holds fewer. `fps` of the result is the one asked for, else
    the measured one. Raises MediaError (table above); too_large where the result would pass MAX_READ_BYTES.
    """
    pictures = _Pictures()
    times: list[float] = []
    for time, picture in iter_frames(source, start=start, end=end, fps=fps, max_pixels=max_pixels, partial=partial):
        times.append(time)
        pictures.append(picture)
        if num_frames is not None and len(times) >= num_frames:
            break
    timestamps = np.array(times, np.float64)
    return Video(pictures.stacked(), fps or measured_fps(timestamps, source), timestamps)


def measured_fps(timestamps: NDArray[np.float64], source: VideoSource) -> float:
    """Frames per second by their times; by the header where there is one frame."""
    if len(timestamps) > 1:
        # Container clocks are coarse (milliseconds in Matroska): show 30, not 29.9993.
        measured = (len(timestamps) - 1) / float(timestamps[-1] - timestamps[0])
        return float(round(measured)) if abs(measured - round(measured)) < 2e-3 * measured / 30 else measured
    with FrameStream(source) as stream:
        return stream.header_fps or 1.0


class _Pictures:
    """Pictures of one size in one array that grows in place: stacking a list would take twice the memory."""

    def __init__(self):
        self._array = np.empty((0,), np.uint8)
        self._count = 0

    def append(self, picture: NDArray[np.uint8]) -> None:
        if self._count == 0:
            self._array = np.empty((16, *picture.shape), np.uint8)
        if self._count == len(self._array):
            capacity = self._count + max(16, self._count // 4)
            self._array.resize((capacity, *picture.shape), refcheck=False)
        if (self._count + 1) * picture.nbytes > MAX_READ_BYTES:
            height, width = picture.shape[:2]
            raise MediaError(
                f"more than {self._count} frames of {width}x{height} would take over {MAX_READ_BYTES / 2**30:.0f} GiB; "
                "read a shorter stretch (start, end), fewer frames a second (fps) or smaller ones (max_pixels)",
                code="too_large",
            )
        self._array[self._count] = picture
        self._count += 1

    def stacked(self) -> NDArray[np.uint8]:
        if self._count:
            self._array.resize((self._count, *self._array.shape[1:]), refcheck=False)
        return self._array


def crop_to_even(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[F, H, W, ...] without its last row or column where a side is odd, as H.264 in yuv420p needs."""
    height, width = frames.shape[1:3]
    return frames[:, : height // 2 * 2, : width // 2 * 2]


def write_video(path: Path, frames: NDArray[np.uint8], fps: float, *, crf: int = 18) -> None:
    """Writes [F, H, W, 3] RGB as H.264 mp4: yuv420p, BT.709, constant rate, index in front; whole or not at all.

    The same frames give the same bytes. Raises InputError; odd sides are refused and not padded in silence, since
    masks and poses of the same clip would no longer fit (`crop_to_even` is the way out).
    """
    _check_writable(frames, fps)
    write_pictures(path, frames, fps, crf=crf)


def write_pictures(path: Path, pictures: Iterable[NDArray[np.uint8]], fps: float, *, crf: int = 18) -> int:
    """As `write_video`, from [H, W, 3] pictures of one size as they come: memory does not grow with the length.

    Returns how many there were. Raises InputError.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        count = _encode_file(part, pictures, fps, crf)
        part.replace(path)
        return count
    finally:
        part.unlink(missing_ok=True)


def encode_video(frames: NDArray[np.uint8], fps: float, *, crf: int = 18) -> bytes:
    """The bytes `write_video` would write."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        write_video(path, frames, fps, crf=crf)
        return path.read_bytes()


def _check_writable(frames: NDArray[np.uint8], fps: float) -> None:
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise InputError(
            f"frames are {frames.dtype} {list(frames.shape)}; a video is uint8 [frames, height, width, 3]",
            code="frames_shape",
            param="frames",
        )
    count, height, width = frames.shape[:3]
    if count == 0:
        raise InputError("a video needs at least one frame", code="no_frames", param="frames")
    if height % 2 or width % 2 or min(height, width) < 2:
        raise InputError(
            f"frames are {width}x{height}; H.264 needs even sides: give {width // 2 * 2}x{height // 2 * 2} "
            "(dynamictrl.media.video.crop_to_even does)",
            code="odd_size",
            param="frames",
        )
    if not 0 < fps <= 1000:
        raise InputError(f"fps is {fps}; it must be above 0 and at most 1000", code="fps", param="fps")


def _encode_file(path: Path, pictures: Iterable[NDArray[np.uint8]], fps: float, crf: int) -> int:
    pictures = iter(pictures)
    first = next(pictures, np.empty((0, 0, 3), np.uint8))
    _check_writable(first[None] if first.size else first[None][:0], fps)
    rate, count = Fraction(fps).limit_denominator(1001), 0
    options = {"movflags": "+faststart", "fflags": "+bitexact"}
    with av.open(f"file:{path.absolute()}", "w", format="mp4", options=options) as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.time_base = 1 / rate
        stream.options = {"crf": str(crf), "preset": "medium", "threads": str(_ENCODER_THREADS), **_SAME_BYTES}
        context = stream.codec_context
        context.flags |= 1 << 23  # AV_CODEC_FLAG_BITEXACT: no version string in the bytes
        context.color_range, context.colorspace = 1, 1
        context.color_primaries, context.color_trc = 1, 1
        reformatter = VideoReformatter()
        for picture in chain((first,), pictures):
            frame = rgb_to_yuv420p(picture, reformatter)
            frame.pts, frame.time_base = count, 1 / rate
            container.mux(stream.encode(frame))
            count += 1
        container.mux(stream.encode(None))
    return count
