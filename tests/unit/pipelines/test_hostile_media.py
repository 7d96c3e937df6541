"""What a crawl brings: every malformed source gets its own reason or is handled right, unnoticed by its neighbours.

One run over all of them, in the isolated child that a real run has, and one over the clean ones alone.
"""

from __future__ import annotations

import ctypes
import io
import os
import signal
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import av
import cv2
import numpy as np
import pytest

from dynamictrl.media.video import encode_video, read_video
from pipelines.clip import Clip
from pipelines.stage import Stage
from pipelines.stages.cut_clips import CutClips
from pipelines.stages.fetch import Fetch
from pipelines.stages.probe import Probe
from pipelines.stages.split_shots import SplitShots
from pipelines.work.isolation import Child
from tests.benchmarks.clean_media import Variant, leaping, made, moving

FPS = 12


@dataclass(frozen=True)
class Treacherous(Stage):
    """In the place of a decoder with a hole: does to its process what the file's first bytes say."""

    per: ClassVar[Literal["source", "clip"]] = "source"

    def process(self, clip: Clip) -> Iterable[Clip]:
        with Path(clip.path).open("rb") as file:
            command = file.read(16)
        if command.startswith(b"SEGFAULT"):
            ctypes.string_at(0)
        if command.startswith(b"ENDLESS"):
            time.sleep(600)
        if command.startswith(b"SPIN"):
            os.kill(os.getpid(), signal.SIGXCPU)
        if command.startswith(b"MEMORY BOMB"):
            kept = [bytearray(b"x" * (32 << 20)) for _ in range(64)]
            time.sleep(600 + len(kept))
        yield clip


STAGES = (Fetch(), Treacherous(), Probe(), SplitShots(), CutClips(fps=FPS, width=96, height=64))


def clean(seed: int = 0, frames: int = 60) -> bytes:
    """A smooth world that slides by, as cameras see it: about 100 kB."""
    rng = np.random.default_rng(seed)
    world = np.full((144, 640, 3), 110, np.float32)
    for cell in (6, 16, 40):
        coarse = rng.normal(0, 1, (144 // cell + 2, 640 // cell + 2, 3)).astype(np.float32)
        world += 22 * cv2.resize(coarse, (640, 144), interpolation=cv2.INTER_CUBIC)
    shown = [world[:, 3 * i : 3 * i + 192] + rng.normal(0, 2, (144, 192, 1)) for i in range(frames)]
    return encode_video(np.clip(np.stack(shown), 0, 255).astype(np.uint8), 20)


def matroska(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(buffer, "w", format="matroska") as target:
        _copied(source, target)
    return buffer.getvalue()


def _copied(source: av.container.InputContainer, target: av.container.OutputContainer) -> None:
    video = source.streams.video[0]
    copy = target.add_stream_from_template(video)
    for packet in source.demux(video):
        if packet.dts is not None:
            packet.stream = copy
            target.mux(packet)


def packets(data: bytes) -> list[tuple[int, int, bool]]:
    """(position, size, key frame) of every packet."""
    with av.open(io.BytesIO(data)) as source:
        return [(p.pos, p.size, p.is_keyframe) for p in source.demux(video=0) if p.pos is not None and p.size]


def overwritten(data: bytes, place: int, replacement: bytes) -> bytes:
    return data[:place] + replacement + data[place + len(replacement) :]


def flipped(data: bytes, place: int) -> bytes:
    return overwritten(data, place, bytes(255 - byte for byte in data[place : place + 3]))


def one_shown_wrong(data: bytes) -> bytes:
    """Three bytes inverted where all frames still come, as it was found in the wild."""
    for position, size, _ in packets(data)[3:]:
        damaged = flipped(data, position + size // 2)
        if len(read_video(damaged, partial=True).frames) == 60 and not np.array_equal(
            read_video(damaged, partial=True).frames, read_video(data).frames
        ):
            return damaged
    raise AssertionError("no place found where damage passes unnoticed")


def noise_in_a_key_frame(data: bytes) -> bytes:
    position, size, _ = max((p for p in packets(data) if p[2]), key=lambda p: p[1])
    noise = np.random.default_rng(1).integers(0, 256, min(2000, size // 2), np.uint8).tobytes()
    return overwritten(data, position + size // 3, noise)


def sound_only() -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 2 * 48000), np.int16), format="s16", layout="stereo")
        frame.sample_rate, frame.pts = 48000, 0
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return buffer.getvalue()


def with_cover(data: bytes) -> bytes:
    """MP3 with a picture on its sleeve."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp3") as container:
        sound = container.add_stream("libmp3lame", rate=44100)
        cover = container.add_stream("mjpeg")
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 1152), np.float32), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = 44100, 0
        picture = av.VideoFrame.from_ndarray(moving(1, 64, 64, 0)[0], format="rgb24").reformat(format="yuvj420p")
        container.mux([*cover.encode(picture), *cover.encode(None)])
        container.mux([*sound.encode(frame), *sound.encode(None)])
    return buffer.getvalue()


def pixel_bomb() -> bytes:
    """A GIF of a few bytes that unfolds to 16000x16000 pixels."""
    screen = b"GIF89a" + struct.pack("<HH", 16000, 16000) + b"\xf0\0\0" + bytes(6)
    image = b"\x2c" + struct.pack("<HHHH", 0, 0, 16000, 16000) + b"\0\x02\x02\x4c\x01\0"
    return screen + image + image + b";"


def encrypted(data: bytes) -> bytes:
    """Common encryption, as shops and broadcasters use it."""
    buffer = io.BytesIO()
    options = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "76a6" * 8, "encryption_kid": "a7e6" * 8}
    with av.open(io.BytesIO(data)) as source, av.open(buffer, "w", format="mp4", options=options) as target:
        _copied(source, target)
    return buffer.getvalue()


def unknown_codec(data: bytes) -> bytes:
    """An mp4 whose pictures are in a format that nobody knows."""
    return overwritten(data, data.index(b"avc1", data.index(b"stsd")), b"zzz9")


def standing_still_for_hours() -> bytes:
    """Times that leap: resampled to a constant rate, it would yield frames for ever."""
    return leaping(moving(80, 96, 128, 5), at=40, ticks=25 * 3600 * 20)


def frozen() -> bytes:
    """A picture that stays for five seconds between two that move."""
    moved = moving(80, 96, 128, 6)
    return encode_video(np.concatenate([moved[:40], np.repeat(moved[40:41], 100, axis=0), moved[40:]]), 20)


WHOLE = clean(100)
QUARANTINED: dict[str, tuple[bytes, str]] = {
    "empty.mp4": (b"", "empty_file"),
    "page.mp4": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>" * 20, "not_media"),
    "pointer.mp4": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n", "not_media"),
    "no_index.mp4": (WHOLE[: WHOLE.index(b"moov") - 4] + WHOLE[WHOLE.index(b"mdat") - 4 :], "not_media"),
    "half.mp4": (WHOLE[: len(WHOLE) // 2], "truncated"),
    "half.mkv": (matroska(WHOLE)[: len(WHOLE) // 2], "truncated"),
    "overwritten_inside.mp4": (overwritten(WHOLE, packets(WHOLE)[30][0], b"\xff" * 300), "decode_error"),
    "zeros_inside.mp4": (overwritten(WHOLE, len(WHOLE) * 2 // 5, bytes(300)), "decode_error"),
    "three_bytes.mp4": (one_shown_wrong(WHOLE), "damaged_stream"),
    "noise_in_key_frame.mp4": (noise_in_a_key_frame(WHOLE), "damaged_stream"),
    "sound_only.mp4": (sound_only(), "no_video_stream"),
    "cover_only.mp3": (with_cover(WHOLE), "no_video_stream"),
    "picture.mp4": ((b"\xff\xd8" + b""), "not_media"),
    "pixel_bomb.gif": (pixel_bomb(), "too_large"),
    "unknown_codec.mp4": (unknown_codec(WHOLE), "unsupported_codec"),
    "encrypted.mp4": (encrypted(WHOLE), "encrypted"),
    "kills_by_segfault.mp4": (b"SEGFAULT", "crashed"),
    "kills_by_endless.mp4": (b"ENDLESS", "time_limit"),
    "kills_by_spinning.mp4": (b"SPIN", "cpu_limit"),
    "kills_by_memory_bomb.mp4": (b"MEMORY BOMB", "out_of_memory"),
}
"""By name: the bytes, and the reason code under which the source is quarantined."""

HANDLED: dict[str, bytes] = {
    "one_frame.mp4": encode_video(moving(1, 96, 128, 7), 20),
    "wrong_extension.txt": WHOLE,
    "line\nbreak.mp4": WHOLE,
    "überläufer 走る.mp4": WHOLE,
    "-starts-with-a-dash.mp4": WHOLE,
    "rotated.mp4": made(Variant("h264", "mp4", frames=30, rotated=90)),
    "below_zero.mp4": made(Variant("h264", "mp4", frames=30, starts_at=-5)),
    "variable_rate.mkv": made(Variant("vp9", "mkv", frames=30, variable=True)),
    "deep.mkv": made(
        Variant(
            "hevc",
            "mkv",
            frames=30,
            pixels="yuv420p10le",
            options={"x265-params": "log-level=none:colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc"},
        )
    ),
    "leaps.mkv": standing_still_for_hours(),
    "frozen.mp4": frozen(),
}
"""Odd and sound, or sound in part: clips come of them."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, list[Clip]], dict[str, list[Clip]]]:
    """By the name of a file, what became of it: in a run over all, and in one over the clean ones alone."""
    folder = tmp_path_factory.mktemp("crawl")
    files = {name: content for name, (content, _) in QUARANTINED.items()} | HANDLED
    files |= {f"clean_{i}.mp4": clean(i) for i in range(3)}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "loop.mp4").symlink_to(folder / "loop.mp4")
    # Clean ones between the bad ones: whoever follows a crash must not feel it.
    bad = sorted([*QUARANTINED, *HANDLED, "loop.mp4", "vanished.mp4"])
    order = ["clean_0.mp4", *bad[:12], "clean_1.mp4", *bad[12:], "clean_2.mp4"]
    alone = [name for name in order if name.startswith("clean")]
    return _run(folder, order, folder / "all"), _run(folder, alone, folder / "alone")


def _run(folder: Path, names: list[str], work: Path) -> dict[str, list[Clip]]:
    child = Child(STAGES, time_limit=6, memory_gib=0.6, cpu_limit=60)
    try:
        found = {}
        for name in names:
            path = str(folder / name)
            source = Clip(source=path, path=path, fingerprint=f"{len(found):04}", work=str(work))
            found[name] = child.apply([source]).clips
        return found
    finally:
        child.stop()


Runs = tuple[dict[str, list[Clip]], dict[str, list[Clip]]]


def test_each_kind_of_broken_source_is_quarantined_for_its_own_reason(runs: Runs):
    found = {name: (rows[0].rejected, rows[0].quarantined, len(rows)) for name, rows in runs[0].items()}
    expected = {name: (code, True, 1) for name, (_, code) in QUARANTINED.items()}
    assert {name: found[name] for name in expected} == expected
    assert found["loop.mp4"] == found["vanished.mp4"] == ("unreadable", True, 1)


def test_every_reason_is_told_in_a_sentence(runs: Runs):
    for rows in runs[0].values():
        for row in rows:
            assert not row.rejected or (row.stage and len(row.message) > 10)


def test_odd_but_sound_sources_give_clips_of_a_constant_rate(runs: Runs):
    for name in HANDLED:
        kept = [row for row in runs[0][name] if not row.rejected]
        assert kept, name
        for clip in kept:
            video = read_video(clip.file("mp4"))
            assert len(video.frames) == clip.frames, name
            assert clip.frames == 1 or video.fps == FPS, name
    upright = runs[0]["rotated.mp4"][0]
    assert (upright.width, upright.height) == (80, 112)


def test_hours_in_which_one_frame_stands_are_cut_out(runs: Runs):
    rows = runs[0]["leaps.mkv"]
    assert [row.rejected for row in rows] == ["timestamp_gap", "", ""]
    assert [round(row.duration, 1) for row in rows[1:]] == [1.6, 1.6]


def test_a_frozen_stretch_is_cut_out_and_what_moves_is_kept(runs: Runs):
    rows = runs[0]["frozen.mp4"]
    assert sorted({row.rejected for row in rows}) == ["", "frozen"]
    # The encoder takes a second to polish the picture that stays.
    assert 4 <= sum(row.duration for row in rows if not row.rejected) < 6


def test_clean_neighbours_are_the_same_to_the_byte(runs: Runs):
    among_all, alone = runs
    for name, clips in alone.items():
        assert [clip.rejected for clip in clips] == [""]
        again = among_all[name]
        assert [clip.file("mp4").read_bytes() for clip in again] == [clip.file("mp4").read_bytes() for clip in clips]
        assert [_told(clip) for clip in again] == [_told(clip) for clip in clips]


def _told(clip: Clip) -> Clip:
    """All but where the run was."""
    return replace(clip, work="", fingerprint="")


ODD = {
    "decord__corrupted.mp4": "decode_error",
    "moviepy__result.webm": "empty_file",
    "mp4parse__invalid_userdata.mp4": "no_frames",
    "screenpipe__selah.mp4": "not_media",
    "androidx__sample_audio_only.mp4": "no_video_stream",
    "exif__Portrait_6.jpg": "still_image",
    "musepose__ref.png": "still_image",
}


def real_files(shared_data: Path) -> Iterator[Path]:
    for folder in ("odd", "clips", "pose_videos"):
        yield from sorted((shared_data / folder).iterdir())


def test_real_sources_are_refused_for_true_reasons_and_no_other_is(shared_data: Path, tmp_path: Path):
    from pipelines.stage import run_local

    found = {}
    for path in real_files(shared_data):
        # Length costs time here and adds nothing.
        if path.stat().st_size < 250_000 or path.name in ODD:
            source = Clip(source=str(path), path=str(path), work=str(tmp_path))
            found[path.name] = run_local([Fetch(), Probe(), SplitShots()], [source])[0].rejected
    assert {name: code for name, code in found.items() if code} == ODD
