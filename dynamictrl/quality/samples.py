"""What the measures of a clip's picture look at: small grey pictures in quick succession, and a few whole ones.

Shape suffixes: F sampled frames, D detail frames, H W picture size.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from dynamictrl.media.video import iter_frames
from dynamictrl.media.video_stream import VideoSource

SMALL_SIDE = 160
"""Pixels of the shorter side of the small pictures: motion and light need no more."""
RATE = 12.0
"""Small pictures per second at most; a slower video gives each of its frames once."""
DETAIL_SIDE = 768
"""Pixels of the shorter side of the whole pictures at most: what training sees."""
MOST_DETAILS = 8

Grey = NDArray[np.uint8]


@dataclass(frozen=True)
class Samples:
    """One decoding of a clip, as the measures need it."""

    small_FHW: Grey
    """Brightness, 0 to 255; shorter side at most SMALL_SIDE."""
    times_F: NDArray[np.float64]
    """Seconds of each since the clip's first frame."""
    indices_F: NDArray[np.int64]
    """Which frame of the clip each is."""
    details: list[Grey] = field(default_factory=list)
    """4 to 8 whole pictures [H, W], evenly spread over the clip (all, where it is shorter than that)."""

    @property
    def seconds(self) -> float:
        """From the first to the last sample."""
        return float(self.times_F[-1] - self.times_F[0])


def read_samples(source: VideoSource) -> Samples:
    """Decodes a clip once, upright; memory does not grow with its size. Raises MediaError (see `video`)."""
    small: list[Grey] = []
    times: list[float] = []
    indices: list[int] = []
    details: list[Grey] = []
    stride, due = 1, 0.0
    for index, (time, frame_HWC) in enumerate(iter_frames(source)):
        # A hundredth of a step: time stamps are rounded to the container's clock.
        if time < due - 0.01 / RATE:
            continue
        due = time + 1 / RATE
        grey_HW = np.asarray(cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2GRAY), np.uint8)
        if len(small) % stride == 0:
            details.append(shrink(grey_HW, DETAIL_SIDE))
        if len(details) > MOST_DETAILS:
            # The length is known at the end only, so every second one goes when there are too many.
            details, stride = details[::2], 2 * stride
        small.append(shrink(grey_HW, SMALL_SIDE))
        times.append(time)
        indices.append(index)
    return Samples(np.stack(small), np.array(times), np.array(indices, np.int64), details)


def shrink(grey_HW: Grey, side: int) -> Grey:
    """The picture with a shorter side of at most `side` pixels, its shape kept."""
    height, width = grey_HW.shape
    scale = side / min(height, width)
    if scale >= 1:
        return grey_HW
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(grey_HW, size, interpolation=cv2.INTER_AREA), np.uint8)
