"""Person images and masks that are damaged, lying, heavy, or something else altogether."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from dynamictrl.mini.marionettes import sample_clip
from tests.unit.serving.malformed.case import Case, Good, cut, medium

PARAM = "input_reference"
UNREADABLE = frozenset({"not_media", "decode_error", "image_too_large"})


def person() -> bytes:
    """A PNG of a marionette, which the mini pose model sees."""
    buffer = io.BytesIO()
    Image.fromarray(sample_clip(np.random.default_rng(3), 1, 192, 128, 12.0, persons=1).frames[0]).save(buffer, "PNG")
    return buffer.getvalue()


def saved(kind: str, size: tuple[int, int] = (64, 96), mode: str = "RGB", **options: Any) -> bytes:  # noqa: ANN401
    buffer = io.BytesIO()
    Image.effect_noise(size, 60).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    width: int, height: int, *, depth: int = 8, colour: int = 2, pixels: bytes | None = None, before: bytes = b""
) -> bytes:
    """A PNG made by hand, which may promise anything."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    packed = zlib.compress(b"\0" * 1000 if pixels is None else pixels, 9)
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def bomb(width: int, height: int) -> bytes:
    """A one-bit PNG that is as large as it says, in a few kilobytes."""
    row = b"\0" * (1 + -(-width // 8))
    packer, packed = zlib.compressobj(9), b""
    for _ in range(height):
        packed += packer.compress(row)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", packed + packer.flush()) + chunk(b"IEND", b"")


def tiff(*entries: tuple[int, int, int, int], following: int = 0) -> bytes:
    """A TIFF of one directory: (tag, type, count, value) each."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + struct.pack("<I", following)


def cases() -> Iterator[Case]:
    yield from _damaged()
    yield from _lying()
    yield from _other_formats()
    yield from _masks()


def _picture(
    name: str, code: str | frozenset[str], data: bytes, kind: str = "image: damaged", filename: str = "a.png"
) -> Case:
    return medium(kind, name, code, data, PARAM, filename)


def _damaged() -> Iterator[Case]:
    yield _picture("no bytes", "empty_file", b"")
    yield _picture("one byte", "not_media", b"\x89")
    yield _picture("PNG signature alone", "not_media", b"\x89PNG\r\n\x1a\n")
    for name, data in (
        ("PNG", saved("PNG")),
        ("JPEG", saved("JPEG")),
        ("GIF", saved("GIF", mode="P")),
        ("WebP", saved("WEBP")),
        ("BMP", saved("BMP")),
        ("TIFF", saved("TIFF")),
        ("progressive JPEG", saved("JPEG", progressive=True)),
    ):
        for share, part in zip((0.3, 0.6), cut(data, 0.3, 0.6), strict=True):
            yield _picture(f"{name} cut at {share:.0%}", UNREADABLE, part)
    whole = saved("PNG")
    yield _picture("PNG whose IHDR has a wrong checksum", UNREADABLE, whole[:29] + b"\0\0\0\0" + whole[33:])
    yield _picture("PNG whose pixels are no zlib stream", UNREADABLE, whole.replace(zlib_start(whole), b"\0" * 8, 1))
    yield _picture("PNG without pixels", UNREADABLE, b"\x89PNG\r\n\x1a\n" + whole[8:33] + chunk(b"IEND", b""))
    yield _picture("PNG with an unknown colour type", UNREADABLE, png(8, 8, colour=5))
    yield _picture("PNG of 3 bits a channel", UNREADABLE, png(8, 8, depth=3))
    yield _picture("JPEG of two markers", UNREADABLE, b"\xff\xd8\xff\xd9")
    yield _picture("JPEG with noise for its scan", UNREADABLE, saved("JPEG")[:400] + b"\xff\xda" + bytes(range(256)))
    yield _picture("GIF of a header alone", UNREADABLE, b"GIF89a" + b"\0" * 20)
    yield _picture(
        "WebP whose chunk is longer than the file",
        UNREADABLE,
        b"RIFF\xff\xff\xff\x7fWEBPVP8 \xff\xff\xff\x7f" + b"a" * 50,
    )
    yield _picture("AVIF of a header alone", UNREADABLE, b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + b"\0" * 60)


def zlib_start(whole: bytes) -> bytes:
    at = whole.index(b"IDAT") + 4
    return whole[at : at + 8]


def _lying() -> Iterator[Case]:
    kind = "image: bombs and false sizes"
    yield _picture("PNG of no width", UNREADABLE, png(0, 10), kind)
    yield _picture("PNG of 2^31-1 squared", UNREADABLE, png(2**31 - 1, 2**31 - 1), kind)
    yield _picture("PNG of 60000x60000 that is empty", "image_too_large", png(60_000, 60_000), kind)
    yield _picture("PNG bomb of 8000x8000", "image_too_large", bomb(8_000, 8_000), kind)
    yield _picture("PNG bomb of 30000x30000", "image_too_large", bomb(30_000, 30_000), kind)
    yield _picture("PNG of 1x1000000", "image_too_small", png(1, 1_000_000), kind)
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(b"0" * 80_000_000, 9))
    yield _picture("PNG with a text bomb of 80 MB", UNREADABLE, png(8, 8, before=text), kind)
    profile = chunk(b"iCCP", b"a\0\0" + zlib.compress(b"0" * 80_000_000, 9))
    yield _picture(
        "PNG with a profile bomb of 80 MB and no pixels", UNREADABLE, png(8, 8, before=profile, pixels=b""), kind
    )
    jpeg = saved("JPEG")
    at = jpeg.index(b"\xff\xc0") + 5
    yield _picture(
        "JPEG that says 65535x65535", "image_too_large", jpeg[:at] + b"\xff\xff\xff\xff" + jpeg[at + 4 :], kind
    )
    yield _picture("JPEG of no height", UNREADABLE, jpeg[:at] + b"\0\0\0\x40" + jpeg[at + 4 :], kind)
    gif = saved("GIF", mode="P")
    yield _picture("GIF whose screen is 65535x65535", "image_too_large", gif[:6] + b"\xff\xff\xff\xff" + gif[10:], kind)
    bmp = saved("BMP")
    yield _picture(
        "BMP of 100000x100000", "image_too_large", bmp[:18] + struct.pack("<ii", 100_000, 100_000) + bmp[26:], kind
    )
    yield _picture("BMP of negative width", UNREADABLE, bmp[:18] + struct.pack("<ii", -64, 96) + bmp[26:], kind)
    square = ((256, 4, 1, 100_000), (257, 4, 1, 100_000))
    yield _picture("TIFF of 100000x100000", UNREADABLE, tiff(*square), kind)
    yield _picture("TIFF whose directory points at itself", UNREADABLE, tiff(following=8), kind)
    yield _picture(
        "TIFF with four thousand million strips",
        UNREADABLE,
        tiff((256, 4, 1, 64), (257, 4, 1, 64), (273, 4, 2**32 - 1, 8), (279, 4, 2**32 - 1, 8)),
        kind,
    )
    yield _picture(
        "WebP that says 16383x16383",
        "image_too_large",
        b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xfe\x3f\0\xfe\x3f\0" + b"VP8 \0\0\0\0",
        kind,
    )


def _other_formats() -> Iterator[Case]:
    kind = "image: another format"
    texts = {
        "text": b"a person, please",
        "HTML": b"<!doctype html><script>alert(1)</script>",
        "SVG that names a file": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "XML bomb": b'<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]><svg>&b;</svg>',
        "PostScript that runs a program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n(%pipe%id) (r) file\n",
        "PDF": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
        "ZIP": b"PK\x03\x04" + b"\0" * 60,
        "ELF": b"\x7fELF\x02\x01\x01" + b"\0" * 60,
        "gzip": b"\x1f\x8b\x08" + b"\0" * 30,
        "playlist": b"#EXTM3U\nfile:///etc/passwd\n",
        "ffconcat": b"ffconcat version 1.0\nfile /etc/passwd\n",
        "XPM": b'/* XPM */\nstatic char *a[] = {"1 1 1 1"};',
        "PPM of 100000x100000": b"P6 100000 100000 255\n" + b"\0" * 100,
        "FITS": b"SIMPLE  =                    T" + b" " * 2850,
        "a LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        "zeros": b"\0" * 5000,
        "a polyglot of GIF and script": b"GIF89a/*" + b"\xff" * 4 + b"*/=1;alert(1)//",
        "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0heicmif1",
    }
    for name, data in texts.items():
        yield _picture(name, UNREADABLE, data, kind, "person.png")
    for name in ("JPEG2000", "ICO", "PCX", "TGA", "DDS", "ICNS", "SGI"):
        yield _picture(f"a sound {name}", "not_media", saved(name, (64, 64)), kind)
    yield Case(
        kind,
        "a video",
        "not_media",
        PARAM,
        lambda good: {"data": good.fields(), "files": good.files(input_reference=("p.png", good.pose))},
    )


def _masks() -> Iterator[Case]:
    kind = "mask"
    yield medium(kind, "mask of another size", "mask_size", saved("PNG", (96, 64), "L"), "mask")
    yield medium(kind, "mask that is a text", "not_media", b"white", "mask")
    yield medium(kind, "mask of no bytes", "empty_file", b"", "mask")
    yield medium(kind, "mask bomb", "image_too_large", bomb(9_000, 9_000), "mask")
    yield Case(kind, "a video for a mask", "not_media", "mask", _video_as_mask)


def _video_as_mask(good: Good) -> dict[str, Any]:
    return {"data": good.fields(), "files": good.files(mask=("m.png", good.pose))}
