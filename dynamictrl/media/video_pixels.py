"""One decoded frame, as stored, to the picture a viewer sees: upright, square pixels, RGB of full range.

What a stored frame may hide: a display matrix (phones store landscape and say "turn me"), a sample aspect ratio other
than 1, a colour matrix and range that the header may not name, more than 8 bits, half-size chroma, or transparency.
High dynamic range (PQ, HLG) is decoded with its matrix but not tone-mapped.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import av
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray

MAX_FRAME_PIXELS = 8192 * 8192
"""Beyond this a header is lying or hostile: one RGB frame would take more than 200 MB."""

SQUARE_ENOUGH = 0.01
"""A sample aspect ratio nearer to 1 than this is taken as 1: resampling would blur more than it would straighten."""

_YUV_UNSPECIFIED = 2
_FULL_RANGE = 2


@dataclass(frozen=True)
class Orientation:
    """A turn counter-clockwise by `quarters` * 90 degrees, after a left-right flip where `mirrored`."""

    quarters: int = 0
    mirrored: bool = False

    @property
    def swaps_sides(self) -> bool:
        return self.quarters % 2 == 1

    def apply(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """[H, W, 3] as stored -> [H, W, 3] (or [W, H, 3]) as shown, contiguous."""
        if self.mirrored:
            pixels = pixels[:, ::-1]
        return np.ascontiguousarray(np.rot90(pixels, self.quarters))


def orientation(frame: VideoFrame) -> Orientation:
    """How a frame asks to be shown, rounded to quarter turns (its display matrix; none means as stored)."""
    try:
        side_data = frame.side_data.get(SideData.DISPLAYMATRIX)  # pyright: ignore[reportCallIssue, reportArgumentType]
    except ValueError:
        # PyAV 18 fails over a whole frame if one side datum is of a kind it does not know (EXIF is one).
        return Orientation(round(frame.rotation / 90) % 4)
    if side_data is None:
        return Orientation()
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(side_data)[:36])
    if a * d - b * c < 0:
        # Flip first: what is left of the matrix is then a pure rotation.
        return Orientation(_quarters(-a, -b), mirrored=True)
    return Orientation(_quarters(a, b))


def _quarters(a: int, b: int) -> int:
    # The matrix sends the stored x axis to (a, b) with y pointing down.
    return round(-np.degrees(np.arctan2(b, a)) / 90) % 4


@dataclass(frozen=True)
class Look:
    """What every frame of one stream is brought to; decided by the first frame, kept if a later one differs."""

    width: int
    """Of the stored frame once its pixels are square and it is shrunk to `max_pixels`, before turning."""
    height: int
    orientation: Orientation

    @property
    def upright_size(self) -> tuple[int, int]:
        """(height, width) as shown."""
        return (self.width, self.height) if self.orientation.swaps_sides else (self.height, self.width)

    @classmethod
    def of(cls, frame: VideoFrame, sample_aspect_ratio: float, max_pixels: int | None = None) -> Look:
        width, height = square_size(frame.width, frame.height, sample_aspect_ratio)
        if max_pixels is not None and width * height > max_pixels:
            width, height = shrunk_size(width, height, max_pixels)
        return cls(width, height, orientation(frame))


def square_size(width: int, height: int, sample_aspect_ratio: float) -> tuple[int, int]:
    """Size in square pixels; the longer way, so that no line of the source is thrown away."""
    ratio = sample_aspect_ratio
    if not 1 / 64 < ratio < 64 or abs(ratio - 1) < SQUARE_ENOUGH:
        return width, height
    return (round(width * ratio), height) if ratio > 1 else (width, round(height / ratio))


def shrunk_size(width: int, height: int, max_pixels: int) -> tuple[int, int]:
    """The largest even size of the same shape with at most `max_pixels` (H.264 wants even sides)."""
    scale = (max_pixels / (width * height)) ** 0.5
    return max(2, int(width * scale) // 2 * 2), max(2, int(height * scale) // 2 * 2)


class RgbConverter:
    """Frames of one stream to [H, W, 3] uint8 RGB; holds the scaler, so make one per stream."""

    def __init__(self, look: Look):
        self.look = look
        self._reformatter = VideoReformatter()

    def __call__(self, frame: VideoFrame) -> NDArray[np.uint8]:
        transparent = any(component.is_alpha for component in frame.format.components) or frame.format.has_palette
        picture = self._reformatter.reformat(
            frame,
            width=self.look.width,
            height=self.look.height,
            format="rgba" if transparent else "rgb24",
            src_colorspace=_matrix(frame),
            src_color_range=ColorRange.JPEG if frame.color_range == _FULL_RANGE else None,
            dst_color_range=ColorRange.JPEG,
            interpolation=self._interpolation(frame),
            threads=1,
        )
        pixels = np.asarray(picture.to_ndarray(), np.uint8)
        return self.look.orientation.apply(on_white(pixels) if transparent else pixels)

    def _interpolation(self, frame: VideoFrame) -> Interpolation:
        shrinks = self.look.width * self.look.height < frame.width * frame.height
        # ACCURATE_RND alone darkens white to 253 in FFmpeg 8 (measured); with FULL_CHR_H_INT only, white is 255.
        return (Interpolation.AREA if shrinks else Interpolation.BICUBIC) | Interpolation.FULL_CHR_H_INT


def _matrix(frame: VideoFrame) -> Colorspace | None:
    """The frame's own colour matrix; where it names none, what players assume: HD is BT.709, smaller is BT.601."""
    if frame.format.is_rgb or frame.colorspace != _YUV_UNSPECIFIED:
        return None
    return Colorspace.ITU709 if frame.width >= 1280 or frame.height > 576 else Colorspace.ITU601


def on_white(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[H, W, 4] RGBA -> [H, W, 3] over white, as a page shows a transparent picture."""
    alpha = pixels[..., 3:].astype(np.uint16)
    return ((pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def rgb_to_yuv420p(pixels: NDArray[np.uint8], reformatter: VideoReformatter) -> VideoFrame:
    """[H, W, 3] RGB of full range, even sides -> a BT.709 frame of limited range, tagged so."""
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    frame = reformatter.reformat(
        frame,
        format="yuv420p",
        src_color_range=ColorRange.JPEG,
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
        interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND,
        threads=1,
    )
    frame.colorspace = Colorspace.ITU709
    frame.color_range = ColorRange.MPEG
    return frame
