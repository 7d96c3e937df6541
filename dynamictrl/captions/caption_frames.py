"""Which frames of a clip a Qwen2-VL model is shown, and how large: decoded by us, resized by qwen-vl-utils' rules.

qwen-vl-utils would open the file again, without its rotation and its time stamps, and leave no trace of which frames it
took. Imports no torch: readers of frames may be light processes.

Shape suffixes: F frames, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dynamictrl.errors import InputError, MediaError

LEAST_TOKENS, MOST_TOKENS = 128, 768
"""Of a frame: smaller ones are enlarged, larger ones shrunk, unless told otherwise."""
_ALL_TOKENS = 0.9 * 128_000
"""Of a whole video."""
_MOST_OBLONG = 200
_FRAMES_PER_STEP = 2
"""Frames that the model merges into one step in time."""


@dataclass(frozen=True)
class Footage:
    """A clip that is to be described."""

    key: str
    """By which its answer is found again."""
    source: Path | bytes
    frames: int
    height: int
    """Pixels, upright."""
    width: int


@dataclass(frozen=True)
class Look:
    """The frames of one clip that a model sees."""

    key: str
    indices: tuple[int, ...]
    """Of the frames in the clip."""
    times: tuple[float, ...]
    """Seconds since the clip's first frame."""
    pixels_FHW3: NDArray[np.uint8]
    """RGB, at the size that the model sees."""


@dataclass(frozen=True)
class FrameRules:
    """How many frames, spread evenly over the clip, and how many pixels of each."""

    max_frames: int = 16
    max_pixels: int = 360 * 640
    min_pixels: int = LEAST_TOKENS * 28 * 28
    factor: int = 28
    """Pixels along a side of one token."""

    def indices(self, frames: int) -> list[int]:
        """Of the frames shown of a clip that has so many: the first, the last, and evenly between."""
        return np.linspace(0, frames - 1, min(frames, self.max_frames)).round().astype(int).tolist()

    def size(self, height: int, width: int, shown: int) -> tuple[int, int]:
        """(height, width) at which `shown` frames are seen; the rule of `qwen_vl_utils.fetch_video`.

        Raises InputError for pictures that are a strip.
        """
        if max(height, width) > _MOST_OBLONG * min(height, width):
            raise InputError(
                f"frames of {width}x{height} are over {_MOST_OBLONG} times as long as wide; crop them", code="oblong"
            )
        token = self.factor**2
        share = _ALL_TOKENS * token / (shown + shown % _FRAMES_PER_STEP) * _FRAMES_PER_STEP
        most = min(self.max_pixels, max(min(MOST_TOKENS * token, share), int(self.min_pixels * 1.05)))
        return smart_resize(height, width, self.factor, self.min_pixels, int(most))

    def tokens(self, footage: Footage) -> int:
        """Of the model's input, that a clip's frames take."""
        shown = len(self.indices(footage.frames))
        height, width = self.size(footage.height, footage.width, shown)
        return math.ceil(shown / _FRAMES_PER_STEP) * (height // self.factor) * (width // self.factor)

    def look(self, key: str, frames_FHW3: NDArray[np.uint8], fps: float = 0.0) -> Look:
        """Of frames already in memory; times are 0 where `fps` is not given. Raises InputError where there are none."""
        if len(frames_FHW3) == 0:
            raise InputError("there are no frames to describe", code="no_frames")
        indices = self.indices(len(frames_FHW3))
        times = [index / fps if fps else 0.0 for index in indices]
        return self._shown(key, indices, times, [frames_FHW3[index] for index in indices])

    def read(self, footage: Footage) -> Look:
        """Decodes a clip and keeps the frames that are shown; raises MediaError (codes of `dynamictrl.media.video`)."""
        from dynamictrl.media.video_pixels import RgbConverter
        from dynamictrl.media.video_stream import FrameStream

        wanted = self.indices(footage.frames)
        last, times, pictures = wanted[-1], [], []
        with FrameStream(footage.source) as stream:
            convert = None
            for index, (time, frame) in enumerate(stream.timed_frames(0.0, None, partial=False)):
                if convert is None:
                    convert = RgbConverter(stream.look(frame, None))
                # Only what is shown is turned into RGB, which costs as much as decoding.
                if index == wanted[len(pictures)]:
                    pictures.append(convert(frame))
                    times.append(round(time, 6))
                if index >= last:
                    break
        if len(pictures) < len(wanted):
            raise MediaError(
                f"the clip has fewer frames than the {footage.frames} it was recorded with", code="truncated"
            )
        return self._shown(footage.key, wanted, times, pictures)

    def _shown(
        self, key: str, indices: Sequence[int], times: Sequence[float], pictures: Sequence[NDArray[np.uint8]]
    ) -> Look:
        height, width = self.size(pictures[0].shape[0], pictures[0].shape[1], len(pictures))
        pixels_FHW3 = np.empty((len(pictures), height, width, 3), np.uint8)
        for index, picture in enumerate(pictures):
            pixels_FHW3[index] = resized(picture, height, width)
        return Look(key, tuple(indices), tuple(times), pixels_FHW3)


def resized(picture_HW3: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """One RGB picture at another size, bicubic with the filter widened where it shrinks, as qwen-vl-utils does."""
    if picture_HW3.shape[:2] == (height, width):
        return picture_HW3
    return np.asarray(Image.fromarray(picture_HW3).resize((width, height), Image.Resampling.BICUBIC), np.uint8)


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The size nearest in shape whose sides are multiples of `factor` and whose area lies between two limits."""
    sides = [max(factor, round(side / factor) * factor) for side in (height, width)]
    area = sides[0] * sides[1]
    if area > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        # At least one token: qwen-vl-utils would give a side of 0 here.
        sides = [max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width)]
    elif area < min_pixels:
        enlarge = math.sqrt(min_pixels / (height * width))
        sides = [math.ceil(side * enlarge / factor) * factor for side in (height, width)]
    return sides[0], sides[1]
