"""Damage that raises nothing leaves a trace all the same, and sound files leave none."""

from __future__ import annotations

from itertools import pairwise

import av
import av.logging
import cv2
import numpy as np
import pytest

from dynamictrl.media.video import encode_video, read_video
from dynamictrl.media.video_bitstream import has_hole, nal_length_size
from dynamictrl.media.video_damage import Condition, Inspection, decoder_complaints
from tests.benchmarks.clean_media import Variant, cut_at_an_open_group, joined_late, leaping, made, moving, variants


def smooth_clip(frames: int = 60) -> bytes:
    """A world that slides by, as cameras see it."""
    rng = np.random.default_rng(0)
    world = np.full((144, 640, 3), 110, np.float32)
    for cell in (6, 16, 40):
        coarse = rng.normal(0, 1, (144 // cell + 2, 640 // cell + 2, 3)).astype(np.float32)
        world += 22 * cv2.resize(coarse, (640, 144), interpolation=cv2.INTER_CUBIC)
    shown = [world[:, 3 * i : 3 * i + 192] + rng.normal(0, 2, (144, 192, 1)) for i in range(frames)]
    return encode_video(np.clip(np.stack(shown), 0, 255).astype(np.uint8), 20)


@pytest.fixture(scope="module")
def clip() -> bytes:
    return smooth_clip()


def seen(data: bytes) -> Condition:
    with Inspection(data, max_pixels=96 * 96) as inspection:
        times = [time for time, _ in inspection.pictures()]
        condition = inspection.condition()
    assert condition.frames == len(times)
    assert all(b > a for a, b in pairwise(times))
    return condition


def overwritten(data: bytes, place: float, what: bytes | None = None) -> bytes:
    at = data.index(b"mdat") + 8 + int((len(data) - data.index(b"mdat") - 8) * place)
    what = bytes(255 - byte for byte in data[at : at + 3]) if what is None else what
    return data[:at] + what + data[at + len(what) :]


def test_a_sound_file_has_nothing_to_complain_of(clip: bytes):
    level = av.logging.get_level()
    assert decoder_complaints(clip) == []
    assert av.logging.get_level() == level


def test_three_overwritten_bytes_are_noticed_though_every_frame_comes(clip: bytes):
    damaged = [overwritten(clip, place) for place in np.linspace(0.05, 0.9, 16)]
    silent = [data for data in damaged if len(read_video(data, partial=True).frames) == 60]
    assert len(silent) > 10
    # Fifteen of sixteen, measured: here and there three bytes are legal video, wrong as it looks.
    assert sum(bool(seen(data).complaints) for data in silent) >= 0.8 * len(silent)


def test_a_hole_of_zeros_is_noticed_wherever_it_is(clip: bytes):
    holes = [seen(overwritten(clip, place, bytes(300))) for place in np.linspace(0.05, 0.9, 12)]
    assert all(condition.complaints or condition.error for condition in holes)


def test_what_was_shown_before_the_damage_is_as_filmed(clip: bytes):
    damaged = overwritten(clip, 0.6, bytes(300))
    condition, whole, hurt = seen(damaged), read_video(clip), read_video(damaged, partial=True)
    sound = int((hurt.timestamps < condition.damaged_from - 1e-3).sum())
    assert sound > 5
    assert np.array_equal(hurt.frames[:sound], whole.frames[:sound])


def test_a_cut_file_and_a_damaged_one_are_told_apart(clip: bytes):
    cut, damaged = seen(clip[: len(clip) // 2]), seen(overwritten(clip, 0.5, b"\xff" * 2000))
    assert cut.missing > 1
    assert damaged.missing < 0.2
    assert damaged.error or damaged.complaints


def test_times_that_are_missing_or_leap_are_counted():
    (gap,) = seen(leaping(moving(30, 64, 64, 0), at=20, ticks=100)).gaps
    assert (round(gap.start, 2), round(gap.end, 2)) == (0.76, 4.8)


def test_a_picture_that_does_not_change_is_a_still():
    pictures = moving(30, 96, 96, 1)
    frozen = np.concatenate([pictures, np.repeat(pictures[-1:], 60, axis=0)])
    (still,) = seen(encode_video(frozen, 20)).stills
    assert (still.start, still.end) == (pytest.approx(1.45), pytest.approx(4.45))
    assert seen(encode_video(pictures, 20)).stills == ()


def test_one_file_does_not_hear_what_was_said_of_another(clip: bytes):
    damaged = overwritten(clip, 0.4, bytes(300))
    first = decoder_complaints(damaged)
    assert decoder_complaints(damaged) == first
    with Inspection(damaged, max_pixels=4096) as bad, Inspection(clip, max_pixels=4096) as good:
        for _ in zip(bad.pictures(), good.pictures(), strict=False):
            pass
        assert bad.condition().complaints
        assert not good.condition().complaints


def test_sound_files_of_every_codec_and_container_raise_no_alarm():
    # Every ninth of those that the benchmark false_alarms goes through.
    alarms = {}
    for variant in variants(1)[::9]:
        condition = seen(made(variant))
        if condition.complaints or condition.error or condition.missing > 0.3 or condition.gaps or condition.stills:
            alarms[variant.name] = condition
    assert alarms == {}


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_a_recording_that_begins_in_the_middle_is_sound(codec: str):
    key = "x264-params" if codec == "h264" else "x265-params"
    quiet = "log-level=none:" if codec == "hevc" else ""
    options = {key: f"{quiet}bframes=3:keyint=8:min-keyint=8:open-gop=1"}
    data = made(Variant(codec, "ts", frames=30, options=options))
    assert seen(joined_late(data)).complaints == ()
    assert seen(cut_at_an_open_group(data, "ts")).complaints == ()


def test_the_last_start_code_of_a_sloppy_muxer_is_no_hole():
    unit = b"\x41" + bytes(range(1, 60))
    assert not has_hole("h264", _framed(unit + b"\0\0\0\x01\x0a"), 4)
    assert not has_hole("h264", _framed(unit + bytes(40)), 4), "padding"
    assert has_hole("h264", _framed(unit + bytes(40) + unit), 4)
    assert not has_hole("h264", _framed(b"\x06" + bytes(40) + unit), 4), "a side note"


def test_streams_with_start_codes_are_not_searched_for_lengths():
    assert nal_length_size("h264", b"\0\0\0\x01\x67") == 0
    assert nal_length_size("h264", bytes([1, 77, 0, 30, 0xFF, 0xE1])) == 4
    assert nal_length_size("vp9", b"\x01" * 30) == 0


def _framed(unit: bytes) -> bytes:
    return len(unit).to_bytes(4, "big") + unit
