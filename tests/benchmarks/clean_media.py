"""Sound videos of every kind that a crawl brings, made here: what no check of damage may refuse.

Short and small, so that hundreds take a minute. Each is a textured picture that slides, with a square that runs over
it: something moves in every frame.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction

import av
import numpy as np
from numpy.typing import NDArray

CODECS = {
    "h264": "libx264",
    "hevc": "libx265",
    "vp9": "libvpx-vp9",
    "vp8": "libvpx",
    "av1": "libsvtav1",
    "mpeg4": "mpeg4",
    "mjpeg": "mjpeg",
    "mpeg2": "mpeg2video",
    "prores": "prores",
    "ffv1": "ffv1",
}
FORMATS = {"mp4": "mp4", "mov": "mov", "mkv": "matroska", "webm": "webm", "avi": "avi", "ts": "mpegts"}
HOLDS = {
    "mp4": ("h264", "hevc", "vp9", "av1", "mpeg4", "mpeg2"),
    "mov": ("h264", "hevc", "mpeg4", "mjpeg", "prores"),
    "mkv": ("h264", "hevc", "vp9", "vp8", "av1", "mpeg4", "mjpeg", "mpeg2", "ffv1"),
    "webm": ("vp9", "vp8", "av1"),
    "avi": ("mpeg4", "mjpeg", "h264"),
    "ts": ("h264", "hevc", "mpeg2"),
}
FAST = {
    "h264": {"preset": "veryfast"},
    "hevc": {"preset": "ultrafast", "x265-params": "log-level=none"},
    "vp9": {"deadline": "realtime", "cpu-used": "8"},
    "vp8": {"deadline": "realtime", "cpu-used": "8"},
    "av1": {"preset": "12", "svtav1-params": "lp=1"},
}
SOUND = {"webm": "libopus", "avi": "mp2", "ts": "mp2"}


@dataclass(frozen=True)
class Variant:
    """One sound video; `made` writes it."""

    codec: str
    container: str
    frames: int = 18
    fps: Fraction = Fraction(25)
    size: tuple[int, int] = (80, 112)
    """Height, width."""
    pixels: str = "yuv420p"
    options: dict[str, str] = field(default_factory=dict)
    sound: float = 0.0
    """Seconds of sound beside the pictures; 0 = none."""
    sound_ahead: float = 0.0
    """Seconds by which the sound begins before the pictures."""
    variable: bool = False
    """Frames at uneven times."""
    rotated: int = 0
    starts_at: int = 0
    """Frames by which the clock begins late; negative ones are hidden by an edit list."""
    kind: str = "plain"
    seed: int = 0

    @property
    def name(self) -> str:
        rate = f"{float(self.fps):.4g}"
        return f"{self.kind}-{self.seed}-{self.codec}-{self.size[1]}x{self.size[0]}-{rate}fps.{self.container}"


def leaping(frames_FHWC: NDArray[np.uint8], at: int, ticks: int) -> bytes:
    """A Matroska video of 25 frames per second whose times leap ahead by `ticks` frames at frame `at`."""
    buffer, step = io.BytesIO(), Fraction(1, 25)
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = *frames_FHWC.shape[1:3], "yuv420p"
        stream.codec_context.time_base = step
        for index, picture in enumerate(frames_FHWC):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = index + ticks * (index >= at), step
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def moving(frames: int, height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """[F, H, W, 3]: a texture that slides by two pixels a frame, and a square that runs."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(20, 235, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    texture = np.kron(coarse, np.ones((8, 8, 1), np.uint8))[:height, :width]
    shown = np.stack([np.roll(texture, 2 * i, axis=1) for i in range(frames)])
    side = max(2, min(height, width) // 4)
    for i in range(frames):
        y, x = (3 * i + seed) % max(1, height - side), (5 * i) % max(1, width - side)
        shown[i, y : y + side, x : x + side] = 255 - 60 * (i % 3)
    return shown


def made(variant: Variant) -> bytes:
    """The file's bytes."""
    buffer, options = io.BytesIO(), {}
    if variant.starts_at < 0:
        options["avoid_negative_ts"] = "disabled"
    with av.open(buffer, "w", format=FORMATS[variant.container], options=options) as container:
        video = container.add_stream(CODECS[variant.codec], rate=variant.fps)
        video.height, video.width = variant.size
        video.pix_fmt = variant.pixels
        video.options = {**FAST.get(variant.codec, {}), **variant.options}
        if variant.rotated:
            video.set_display_rotation(variant.rotated)
        sound = None
        if variant.sound:
            sound = container.add_stream(SOUND.get(variant.container, "aac"), rate=48000)
            for packet in _sound(sound, variant):
                container.mux(packet)
        for packet in _pictures(video, variant):
            container.mux(packet)
    return buffer.getvalue()


def _pictures(video: av.VideoStream, variant: Variant) -> Iterator[av.Packet]:
    # Fine enough for uneven times, and MPEG-4 takes no denominator above 65535.
    ticks = 20 if variant.variable else 1
    base = 1 / (variant.fps * ticks)
    video.codec_context.time_base = base
    rng = np.random.default_rng(variant.seed)
    late = max(0, variant.starts_at) * ticks
    for index, picture in enumerate(moving(variant.frames, *variant.size, variant.seed)):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=variant.pixels)
        uneven = int(rng.integers(-8, 9)) if variant.variable and index else 0
        frame.pts, frame.time_base = late + index * ticks + uneven, base
        yield from _shifted(video.encode(frame), variant)
    yield from _shifted(video.encode(None), variant)


def _shifted(packets: list[av.Packet], variant: Variant) -> Iterator[av.Packet]:
    """Packets with a clock below zero: the mp4 muxer hides their frames behind an edit list."""
    for packet in packets:
        if variant.starts_at < 0 and packet.time_base:
            back = round(-variant.starts_at / variant.fps / packet.time_base)
            packet.pts, packet.dts = packet.pts - back, packet.dts - back
        yield packet


def _sound(stream: av.AudioStream, variant: Variant) -> Iterator[av.Packet]:
    resampler = av.AudioResampler(format=stream.codec_context.format, layout="stereo", rate=48000, frame_size=1024)
    samples = int(48000 * variant.sound)
    wave = (8000 * np.sin(np.arange(samples) * 0.05)).astype(np.int16)
    frame = av.AudioFrame.from_ndarray(np.repeat(wave, 2)[None], format="s16", layout="stereo")
    frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
    for part in (*resampler.resample(frame), *resampler.resample(None)):
        yield from stream.encode(part)
    yield from stream.encode(None)


def variants(seeds: int = 3) -> list[Variant]:
    """All kinds; `seeds` of each."""
    found: list[Variant] = []
    for seed in range(seeds):
        for container, codecs in HOLDS.items():
            for codec in codecs:
                found += _of(codec, container, seed)
    return found


def _of(codec: str, container: str, seed: int) -> Iterator[Variant]:
    frames, common = 14 + 4 * seed, {"codec": codec, "container": container, "seed": seed}
    if codec == "prores":
        common |= {"pixels": "yuv422p10le"}
    if codec == "mjpeg":
        common |= {"pixels": "yuvj420p"}
    rate = (Fraction(24), Fraction(30000, 1001), Fraction(12))[seed % 3]
    yield Variant(**common, frames=frames, fps=Fraction(25))
    yield Variant(**common, frames=frames, fps=rate if codec != "mpeg2" else Fraction(25), kind="rate")
    yield Variant(**common, frames=frames, sound=1.5 * frames / 25 + 0.5, kind="longer-sound")
    yield Variant(**common, frames=frames, sound=0.4, kind="shorter-sound")
    if codec not in ("prores", "mpeg2"):
        yield Variant(**common, frames=frames, size=(64 + 2 * seed, 78), kind="size")
    if container != "avi":
        if codec != "mpeg2":
            yield Variant(**common, frames=frames, variable=True, kind="variable-rate")
        yield Variant(**common, frames=frames, starts_at=10 + seed, kind="late-clock")
    yield from _of_codec(codec, container, frames, common)


def _of_codec(codec: str, container: str, frames: int, common: dict[str, object]) -> Iterator[Variant]:
    if codec in ("h264", "hevc") and container != "avi":
        key = "x264-params" if codec == "h264" else "x265-params"
        quiet = "" if codec == "h264" else "log-level=none:"
        b_frames = {key: quiet + "bframes=3:keyint=8:min-keyint=8"}
        open_group = {key: quiet + "bframes=3:keyint=8:min-keyint=8:open-gop=1"}
        yield Variant(**common, frames=frames + 10, options=b_frames, kind="b-frames")
        yield Variant(**common, frames=frames + 10, options=open_group, kind="open-group")
        yield Variant(**common, frames=frames, pixels="yuv420p10le", kind="10-bit")
        yield Variant(**common, frames=frames, pixels="yuv444p", kind="4:4:4")
    if codec in ("h264", "hevc") and container in ("mp4", "mov"):
        yield Variant(**common, frames=frames + 6, starts_at=-5, kind="edit-list")
        yield Variant(**common, frames=frames, rotated=90, kind="rotated")
    if codec in ("vp9", "av1"):
        yield Variant(**common, frames=frames, pixels="yuv420p10le" if codec == "av1" else "yuv444p", kind="deep")
    if codec == "mpeg4":
        yield Variant(**common, frames=frames, options={"bf": "2"}, kind="b-frames")


def cut_at_an_open_group(data: bytes, container: str = "mp4") -> bytes:
    """The same without its first group of pictures, copied and not encoded anew: leading frames refer to nothing."""
    buffer = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(buffer, "w", format=FORMATS[container]) as target:
        video = source.streams.video[0]
        copy = target.add_stream_from_template(video)
        keys = 0
        for packet in source.demux(video):
            keys += packet.is_keyframe and packet.dts is not None
            if keys >= 2 and packet.dts is not None:
                packet.stream = copy
                target.mux(packet)
    return buffer.getvalue()


def joined_late(data: bytes) -> bytes:
    """A broadcast recorded from the middle of a group of pictures on."""
    return data[len(data) // 8 // 188 * 188 :]
