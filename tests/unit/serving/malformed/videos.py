"""Driving and pose videos that are damaged, lying, heavy, empty, or would have FFmpeg open something else."""

from __future__ import annotations

import io
import struct
import tempfile
import wave
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np

from tests.unit.serving.malformed.case import Case, Good, cut, medium
from tests.unit.serving.malformed.pictures import saved


@cache
def video(
    container: str = "mp4",
    codec: str = "libx264",
    *,
    frames: int = 12,
    width: int = 64,
    height: int = 96,
    fps: int = 12,
    pixels: str = "yuv420p",
    step: int = 1,
    fast_start: bool = False,
) -> bytes:
    """A small video; `step` frames of its clock lie between two of its frames."""
    # A file with a name, as the index can be brought to the front in one of those only.
    with (
        tempfile.NamedTemporaryFile() as file,
        av.open(file.name, "w", format=container, options={"movflags": "+faststart"} if fast_start else {}) as out,
    ):
        stream: Any = out.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt, stream.time_base = width, height, pixels, Fraction(1, fps)
        noise = np.random.default_rng(3).integers(0, 255, (frames, height, width, 3), np.uint8)
        for index, picture in enumerate(noise):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = index * step, Fraction(1, fps)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        out.close()
        return Path(file.name).read_bytes()


@cache
def sound(container: str = "mp4", codec: str = "aac") -> bytes:
    """Sound without pictures."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as out:
        stream: Any = out.add_stream(codec, rate=48_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, 0, Fraction(1, 48_000)
        resampler = av.AudioResampler(format=stream.format, layout=stream.layout, rate=48_000)
        for piece in (*resampler.resample(frame), *resampler.resample(None)):
            out.mux(stream.encode(piece))
        out.mux(stream.encode(None))
    return buffer.getvalue()


def box(name: bytes, *content: bytes, size: int | None = None) -> bytes:
    """An MP4 box, which may lie about its size."""
    body = b"".join(content)
    return struct.pack(">I", len(body) + 8 if size is None else size) + name + body


UNREADABLE = frozenset({"not_media", "no_frames", "unsupported_codec", "no_video_stream"})
FTYP = box(b"ftyp", b"isom\0\0\2\0isomiso2avc1mp41")


def patched(data: bytes, name: bytes, offset: int, value: bytes) -> bytes:
    """A file with other bytes at a distance behind the first box of a name."""
    at = data.index(name) + len(name) + offset
    return data[:at] + value + data[at + len(value) :]


def cases() -> Iterator[Case]:
    yield from _damaged()
    yield from _lying()
    yield from _without_pictures()
    yield from _openers()
    yield from _unusable()


def _case(name: str, code: str | frozenset[str], data: bytes, kind: str, param: str = "driving_video") -> Case:
    made = medium(kind, name, code, data, param, "a.mp4")
    # How many frames there are is measured against how many were asked for.
    return replace(made, param="num_frames") if code == "too_few_frames" else made


def _damaged() -> Iterator[Case]:
    kind = "video: damaged"
    yield _case("no bytes", "empty_file", b"", kind)
    yield _case("no bytes for a pose", "empty_file", b"", kind, "pose_video")
    yield _case("zeros", UNREADABLE, b"\0" * 10_000, kind)
    yield _case("noise", UNREADABLE, np.random.default_rng(1).bytes(20_000), kind)
    for share, part in zip((0.1, 0.5, 0.95), cut(video(), 0.1, 0.5, 0.95), strict=True):
        yield _case(f"MP4 cut at {share:.0%}, its index lost", UNREADABLE, part, kind)
    for container, codec in (
        ("matroska", "libx264"),
        ("webm", "libvpx-vp9"),
        ("avi", "mpeg4"),
        ("mpegts", "libx264"),
        ("flv", "libx264"),
        ("nut", "mpeg4"),
    ):
        yield _case(f"{container} cut after its header", UNREADABLE, video(container, codec)[:300], kind)
    whole = video(fast_start=True)
    yield _case("MP4 whose pictures are zeros", UNREADABLE, whole[: whole.index(b"mdat") + 4] + b"\0" * 5_000, kind)
    yield _case("MP4 whose pictures are gone", UNREADABLE, whole[: whole.index(b"mdat") + 4], kind)
    yield _case("MP4 of an unknown codec", UNREADABLE, whole.replace(b"avc1", b"zzzz"), kind)
    yield _case("MP4 without codec settings", UNREADABLE, whole.replace(b"avcC", b"free"), kind)
    yield _case(
        "MP4 whose offsets are beyond its end", UNREADABLE, patched(whole, b"stco", 8, b"\x7f\xff\xff\xff"), kind
    )
    yield _case("a pose of noise", UNREADABLE, np.random.default_rng(2).bytes(20_000), kind, "pose_video")


def _lying() -> Iterator[Case]:
    kind = "video: bombs and false sizes"
    yield _case("MP4 of a type box alone", UNREADABLE, FTYP, kind)
    yield _case("MP4 box of size 0", UNREADABLE, FTYP + box(b"moov", size=0), kind)
    yield _case("MP4 box of 4 GiB", UNREADABLE, FTYP + box(b"moov", b"\0" * 64, size=2**32 - 1), kind)
    deep = b""
    for _ in range(2000):
        deep = box(b"moov", deep)
    yield _case("MP4 boxes nested two thousand deep", UNREADABLE, FTYP + deep, kind)
    yield _case(
        "MP4 of ten thousand tracks",
        UNREADABLE,
        FTYP + box(b"moov", box(b"trak", box(b"tkhd", b"\0" * 84)) * 10_000),
        kind,
    )
    entries = box(b"stts", struct.pack(">II", 0, 2**32 - 1), b"\0" * 64)
    yield _case(
        "MP4 table of four thousand million entries", UNREADABLE, FTYP + box(b"moov", box(b"trak", entries)), kind
    )
    yield _case("frames of 4096x4096", "frame_too_large", video(codec="mpeg4", width=4096, height=4096, frames=1), kind)
    for name, header in {
        "YUV4MPEG of 99999x99999": b"YUV4MPEG2 W99999 H99999 F25:1 C420\nFRAME\n",
        "YUV4MPEG of 30000x30000, cut": b"YUV4MPEG2 W30000 H30000 F25:1 C420\nFRAME\n" + b"\0" * 5_000,
        "YUV4MPEG of no size": b"YUV4MPEG2 W0 H0 F25:1\nFRAME\n",
    }.items():
        yield _case(name, UNREADABLE, header, kind)
    avi = video("avi", "rawvideo", frames=2, pixels="bgr24")
    yield _case(
        "AVI that says 60000x60000", UNREADABLE, patched(avi, b"strf", 8, struct.pack("<ii", 60_000, 60_000)), kind
    )
    matroska = b"\x1aE\xdf\xa3"
    yield _case(
        "Matroska whose head is 2^56 bytes long", UNREADABLE, matroska + b"\x01" + b"\xff" * 7 + b"a" * 100, kind
    )
    yield _case("Matroska of a head alone", UNREADABLE, matroska + b"\x8fB\x82\x88matroskaB\x87\x81\x04", kind)
    gif = saved("GIF", mode="P")
    yield _case("GIF whose screen is 65535x65535", UNREADABLE, gif[:6] + b"\xff\xff\xff\xff" + gif[10:], kind)
    yield _case("an hour at one frame in ten minutes", "video_too_long", video(frames=7, fps=1, step=600), kind)
    yield _case(
        "five thousand frames a second", "bad_frame_rate", video("matroska", "mpeg4", frames=10, fps=5000), kind
    )


def _without_pictures() -> Iterator[Case]:
    kind = "video: nothing to see"
    yield _case("sound alone, MP4", "no_video_stream", sound(), kind)
    yield _case("sound alone, MP3", UNREADABLE, sound("mp3", "libmp3lame"), kind)
    yield _case("sound alone, Ogg", UNREADABLE, sound("ogg", "libopus"), kind)
    yield _case("sound alone, FLAC", UNREADABLE, sound("flac", "flac"), kind)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as out:
        out.setparams((1, 2, 8000, 0, "NONE", ""))
        out.writeframes(b"\0" * 8000)
    yield _case("sound alone, WAV", UNREADABLE, buffer.getvalue(), kind)
    yield _case("subtitles alone, Matroska", UNREADABLE, _subtitles(), kind)
    yield _case("no frame at all", UNREADABLE, _no_frames(), kind)
    for name in ("PNG", "JPEG", "WEBP", "BMP", "TIFF"):
        yield _case(f"a {name} picture", "still_image", saved(name), kind)
    yield _case("a picture for a pose", "still_image", saved("PNG"), kind, "pose_video")


def _subtitles() -> bytes:
    words = b"1\n00:00:00,000 --> 00:00:02,000\nhello\n\n"
    buffer = io.BytesIO()
    with av.open(io.BytesIO(words), format="srt") as source, av.open(buffer, "w", format="matroska") as out:
        stream = out.add_stream_from_template(source.streams.subtitles[0])
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    return buffer.getvalue()


def _no_frames() -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as out:
        stream: Any = out.add_stream("mpeg4", rate=12)
        stream.width, stream.height, stream.pix_fmt = 64, 96, "yuv420p"
        out.start_encoding()
    return buffer.getvalue()


def _openers() -> Iterator[Case]:
    kind = "video: names other files"
    for name, text in {
        "HLS playlist of a file": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        "HLS playlist of a URL": "#EXTM3U\n#EXTINF:1,\nhttp://169.254.169.254/latest/meta-data/\n#EXT-X-ENDLIST\n",
        "HLS playlist with a key": '#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="file:///etc/passwd"\n#EXTINF:1,\na.ts\n',
        "ffconcat of a file": "ffconcat version 1.0\nfile '/etc/passwd'\n",
        "ffconcat with a protocol": "ffconcat version 1.0\nfile 'concat:/etc/passwd|/etc/hosts'\n",
        "SDP": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        "DASH manifest": '<?xml version="1.0"?><MPD><Period><BaseURL>http://127.0.0.1/</BaseURL></Period></MPD>',
        "Smooth Streaming manifest": '<SmoothStreamingMedia MajorVersion="2"><StreamIndex Url="file:///etc/passwd"/>',
        "RTSP reference": "RTSPtext\nrtsp://127.0.0.1/a\n",
        "ASX reference": '<asx version="3.0"><entry><ref href="http://127.0.0.1/"/></entry></asx>',
        "subtitles with a file": "[Script Info]\nVideo File: /etc/passwd\n",
        "FFmpeg metadata": ";FFMETADATA1\ntitle=a\n",
        "a picture sequence's pattern": "/etc/%d.png",
        "a lavfi graph": "movie=/etc/passwd",
        "HTML": "<!doctype html><video src='file:///etc/passwd'>",
        "a LFS pointer": "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    }.items():
        yield _case(name, UNREADABLE, text.encode(), kind)
    reference = box(b"dref", struct.pack(">II", 0, 1), box(b"url ", struct.pack(">I", 0), b"file:///etc/passwd\0"))
    yield _case("MP4 whose pictures lie in another file", UNREADABLE, _with_reference(reference), kind)
    movie = box(b"rmra", box(b"rmda", box(b"rdrf", b"\0\0\0\0url " + struct.pack(">I", 19) + b"file:///etc/passwd\0")))
    yield _case("QuickTime reference movie", UNREADABLE, FTYP + box(b"moov", movie), kind)


def _with_reference(reference: bytes) -> bytes:
    """An MP4 with another data reference, all boxes around it of the right size, and no data of its own."""
    whole = video(fast_start=True)
    at = whole.index(b"dref") - 4
    length = struct.unpack(">I", whole[at : at + 4])[0]
    made = bytearray(whole[:at] + reference + whole[at + length :])
    for name in (b"dinf", b"minf", b"mdia", b"trak", b"moov"):
        place = made.index(name) - 4
        made[place : place + 4] = struct.pack(
            ">I", struct.unpack(">I", made[place : place + 4])[0] + len(reference) - length
        )
    return bytes(made[: made.index(b"mdat") + 4])


def _unusable() -> Iterator[Case]:
    kind = "video: sound, but of no use"
    yield _case("one frame", "too_few_frames", video(frames=1), kind)
    yield _case("four frames", "too_few_frames", video(frames=4), kind)
    yield _case("a pose of three frames", "too_few_frames", video(frames=3), kind, "pose_video")
    yield _case("frames of 1x1", "frame_too_small", video("matroska", "ffv1", width=1, height=1, pixels="bgr0"), kind)
    yield Case(kind, "an image and a video exchanged", "not_media", "input_reference", _exchanged)


def _exchanged(good: Good) -> dict[str, Any]:
    files = good.files(input_reference=("p.png", good.pose), pose_video=("m.mp4", good.person))
    return {"data": good.fields(), "files": files}
