"""A driving video's sound on the clip that was rendered from it, cut to exactly the stretch that is shown.

The picture's clock rules: second 0 is the source's first frame, as in `dynamictrl.media.video`, wherever the
container's sound begins. Sound is encoded anew as AAC (a copy could only be cut between its packets, every 21 ms);
the encoder's 1,024 samples of lead-in are in the file's edit list, so players start at the first true sample.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from numpy.typing import NDArray

from dynamictrl.errors import InputError
from dynamictrl.media.video_stream import FrameStream, VideoSource

logger = logging.getLogger(__name__)

AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000)
"""Sampling rates kept as they are; others become 48,000 a second."""
BITS_PER_CHANNEL = 96_000
"""Of the AAC stream, a second."""
JUMP_SECONDS = 0.015
"""Containers' clocks are coarse (1 ms in Matroska): only a larger step is a gap, or an overlap, in the sound."""
_CHUNK = 1024


@dataclass(frozen=True)
class Sound:
    """A stretch of sound in memory."""

    samples: NDArray[np.float32]
    """[channels, samples] in [-1, 1]; one or two channels."""
    rate: int
    """Samples per second."""

    @property
    def seconds(self) -> float:
        """Length."""
        return self.samples.shape[1] / self.rate


def read_sound(source: VideoSource, *, start: float = 0.0, seconds: float) -> Sound | None:
    """The sound of `start` <= time < `start` + `seconds`, or None where the source has none there.

    Exactly round(seconds * rate) samples: where the source falls silent or ends earlier, zeros. Mono stays mono, more
    than two channels become two. Raises MediaError where the source is no video, InputError for a stretch below zero.
    """
    if start < 0 or not seconds > 0:
        raise InputError(f"{seconds:g} s of sound from {start:g} s on; give a start of 0 or more and a length above 0")
    with FrameStream(source) as stream:
        if not stream.has_audio:
            return None
        track = _collected(stream, start, seconds)
    if track is None or not track.heard:
        return None
    return _at_known_rate(Sound(track.samples, track.rate), seconds)


def add_sound(video: Path, sound: Sound) -> None:
    """Puts a sound beside the pictures of an mp4, not encoded again; the file is replaced whole or not at all.

    Both begin at 0. A sound longer than the pictures is kept; `read_sound` makes one as long.
    """
    part = video.with_name(f"{video.name}.{os.getpid()}.sound")
    try:
        _mux(video, sound, part)
        part.replace(video)
    finally:
        part.unlink(missing_ok=True)


def keep_sound(source: VideoSource, video: Path, *, start: float = 0.0, seconds: float) -> bool:
    """Gives a rendered clip the sound of the stretch of `source` it was rendered from; False where there is none."""
    sound = read_sound(source, start=start, seconds=seconds)
    if sound is None:
        logger.info("the driving video has no sound from %.2f s to %.2f s: the clip is silent", start, start + seconds)
        return False
    add_sound(video, sound)
    return True


def _collected(stream: FrameStream, start: float, seconds: float) -> _Track | None:
    track: _Track | None = None
    try:
        for time, frame in stream.sound(start):
            if time >= start + seconds:
                break
            track = track or _Track(frame, seconds)
            track.add(time - start, frame)
    except (av.error.FFmpegError, ValueError) as problem:
        logger.warning("the driving video's sound cannot be converted (%s); what is left of it is silence", problem)
    return track


class _Track:
    """Decoded sound put in its place, at the rate of the first piece."""

    def __init__(self, first: AudioFrame, seconds: float):
        self.rate = first.sample_rate
        layout = "mono" if first.layout.nb_channels == 1 else "stereo"
        self._convert = AudioResampler(format="fltp", layout=layout, rate=self.rate)
        self.samples = np.zeros((1 if layout == "mono" else 2, round(seconds * self.rate)), np.float32)
        self.heard = False
        self._next: int | None = None

    def add(self, time: float, frame: AudioFrame) -> None:
        """Writes a piece that begins at `time` seconds of the stretch; what lies outside it is dropped."""
        place = round(time * self.rate)
        if self._next is not None and abs(place - self._next) <= JUMP_SECONDS * self.rate:
            place = self._next
        for converted in self._convert.resample(frame):
            piece = converted.to_ndarray()
            first, last = max(0, place), min(self.samples.shape[1], place + piece.shape[1])
            if first < last:
                self.samples[:, first:last] = piece[:, first - place : last - place]
                self.heard = True
            place += piece.shape[1]
        self._next = place


def _at_known_rate(sound: Sound, seconds: float) -> Sound:
    if sound.rate in AAC_RATES:
        return sound
    rate = 48_000
    layout = _layout(sound)
    convert = AudioResampler(format="fltp", layout=layout, rate=rate)
    pieces = [f.to_ndarray() for frame in (*_frames(sound), None) for f in convert.resample(frame)]
    made = np.concatenate(pieces, axis=1)
    exact = np.zeros((len(made), round(seconds * rate)), np.float32)
    length = min(made.shape[1], exact.shape[1])
    exact[:, :length] = made[:, :length]
    return Sound(exact, rate)


def _layout(sound: Sound) -> str:
    return "mono" if len(sound.samples) == 1 else "stereo"


def _frames(sound: Sound) -> Iterator[AudioFrame]:
    for start in range(0, sound.samples.shape[1], _CHUNK):
        piece = np.ascontiguousarray(sound.samples[:, start : start + _CHUNK])
        frame = AudioFrame.from_ndarray(piece, format="fltp", layout=_layout(sound))
        frame.sample_rate, frame.pts, frame.time_base = sound.rate, start, Fraction(1, sound.rate)
        yield frame


def _mux(video: Path, sound: Sound, out: Path) -> None:
    options = {"movflags": "+faststart", "fflags": "+bitexact"}
    with (
        av.open(f"file:{video.absolute()}") as source,
        av.open(f"file:{out.absolute()}", "w", format="mp4", options=options) as target,
    ):
        pictures = source.streams.video[0]
        copied = target.add_stream_from_template(pictures)
        voice: Any = target.add_stream("aac", rate=sound.rate, layout=_layout(sound))
        voice.bit_rate = BITS_PER_CHANNEL * len(sound.samples)
        voice.codec_context.flags |= 1 << 23  # AV_CODEC_FLAG_BITEXACT: no version string in the bytes
        spoken = _encoded(voice, sound)
        # Alternately, as players read them.
        pending = next(spoken, None)
        for packet in source.demux(pictures):
            if packet.dts is None or packet.time_base is None:
                continue
            now = float(packet.dts * packet.time_base)
            while pending is not None and float(pending.dts * pending.time_base) <= now:
                target.mux(pending)
                pending = next(spoken, None)
            packet.stream = copied
            target.mux(packet)
        while pending is not None:
            target.mux(pending)
            pending = next(spoken, None)


def _encoded(stream: Any, sound: Sound) -> Iterator[Any]:  # noqa: ANN401 - PyAV's stream and packets
    for frame in (*_frames(sound), None):
        yield from stream.encode(frame)
