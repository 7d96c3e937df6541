"""A hash of how a video looks and moves, by which copies of it are known again.

Every `1 / RATE` s a small grey picture, its black bars cut off, is projected on its lowest cosines. Slow cosines hardly
notice a new encoding or size; a mirrored video has the sign of the odd ones turned, and what a crop makes of them is a
product with a known matrix. `video_likeness` compares two hashes, `video_copies` finds the pairs worth comparing.

Sums are of whole numbers, so that a hash is the same on every machine that decodes the same pixels.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dynamictrl.errors import InputError
from dynamictrl.media.video_stream import VideoSource

RATE = 8.0
"""Samples per second: copies cut at other times are then at most 1/16 s out of step."""
PICTURE_PIXELS = 72 * 72
"""Of the small grey picture."""
WAVES = tuple((y, x) for y in range(6) for x in range(6) if x + y < 6)
"""Half waves down and across of each of the 21 cosines; the first is the mean brightness."""
BAR_DARK, BAR_RANGE = 48, 24
"""A bar is at most this bright and changes at most this much, over time and along itself (0 to 255)."""
LONGEST_BAR = 0.4
"""Share of the picture that a bar on either side may take."""

_HEADER = struct.Struct("<BBI")
_VERSION = 1
_UNIT = 127
"""What a cosine's 1 is as a whole number."""


@dataclass(frozen=True, eq=False)
class VideoHash:
    """The hash of one video: about 170 bytes a second. `levels` is what it says."""

    middle_K: NDArray[np.float32]
    """[len(WAVES)]: the mean strength of each cosine, in grey levels (0 to 255)."""
    step_K: NDArray[np.float32]
    """[len(WAVES)]: grey levels of one step."""
    steps_TK: NDArray[np.int8]
    """[T, len(WAVES)]: how far each cosine is off its mean at each sample."""

    @property
    def levels(self) -> NDArray[np.float32]:
        """[T, len(WAVES)]: at each sample, the strength of each cosine in grey levels."""
        return self.steps_TK * self.step_K + self.middle_K

    @property
    def seconds(self) -> float:
        return len(self.steps_TK) / RATE

    @classmethod
    def of_levels(cls, levels_TK: NDArray[np.floating]) -> VideoHash:
        """The hash that says `levels_TK`, to 1/127 of what each cosine changes."""
        middle_K = levels_TK.mean(axis=0, dtype=np.float64).astype(np.float32)
        off_TK = levels_TK - middle_K
        step_K = np.maximum(np.abs(off_TK).max(axis=0) / 127, 1e-3).astype(np.float32)
        return cls(middle_K, step_K, np.rint(off_TK / step_K).clip(-127, 127).astype(np.int8))

    def to_text(self) -> str:
        """As printable characters, about 210 a second; equal hashes give equal text."""
        header = _HEADER.pack(_VERSION, len(WAVES), len(self.steps_TK))
        numbers = self.middle_K.astype("<f4").tobytes() + self.step_K.astype("<f4").tobytes()
        return base64.b85encode(header + numbers + self.steps_TK.tobytes()).decode()

    @classmethod
    def from_text(cls, text: str) -> VideoHash:
        """The inverse of `to_text`; raises InputError where it is no hash of this version."""
        try:
            content = base64.b85decode(text)
            version, waves, count = _HEADER.unpack_from(content)
            if version != _VERSION or waves != len(WAVES) or count == 0:
                raise ValueError(f"version {version}, {waves} cosines, {count} samples")
            middle_K, step_K = np.frombuffer(content, "<f4", 2 * waves, _HEADER.size).reshape(2, waves)
            steps_TK = np.frombuffer(content, np.int8, count * waves, _HEADER.size + 8 * waves)
        except (ValueError, struct.error) as problem:
            raise InputError(
                f"{text[:20]!r} is no video hash of version {_VERSION} ({problem}); take the hash again",
                code="not_a_hash",
            ) from problem
        return cls(middle_K.astype(np.float32), step_K.astype(np.float32), steps_TK.reshape(count, waves))


def hash_video(source: VideoSource) -> VideoHash:
    """Decodes a video and hashes what of it can be decoded; raises MediaError (see `dynamictrl.media.video`)."""
    from dynamictrl.media.video import iter_frames

    return hash_frames(f for _, f in iter_frames(source, fps=RATE, max_pixels=PICTURE_PIXELS, partial=True))


def hash_frames(frames: Iterable[NDArray[np.uint8]]) -> VideoHash:
    """The hash of [H, W, 3] RGB pictures, RATE a second."""
    # BT.601's weights in 256ths.
    grey_THW = np.stack(
        [(frame_HWC @ np.array([77, 150, 29], np.uint32) >> 8).astype(np.uint8) for frame_HWC in frames]
    )
    return VideoHash.of_levels(_levels(_without_bars(grey_THW)))


def _without_bars(grey_THW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    for axis in (1, 2):
        others = (0, 3 - axis)
        low, high = grey_THW.min(axis=others).astype(int), grey_THW.max(axis=others).astype(int)
        bar = (high <= BAR_DARK) & (high - low <= BAR_RANGE)
        # Both bars are of one size; a dark wall on one side is none.
        size = min(_run(bar), _run(bar[::-1]))
        if 0 < size <= LONGEST_BAR * len(bar):
            grey_THW = grey_THW.take(range(size, len(bar) - size), axis=axis)
    return grey_THW


def _run(true: NDArray[np.bool_]) -> int:
    return len(true) if true.all() else int(np.argmin(true))


def _levels(grey_THW: NDArray[np.uint8]) -> NDArray[np.float32]:
    height, width = grey_THW.shape[1:]
    down_HY, across_WX = _cosines(height), _cosines(width)
    # The work of most numbers first: [T, H, W] @ [W, X].
    sums_TYX = np.einsum("thx,hy->tyx", grey_THW.astype(np.int64) @ across_WX, down_HY)
    # A cosine that runs fully from black to white is as strong as one of brightness.
    levels_TYX = sums_TYX / (_UNIT**2 * height * width)
    return np.stack([levels_TYX[:, y, x] for y, x in WAVES], axis=1).astype(np.float32)


def _cosines(size: int) -> NDArray[np.int64]:
    waves = 1 + max(max(wave) for wave in WAVES)
    places = (np.arange(size)[:, None] + 0.5) / size
    return np.rint(_UNIT * np.cos(np.pi * places * np.arange(waves))).astype(np.int64)
