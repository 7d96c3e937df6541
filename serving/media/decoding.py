"""Who opens a job's media for rendering: `MediaGuard`, in a process that may die, or, for one's own files, `OwnFiles`.

An engine never runs a decoder on strangers' bytes: it asks a Decoder and gets pixels and samples.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from PIL import Image

    from dynamictrl.media.audio import Sound
    from dynamictrl.media.video import Video


class Decoder(Protocol):
    """Media to pixels and samples. Every method raises InputError, with `param`, where they cannot be had."""

    def picture(self, path: Path, param: str) -> Image.Image:
        """A still picture: RGB, upright, opaque, sRGB."""
        ...

    def frames(
        self,
        path: Path,
        param: str,
        *,
        fps: float | None = None,
        num_frames: int | None = None,
        max_pixels: int | None = None,
    ) -> Video:
        """The beginning of a video, as `dynamictrl.media.video.read_video` reads it."""
        ...

    def sound(self, path: Path, *, seconds: float) -> Sound | None:
        """The first `seconds` of a video's sound; None where it has none."""
        ...


class OwnFiles:
    """Decodes in this very process: for whoever owns both the files and the machine."""

    def picture(self, path: Path, param: str) -> Image.Image:
        from dynamictrl.media.images import read_image

        return read_image(path)

    def frames(
        self,
        path: Path,
        param: str,
        *,
        fps: float | None = None,
        num_frames: int | None = None,
        max_pixels: int | None = None,
    ) -> Video:
        from dynamictrl.media.video import read_video

        return read_video(path, fps=fps, num_frames=num_frames, max_pixels=max_pixels)

    def sound(self, path: Path, *, seconds: float) -> Sound | None:
        from dynamictrl.media.audio import read_sound

        return read_sound(path, seconds=seconds)
