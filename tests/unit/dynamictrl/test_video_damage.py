"""Damage that raises nothing leaves a trace all the same."""

from __future__ import annotations

import av.logging
import numpy as np

from dynamictrl.video import encode_video, read_video
from dynamictrl.video_damage import decoder_complaints


def busy_clip() -> bytes:
    rng = np.random.default_rng(0)
    pictures = np.zeros((40, 96, 96, 3), np.uint8)
    for index in range(40):
        pictures[index] = 60 + 40 * np.sin(np.arange(96) / 9 + index / 5)[None, :, None]
        pictures[index] += rng.integers(0, 30, (96, 96, 3), np.uint8)
    return encode_video(pictures, 20)


def test_a_sound_file_has_nothing_to_complain_of():
    level = av.logging.get_level()
    assert decoder_complaints(busy_clip()) == []
    assert av.logging.get_level() == level


def overwritten(data: bytes, place: float) -> bytes:
    """Three bytes of the pictures inverted, at a share of the way through them."""
    changed = bytearray(data)
    begin = data.index(b"mdat") + 8
    middle = begin + int((len(data) - begin) * place)
    changed[middle : middle + 3] = bytes(255 - byte for byte in changed[middle : middle + 3])
    return bytes(changed)


def test_many_overwritten_bytes_are_noticed_though_every_frame_comes():
    damaged = [overwritten(busy_clip(), place) for place in np.linspace(0.1, 0.9, 9)]
    silent = [data for data in damaged if len(read_video(data, partial=True).frames) == 40]
    assert len(silent) > 4
    complaints = [decoder_complaints(data) for data in silent]
    # Four of nine, measured: the others happen to be legal video, wrong as it looks.
    assert sum(bool(lines) for lines in complaints) >= 3
    assert any("error" in line.lower() for lines in complaints for line in lines)
