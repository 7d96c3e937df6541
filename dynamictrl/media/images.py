"""Reference images as people see them: upright, opaque, sRGB, whatever the file's name or colour profile says.

What cannot be read raises MediaError; its `code` is one of not_found, unreadable, empty_file, not_media (no known
picture format, a video among them), decode_error (damaged or cut off) and too_large. Where memory is too short it is
MemoryError, which says nothing about the file. Of an animation the first picture is read.
"""

from __future__ import annotations

import io
import logging
import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from dynamictrl.errors import MediaError

logger = logging.getLogger(__name__)

MAX_IMAGE_PIXELS = 8192 * 8192
"""A larger picture would take more than 200 MB only to be shrunk; a few kilobytes can claim to hold one."""


def read_image(source: Path | bytes) -> Image.Image:
    """Reads a picture as RGB: turned upright by its EXIF orientation, transparency on white, its profile made sRGB."""
    label = f"{len(source)} bytes" if isinstance(source, bytes) else Path(source).name
    data = source if isinstance(source, bytes) else _read_bytes(Path(source))
    if not data:
        raise MediaError(f"{label}: is empty (0 bytes)", code="empty_file")
    image = _open(data, label)
    if image.width * image.height > MAX_IMAGE_PIXELS:
        raise MediaError(
            f"{label}: is {image.width}x{image.height}; at most {MAX_IMAGE_PIXELS} pixels are read", code="too_large"
        )
    try:
        image.load()
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        if "out of memory" in str(error):  # Pillow's own words; the file may be whole
            raise MemoryError(f"{label}: {error}") from error
        raise MediaError(f"{label}: is damaged or cut off ({error})", code="decode_error") from error
    return _as_rgb(_upright(image, label), label)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise MediaError(f"{path.name}: no such file ({path})", code="not_found") from error
    except OSError as error:
        raise MediaError(f"{path.name}: cannot be opened: {error.strerror}", code="unreadable") from error


def _open(data: bytes, label: str) -> Image.Image:
    with warnings.catch_warnings():
        # Our own limit follows; Pillow would warn at a fraction of it.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            return Image.open(io.BytesIO(data))
        except UnidentifiedImageError as error:
            raise MediaError(f"{label}: is no picture in a known format", code="not_media") from error
        except Image.DecompressionBombError as error:
            raise MediaError(f"{label}: is larger than any picture we read", code="too_large") from error
        except (OSError, ValueError, SyntaxError, EOFError) as error:
            raise MediaError(f"{label}: is damaged or cut off ({error})", code="decode_error") from error


def _upright(image: Image.Image, label: str) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except (OSError, ValueError, SyntaxError, KeyError, TypeError, struct.error):
        logger.warning("%s has an EXIF block that cannot be read; it is taken as upright", label)
        return image


def _as_rgb(image: Image.Image, label: str) -> Image.Image:
    profile = image.info.get("icc_profile")
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    colours = _to_srgb(_without_alpha(image), profile, label)
    if alpha is None:
        return colours
    return Image.composite(colours, Image.new("RGB", colours.size, "white"), alpha)


def _without_alpha(image: Image.Image) -> Image.Image:
    """The same colours in a mode that a colour profile can speak of, 8 bits a channel."""
    if image.mode.startswith(("I", "F")):
        return _to_8_bit(image)
    if image.mode in ("L", "RGB", "CMYK", "LAB"):
        return image
    return image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")


def _to_8_bit(image: Image.Image) -> Image.Image:
    levels = np.asarray(image, np.float64)
    # Integers wider than 8 bits are 16-bit scans in practice; Pillow's own convert("RGB") would clip them to white.
    scale = 257.0 if image.mode.startswith("I") and levels.max(initial=0) > 255 else 1.0
    return Image.fromarray(np.clip(levels / scale, 0, 255).round().astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes | None, label: str) -> Image.Image:
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            if converted is not None:
                return converted
        except (ImageCms.PyCMSError, OSError, ValueError):
            logger.warning("%s has a colour profile that cannot be used; its colours are taken as sRGB", label)
    return image.convert("RGB")
