"""What is done to a stranger's file inside its own confined process: facts, or pixels and samples, or a refusal.

Called by `media_prober.py` with a file that is open already. Pixels go to `payload`, a file in memory that the asking
process reads once this one is gone; everything else is a small dictionary.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from dynamictrl.errors import DynamiCtrlError, MediaError
from dynamictrl.media.audio import read_sound
from dynamictrl.media.images import read_image
from dynamictrl.media.video import VideoInfo, iter_frames, measured_fps, probe
from dynamictrl.media.video_stream import FrameStream
from serving.media.tone_mapping import HLG, PQ, to_sdr

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF")
"""Pictures as cameras, phones and browsers make them. Pillow knows forty more, some by running other programs."""
SMALLEST_SIDE = 16
"""Pixels of a picture's shorter side: less shows nobody, and a line of a million pixels is no picture."""


@dataclass(frozen=True)
class Question:
    """What is asked of a file."""

    kind: str
    """One of `QUESTIONS`."""
    image_pixels: int
    frame_pixels: int
    video_seconds: float
    fps: float | None = None
    num_frames: int | None = None
    max_pixels: int | None = None
    seconds: float = 0.0
    last: bool = False


def answer(question: Question, medium: BinaryIO, payload: BinaryIO | None) -> dict[str, Any]:
    """Facts about one file, or a code and a message; never an exception."""
    try:
        return QUESTIONS[question.kind](question, medium, payload)
    except DynamiCtrlError as problem:
        return {"code": problem.code, "message": str(problem)}
    except MemoryError:
        return {"code": "media_too_heavy", "message": "decoding it takes more memory than is allowed"}
    except Exception as problem:  # noqa: BLE001 - whatever a decoder throws at a hostile file is the file's fault
        return {"code": "not_media", "message": f"it cannot be decoded ({type(problem).__name__})"}


def _image_facts(question: Question, medium: BinaryIO, _payload: BinaryIO | None) -> dict[str, Any]:
    image = _picture(question, medium)
    return {"width": image.width, "height": image.height}


def _image_pixels(question: Question, medium: BinaryIO, payload: BinaryIO | None) -> dict[str, Any]:
    return _given(np.asarray(_picture(question, medium)), payload)


def _picture(question: Question, medium: BinaryIO) -> Image.Image:
    """A still picture of a known format whose header promises no more than `image_pixels`."""
    medium.seek(0)
    data = medium.read()
    if not data:
        raise MediaError("it is empty (0 bytes)", code="empty_file")
    try:
        with Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN]) as header:
            width, height = header.size
    except UnidentifiedImageError:
        raise MediaError(
            f"it is no picture in a known format ({', '.join(FORMATS)})", code="not_media"
        ) from None  # fmt: skip
    except Image.DecompressionBombError:
        width = height = 2**16
    except (OSError, ValueError, SyntaxError):
        width = height = 0  # read_image says what is wrong with it, and in its own words
    if width * height > question.image_pixels:
        raise MediaError(
            f"the image has more than {question.image_pixels} pixels, the most that are taken: scale it down",
            code="image_too_large",
        )
    image = read_image(data)
    if min(image.size) < SMALLEST_SIDE:
        raise MediaError(
            f"the image is {image.width}x{image.height} pixels; at least {SMALLEST_SIDE} on each side are needed",
            code="image_too_small",
        )
    return image


def _video_facts(question: Question, medium: BinaryIO, _payload: BinaryIO | None) -> dict[str, Any]:
    info = probe(medium)
    _check(question, info)
    return {"width": info.width, "height": info.height, "fps": info.fps, "frames": info.frames,
            "duration": info.duration}  # fmt: skip


def _check(question: Question, info: VideoInfo) -> None:
    if info.width * info.height > question.frame_pixels:
        raise MediaError(
            f"a frame is {info.width}x{info.height}, {info.width * info.height} pixels; at most "
            f"{question.frame_pixels} are taken: scale the video down",
            code="frame_too_large",
        )
    if min(info.width, info.height) < 2:
        raise MediaError(f"a frame is {info.width}x{info.height} pixels: nobody can be seen in it",
                         code="frame_too_small")  # fmt: skip
    if info.duration > question.video_seconds:
        raise MediaError(
            f"the video lasts {info.duration:.1f} s; at most {question.video_seconds:g} s are taken: cut it",
            code="video_too_long",
        )
    if not 0 < info.fps <= 1000:
        raise MediaError(
            f"the video states a frame rate of {info.fps:g}; encode it again at a constant one", code="bad_frame_rate"
        )


def _frames(question: Question, medium: BinaryIO, payload: BinaryIO | None) -> dict[str, Any]:
    """As `read_video`, but each frame goes out as it comes: this process holds one at a time."""
    info = probe(medium)
    _check(question, info)
    transfer = _transfer(medium) if info.hdr else 0
    times: list[float] = []
    shape: list[int] = []
    for time, picture in iter_frames(medium, fps=question.fps, max_pixels=question.max_pixels):
        shown = to_sdr(picture, transfer) if transfer in (PQ, HLG) else picture
        shape = _given(shown, payload)["shape"]
        times.append(time)
        if len(times) == question.num_frames:
            break
    fps = question.fps or measured_fps(np.array(times), medium)
    return {"shape": [len(times), *shape], "fps": fps, "timestamps": times}


def _transfer(medium: BinaryIO) -> int:
    with FrameStream(medium) as stream:
        return int(next(stream.frames(partial=True)).color_trc)


def _one_frame(question: Question, medium: BinaryIO, payload: BinaryIO | None) -> dict[str, Any]:
    """The first or the last frame of a video; of a still picture, itself."""
    try:
        info = probe(medium)
    except MediaError as problem:
        if problem.code != "still_image":
            raise
        return _image_pixels(question, medium, payload)
    _check(question, info)
    start = max(0.0, info.duration - 2.0) if question.last else 0.0
    try:
        frame = _first_or_last(medium, start, question.last)
    except MediaError as problem:
        if problem.code != "no_such_span":  # the header states more than there is
            raise
        frame = _first_or_last(medium, 0.0, question.last)
    return _given(frame, payload)


def _first_or_last(medium: BinaryIO, start: float, last: bool) -> NDArray[np.uint8]:
    frames = iter_frames(medium, start=start, partial=True)
    _, frame = next(frames)
    if last:
        for _, frame in frames:  # noqa: B007 - the last one is what is wanted
            pass
    return frame


def _sound(question: Question, medium: BinaryIO, payload: BinaryIO | None) -> dict[str, Any]:
    sound = read_sound(medium, seconds=question.seconds)
    if sound is None:
        return {"silent": True}
    return {**_given(sound.samples, payload), "rate": sound.rate}


def _given(array: NDArray[Any], payload: BinaryIO | None) -> dict[str, Any]:
    """Writes an array's bytes to the payload; what is left to say is its shape."""
    assert payload is not None, "pixels need a place to go"
    view = np.ascontiguousarray(array).data.cast("B")
    while view:
        view = view[payload.write(view) :]
    return {"shape": list(array.shape)}


QUESTIONS: dict[str, Callable[[Question, BinaryIO, BinaryIO | None], dict[str, Any]]] = {
    "image": _image_facts, "picture": _image_pixels, "video": _video_facts, "frames": _frames, "frame": _one_frame,
    "sound": _sound,
}  # fmt: skip
