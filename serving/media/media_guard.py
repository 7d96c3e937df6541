"""The door for strangers' media: every file is opened in a process that may die, and never in ours.

Decoders are the likeliest thing to hang, crash, eat memory, or be turned against their user over a hostile file. Each
file gets a process of its own (`media_prober.py`), limited in time, memory and output, without files and network
(`confinement.py`), and killed when it breaks a limit. Whatever happens in it, the caller gets facts, or plain pixels
and samples, or an InputError with a code. The ingress asks for facts, the GPU worker for pixels.

What such a process says is not believed either: sizes are checked against what was asked for.
"""

from __future__ import annotations

import io
import logging
import math
import os
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from dynamictrl.errors import InputError, StoreError
from serving.config import Limits
from serving.jobs.job import VideoFacts
from serving.media.person_counter import PersonCounter
from serving.media.prober_process import Answer, Bounds, ProberProcess
from serving.media.remembering import Remembered
from serving.watching import metrics

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from dynamictrl.media.audio import Sound
    from dynamictrl.media.video import Video

logger = logging.getLogger(__name__)

REMEMBERED = 4096
"""Files whose facts are kept: some hundred bytes each."""
PROBERS = min(8, max(2, os.cpu_count() or 2))
"""Files opened at a time."""
MOST_FRAMES = 1024
"""Of one video, where nobody says how many are wanted."""
_NAMELESS = re.compile(r"^(the file|\d+ bytes):(?= )\s?")
_OF_THE_MOMENT = ("media_timeout", "media_too_heavy")
"""Refusals that a less busy machine might not give: they are not remembered."""


@dataclass(frozen=True)
class ImageFacts:
    """An image that decodes: pixels, upright."""

    width: int
    height: int


class MediaGuard:
    """Questions about files, `probers` of them at a time. Threads may share it; a `serving.media.decoding.Decoder`."""

    def __init__(self, limits: Limits, pose_model: str, *, probers: int = PROBERS):
        self.limits = limits
        self.prober = ProberProcess()
        self._places = threading.BoundedSemaphore(probers)
        self._persons = PersonCounter(pose_model)
        self._facts: Remembered[Answer] = Remembered(
            REMEMBERED, lambda answer: answer.get("code") not in _OF_THE_MOMENT
        )

    # For the ingress: facts. With the sha256 of a file's bytes they are asked for once.

    def image(self, path: Path, param: str, *, sha256: str | None = None) -> ImageFacts:
        """Decodes a person image or mask; raises InputError with `param`."""
        answer = self._asked_once("image", path, param, sha256)
        return ImageFacts(_whole(answer, "width"), _whole(answer, "height"))

    def video(self, path: Path, param: str, *, sha256: str | None = None) -> VideoFacts:
        """Opens a video and decodes its first frame; raises InputError with `param`."""
        answer = self._asked_once("video", path, param, sha256)
        fps, duration = float(answer["fps"]), float(answer["duration"])
        return VideoFacts(_whole(answer, "width"), _whole(answer, "height"), fps, _whole(answer, "frames"), duration)

    def persons(self, path: Path, param: str, *, sha256: str | None = None) -> int:
        """How many persons the pose model sees in an image; it is shown pixels, never the file."""

        def count() -> Answer:
            return self._persons.count(self.picture(path, param))

        answer = self._facts.get(f"persons {sha256}", count) if sha256 else count()
        return _whole(_accepted(answer, param), "persons")

    # For the GPU worker: pixels and samples.

    def picture(self, path: Path, param: str) -> Image.Image:
        """A still picture: RGB, upright, opaque, sRGB."""
        from PIL import Image

        _, pixels = self._pixels("picture", path, param, most=3 * self.limits.image_pixels, form=(None, None, 3))
        return Image.fromarray(pixels)

    def frame(self, path: Path, param: str, *, last: bool) -> bytes:
        """The first or last frame of a video as a PNG; a still picture gives itself."""
        from PIL import Image

        most = 3 * max(self.limits.frame_pixels, self.limits.image_pixels)
        _, pixels = self._pixels("frame", path, param, most=most, form=(None, None, 3), last=last)
        png = io.BytesIO()
        Image.fromarray(pixels).save(png, "PNG", compress_level=1)
        return png.getvalue()

    def frames(
        self,
        path: Path,
        param: str,
        *,
        fps: float | None = None,
        num_frames: int | None = None,
        max_pixels: int | None = None,
    ) -> Video:
        """The beginning of a video, as `read_video` of dynamictrl reads it; high dynamic range as a screen shows it."""
        import numpy as np

        from dynamictrl.media.video import Video

        most = 3 * (num_frames or MOST_FRAMES) * (max_pixels or self.limits.frame_pixels)
        answer, pixels = self._pixels(
            "frames", path, param, most=most, form=(None, None, None, 3), fps=fps,
            num_frames=num_frames or MOST_FRAMES, max_pixels=max_pixels
        )  # fmt: skip
        times = np.asarray(answer["timestamps"], np.float64)
        if times.shape != pixels.shape[:1] or not np.isfinite(times).all() or not (np.diff(times) > 0).all():
            raise _untrue(param)
        return Video(pixels, _finite(answer, "fps", param), times)

    def sound(self, path: Path, *, seconds: float) -> Sound | None:
        """The first `seconds` of a video's sound; None where it has none."""
        import numpy as np

        from dynamictrl.media.audio import Sound

        most = math.ceil(seconds * 192_000) * 2 * 4
        with _memory() as payload:
            answer = self._asked("sound", path, "driving_video", payload=payload, output_bytes=most, seconds=seconds)
            if answer.get("silent"):
                return None
            samples = _array(answer, payload, (None, None), np.dtype(np.float32), "driving_video")
        if len(samples) not in (1, 2) or not 1000 <= _whole(answer, "rate") <= 192_000:
            raise _untrue("driving_video")
        return Sound(np.nan_to_num(samples).clip(-4, 4), answer["rate"])

    # The process behind it.

    def warm(self) -> None:
        """Starts the prober now, so that the first request does not wait for its imports."""
        self.prober.start()

    def close(self) -> None:
        self.prober.stop()
        self._persons.stop()

    def _pixels(
        self, kind: str, path: Path, param: str, *, most: int, form: tuple[int | None, ...], **wish: object
    ) -> tuple[Answer, NDArray[np.uint8]]:
        import numpy as np

        with _memory() as payload:
            answer = self._asked(kind, path, param, payload=payload, output_bytes=most, **wish)
            return answer, _array(answer, payload, form, np.dtype(np.uint8), param)

    def _asked_once(self, kind: str, path: Path, param: str, sha256: str | None) -> Answer:
        if sha256 is None:
            return self._asked(kind, path, param)
        return _accepted(self._facts.get(f"{kind} {sha256}", lambda: self._answer(kind, path, param)), param)

    def _asked(self, kind: str, path: Path, param: str, **wish: Any) -> Answer:  # noqa: ANN401 - passed on
        return _accepted(self._answer(kind, path, param, **wish), param)

    def _answer(
        self, kind: str, path: Path, param: str, payload: BinaryIO | None = None, output_bytes: int = 0, **wish: object
    ) -> Answer:
        try:
            medium = path.open("rb")
        except FileNotFoundError:
            return {"code": "media_gone", "message": "its bytes are no longer here; send it again"}
        limits = self.limits
        question = {"kind": kind, "image_pixels": limits.image_pixels, "frame_pixels": limits.frame_pixels,
                    "video_seconds": limits.video_seconds, **wish}  # fmt: skip
        seconds = limits.probe_seconds if payload is None else limits.decode_seconds
        with medium:
            size = os.fstat(medium.fileno()).st_size
            if size > limits.media_bytes:
                message = f"it has {size} bytes; at most {limits.media_bytes} are taken"
                return {"code": "too_large", "message": message}
            if not self._places.acquire(timeout=limits.probe_seconds):
                raise StoreError("too many media are being opened; ask again in a moment", code="media_busy")
            try:
                bounds = Bounds(seconds, limits, min(output_bytes, limits.probe_memory))
                return self._watched(kind, lambda: self.prober.ask(question, medium, payload, bounds))
            finally:
                self._places.release()

    @staticmethod
    def _watched(kind: str, ask: Callable[[], Answer]) -> Answer:
        with metrics.MEDIA_SECONDS.labels(kind).time():
            answer = ask()
        metrics.MEDIA_OPENED.labels(kind, answer.get("code", "ok")).inc()
        return answer


def _accepted(answer: Answer, param: str) -> Answer:
    if "code" in answer:
        # Some messages begin with what the decoder was given to call the file.
        said, nameless = _NAMELESS.subn("", str(answer["message"]), count=1)
        raise InputError(f"{param}{'' if nameless else ':'} {said}", code=str(answer["code"]), param=param)
    return answer


def _memory() -> BinaryIO:
    """A file that lies in memory and has no name."""
    return os.fdopen(os.memfd_create("pixels", os.MFD_CLOEXEC), "r+b", buffering=0)


def _array(
    answer: Mapping[str, Any], payload: BinaryIO, form: tuple[int | None, ...], kind: np.dtype[Any], param: str
) -> NDArray[Any]:
    """What was written, as an array of the stated shape; it shares the payload's memory and copies nothing."""
    import mmap

    import numpy as np

    shape = answer.get("shape")
    if not isinstance(shape, list) or len(shape) != len(form):
        raise _untrue(param)
    for side, wanted in zip(shape, form, strict=True):
        if not isinstance(side, int) or not 0 < side < 2**31 or (wanted is not None and side != wanted):
            raise _untrue(param)
    size = math.prod(shape) * kind.itemsize
    if os.fstat(payload.fileno()).st_size != size:
        raise _untrue(param)
    # Private, so that whoever gets the array may write to it.
    return np.frombuffer(mmap.mmap(payload.fileno(), size, flags=mmap.MAP_PRIVATE), kind).reshape(shape)


def _whole(answer: Mapping[str, Any], name: str) -> int:
    value = answer.get(name)
    if not isinstance(value, int) or not 0 <= value < 2**31:
        raise _untrue(name)
    return value


def _finite(answer: Mapping[str, Any], name: str, param: str) -> float:
    value = answer.get(name)
    if not isinstance(value, int | float) or not 0 < value < 1e6:
        raise _untrue(param)
    return float(value)


def _untrue(param: str) -> InputError:
    return InputError(f"{param}: what was decoded contradicts itself", code="not_media", param=param)
