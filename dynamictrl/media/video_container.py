"""Opens strangers' containers by content, never by name.

A file handle without a name is all FFmpeg sees, so names beginning with a dash, false extensions and playlists that
point elsewhere have no power.
"""

from __future__ import annotations

from typing import Any, BinaryIO

import av
from av.container import InputContainer
from PIL import Image

_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,apng,flv,mpegts,mpeg,mpegvideo,m4v,h264,hevc,av1,obu,ivf,asf,ogg,"
    "mxf,rm,nut,yuv4mpegpipe,dv,mp3,wav,flac,aac,amr,caf,w64,aiff"
)
"""Demuxers that read what they are given and open nothing else (no playlists, concatenations or devices)."""

_LENIENT: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
"""Metadata may be in any encoding, or none; PyAV 19, which needs Python 3.12, takes it as it comes."""


class _Nameless:
    """A file as FFmpeg needs it, without the name by which it would guess a format or open files itself."""

    def __init__(self, file: BinaryIO):
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


def open_container(file: BinaryIO) -> InputContainer:
    """A container ready to be read; raises what PyAV raises (FFmpegError, ValueError, EOFError)."""
    container = av.open(
        _Nameless(file),
        **_LENIENT,
        buffer_size=1 << 18,
        container_options={"format_whitelist": _CONTAINERS},
    )
    assert isinstance(container, InputContainer)
    return container


def still_image(file: BinaryIO) -> str | None:
    """The picture format a file holds, None where it is none."""
    file.seek(0)
    try:
        with Image.open(file) as image:
            return image.format
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
