"""The sizes that clips are shown in, and which of them keeps most of a clip. Shared by `encode` and training.

A bucket is a number of frames and a size. A clip goes to one bucket: it is cut to its aspect and never stretched.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from dynamictrl import geometry
from dynamictrl.errors import ConfigError, InputError
from dynamictrl.samples.windows import frames_needed

PATTERN = re.compile(r"(\d+)x(\d+)x(\d+)")


@dataclass(frozen=True, order=True)
class Bucket:
    """Frames, height and width of what is shown; written `49x480x720`."""

    num_frames: int
    height: int
    """Pixels."""
    width: int
    """Pixels."""

    def __str__(self):
        return f"{self.num_frames}x{self.height}x{self.width}"


@dataclass(frozen=True)
class ClipShape:
    """What of a clip decides where it goes."""

    frames: int
    fps: float
    height: int
    """Pixels; 0 where it is not known."""
    width: int
    """Pixels; 0 where it is not known."""


def parse_bucket(text: str) -> Bucket:
    """A bucket as settings name it; ConfigError (code "bad_bucket") where it is none or not a legal size."""
    found = PATTERN.fullmatch(text.strip())
    if found is None:
        raise ConfigError(
            f"{text!r} is no bucket; write FRAMESxHEIGHTxWIDTH, such as 49x480x720", code="bad_bucket", param="buckets"
        )
    bucket = Bucket(*map(int, found.groups()))
    try:
        geometry.check_num_frames(bucket.num_frames)
        geometry.check_size(bucket.height, bucket.width)
    except InputError as problem:
        raise ConfigError(f"the bucket {text}: {problem}", code="bad_bucket", param="buckets") from problem
    return bucket


def ranked(buckets: Iterable[Bucket], clip: ClipShape, fps: float, largest_upscale: float) -> tuple[list[Bucket], str]:
    """The buckets that a clip can go to, the one that keeps most of it first; and why there are none.

    What is kept is frames times the share of the picture that the cut leaves; of equals the one with more pixels comes
    first. `fps` is the windows' rate (0: the clip's own); no picture is enlarged by more than `largest_upscale` (0: no
    limit).
    """
    long_enough = [b for b in buckets if frames_needed(b.num_frames, fps, clip.fps) <= clip.frames]
    if not long_enough:
        return [], "too short"
    if not (clip.height and clip.width):
        return long_enough[:1], ""
    large_enough = [b for b in long_enough if not largest_upscale or _upscale(b, clip) <= largest_upscale]
    return sorted(large_enough, key=lambda b: _worth(b, clip), reverse=True), "" if large_enough else "too small"


def _upscale(bucket: Bucket, clip: ClipShape) -> float:
    return max(bucket.height / clip.height, bucket.width / clip.width)


def _worth(bucket: Bucket, clip: ClipShape) -> tuple[float, int, Bucket]:
    aspect, shown = clip.width / clip.height, bucket.width / bucket.height
    kept = min(aspect / shown, shown / aspect)
    return round(bucket.num_frames * kept, 6), bucket.height * bucket.width, bucket
