"""Everything a hostile or broken client may send, generated: a few hundred requests, each with its refusal."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from tests.unit.serving.malformed import calls, pictures, references, videos
from tests.unit.serving.malformed.case import Case, medium

SHARED = Path(__file__).parents[5] / "shared" / "data" / "odd"
REAL = {
    "moviepy__result.webm": "empty_file",
    "screenpipe__selah.mp4": "not_media",
    "androidx__sample_audio_only.mp4": "no_video_stream",
    "mp4parse__invalid_userdata.mp4": "no_frames",
    "exif__Portrait_6.jpg": "still_image",
    "musepose__ref.png": "still_image",
    "-video-with-dash-.mp4": "frame_too_small",
}
"""What a crawl brought, where it lies beside the project (it may not be redistributed)."""


@cache
def cases() -> tuple[Case, ...]:
    return (*pictures.cases(), *videos.cases(), *calls.cases(), *references.cases(), *_real())


def _real() -> tuple[Case, ...]:
    if not SHARED.is_dir():
        return ()
    return tuple(
        medium("video: real finds", name, code, (SHARED / name).read_bytes(), filename=name)
        for name, code in REAL.items()
    )
