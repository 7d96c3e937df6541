"""Stretches read one after another are those read by themselves, and the file is decoded once."""

from __future__ import annotations

import numpy as np
import pytest

from dynamictrl.errors import MediaError
from dynamictrl.media import video_stretches
from dynamictrl.media.video import encode_video, iter_frames
from dynamictrl.media.video_stream import FrameStream
from dynamictrl.media.video_stretches import StretchReader
from tests.benchmarks.clean_media import Variant, made, moving

SPANS = [(0.0, 0.6), (0.6, 1.2), (1.5, 2.0), (3.0, 4.0), (0.4, 0.9), (4.0, 4.8)]


@pytest.mark.parametrize(
    "variant",
    [
        Variant("h264", "mp4", frames=120, options={"x264-params": "keyint=1000"}),
        Variant("h264", "mkv", frames=120, options={"x264-params": "keyint=12:open-gop=1:bframes=3"}),
        Variant("vp9", "webm", frames=120, variable=True),
        Variant("mpeg4", "avi", frames=120, options={"bf": "2"}),
    ],
    ids=lambda variant: variant.name,
)
def test_a_stretch_is_the_same_whatever_was_read_before(variant: Variant):
    data, reader = made(variant), None
    for number, fps in enumerate((12, 30)):
        reader = StretchReader(data)
        for start, end in SPANS:
            alone = [picture for _, picture in iter_frames(data, start=start, end=end, fps=fps)]
            among = list(reader.frames(start, end, fps=fps))
            assert len(among) == len(alone) > 0, (number, start)
            assert all(np.array_equal(a, b) for a, b in zip(among, alone, strict=True))
        reader.close()


def test_many_stretches_of_a_file_with_one_key_frame_open_it_once(monkeypatch: pytest.MonkeyPatch):
    opened: list[FrameStream] = []

    class Counted(FrameStream):
        def __init__(self, source: video_stretches.VideoSource):
            opened.append(self)
            super().__init__(source)

    monkeypatch.setattr(video_stretches, "FrameStream", Counted)
    monkeypatch.setattr(video_stretches, "WORTH_SEEKING", 0.5)
    data = made(Variant("h264", "mp4", frames=120, options={"x264-params": "keyint=1000"}))
    reader = StretchReader(data)
    for start in (0.0, 0.5, 1.0, 2.5, 4.0):
        assert len(list(reader.frames(start, start + 0.5, fps=10))) == 5
    assert len(opened) == 1


def test_a_key_frame_far_ahead_is_jumped_to(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(video_stretches, "WORTH_SEEKING", 0.5)
    data = made(Variant("h264", "mp4", frames=120, options={"x264-params": "keyint=12:min-keyint=12"}))
    reader = StretchReader(data)
    for start in (0.0, 3.0):
        alone = [picture for _, picture in iter_frames(data, start=start, end=start + 0.4, fps=10)]
        among = list(reader.frames(start, start + 0.4, fps=10))
        assert all(np.array_equal(a, b) for a, b in zip(among, alone, strict=True))


def test_a_stretch_that_is_left_early_does_not_hurt_the_next():
    data = encode_video(moving(60, 64, 64, 0), 20)
    reader = StretchReader(data)
    next(reader.frames(0.0, 1.0, fps=20))
    among = list(reader.frames(1.0, 2.0, fps=20))
    alone = [picture for _, picture in iter_frames(data, start=1.0, end=2.0, fps=20)]
    assert all(np.array_equal(a, b) for a, b in zip(among, alone, strict=True))


def test_a_stretch_behind_the_end_and_damage_in_one_are_told():
    data = encode_video(moving(60, 64, 64, 0), 20)
    with pytest.raises(MediaError) as caught:
        list(StretchReader(data).frames(5.0, 6.0, fps=20))
    assert caught.value.code == "no_such_span"
    reader = StretchReader(data[: len(data) // 2])
    assert len(list(reader.frames(0.0, 0.5, fps=20))) == 10
    with pytest.raises(MediaError) as caught:
        list(reader.frames(0.5, 3.0, fps=20))
    assert caught.value.code == "decode_error"
