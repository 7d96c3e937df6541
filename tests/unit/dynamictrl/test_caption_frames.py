"""Which frames a captioner is shown, and how large: qwen-vl-utils' rules without opening the file twice."""

from __future__ import annotations

import io
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dynamictrl.captions.caption_frames import Footage, FrameRules, smart_resize
from dynamictrl.errors import InputError, MediaError
from dynamictrl.media.video import write_video
from dynamictrl.read_ahead import ahead

SIZES = [(720, 1280), (1280, 720), (1080, 1920), (64, 48), (200, 1000), (360, 640), (28, 28), (97, 333), (480, 854)]


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("max_pixels", [100_352, 360 * 640, 602_112])
def test_sizes_are_those_of_qwen_vl_utils(height: int, width: int, max_pixels: int):
    theirs = pytest.importorskip("qwen_vl_utils.vision_process")
    rules = FrameRules(max_pixels=max_pixels)
    assert rules.size(height, width, 16) == theirs.smart_resize(height, width, 28, rules.min_pixels, max_pixels)


def test_many_frames_share_the_tokens_of_a_whole_video():
    rules = FrameRules(max_frames=700, max_pixels=768 * 784)
    height, width = rules.size(1080, 1920, 700)
    assert 700 / 2 * height * width / 784 <= 0.9 * 128_000
    assert rules.size(1080, 1920, 16) > (height, width)


def test_a_strip_is_refused_and_a_side_is_never_less_than_a_token():
    with pytest.raises(InputError, match="2x900"):
        FrameRules().size(900, 2, 16)
    height, width = smart_resize(30, 5600, 28, 784, 100_352)
    assert min(height, width) == 28


@pytest.mark.parametrize(("frames", "indices"), [(1, [0]), (3, [0, 1, 2]), (30, [0, 10, 19, 29]), (4, [0, 1, 2, 3])])
def test_frames_are_spread_over_the_clip_with_its_first_and_last(frames: int, indices: list[int]):
    assert FrameRules(max_frames=4).indices(frames) == indices


def numbered(path: Path, frames: int, fps: float = 10) -> Footage:
    """A video whose frames get brighter by 8 each."""
    write_video(path, np.stack([np.full((64, 96, 3), 8 * index, np.uint8) for index in range(frames)]), fps)
    return Footage("key", path, frames, 64, 96)


def test_only_the_frames_shown_are_kept_with_their_places_and_times(tmp_path: Path):
    rules = FrameRules(max_frames=4, max_pixels=64 * 96, min_pixels=28 * 28)
    look = rules.read(numbered(tmp_path / "a.mp4", 25))
    assert look.key == "key"
    assert look.indices == (0, 8, 16, 24)
    assert look.times == pytest.approx((0, 0.8, 1.6, 2.4))
    assert look.pixels_FHW3.shape == (4, 56, 84, 3)
    np.testing.assert_allclose(look.pixels_FHW3.mean(axis=(1, 2, 3)), [0, 64, 128, 192], atol=3)


def test_a_look_at_frames_in_memory_is_the_look_at_their_file(tmp_path: Path):
    rules = FrameRules(max_frames=3, max_pixels=64 * 96, min_pixels=28 * 28)
    footage = numbered(tmp_path / "a.mp4", 9)
    frames = np.stack([np.full((64, 96, 3), 8 * index, np.uint8) for index in range(9)])
    mine = rules.look("key", frames, fps=10)
    read = rules.read(footage)
    assert (mine.indices, mine.times) == (read.indices, pytest.approx(read.times))
    assert np.abs(mine.pixels_FHW3.astype(int) - read.pixels_FHW3).max() <= 3


def test_a_clip_shorter_than_its_record_or_no_clip_at_all_is_named(tmp_path: Path):
    footage = numbered(tmp_path / "a.mp4", 9)
    with pytest.raises(MediaError) as short:
        FrameRules().read(Footage("key", footage.source, 12, 64, 96))
    assert short.value.code == "truncated"
    (tmp_path / "b.mp4").write_bytes(b"nothing")
    with pytest.raises(MediaError) as none:
        FrameRules().read(Footage("key", tmp_path / "b.mp4", 12, 64, 96))
    assert none.value.code == "not_media"


def test_resizing_is_that_of_qwen_vl_utils_pictures():
    picture = np.random.default_rng(0).integers(0, 255, (120, 160, 3), np.uint8)
    rules = FrameRules(max_frames=1, max_pixels=84 * 112, min_pixels=784)
    look = rules.look("key", picture[None])
    stored = io.BytesIO()
    Image.fromarray(picture).resize((112, 84)).save(stored, "png")
    np.testing.assert_array_equal(look.pixels_FHW3[0], np.asarray(Image.open(stored)))


def test_work_is_begun_ahead_of_its_turn_but_not_further_than_asked():
    begun, most, lock = [], [0], threading.Lock()

    def begin(item: int) -> Future[int]:
        with lock:
            begun.append(item)
        return pool.submit(lambda: item * 10)

    with ThreadPoolExecutor(2) as pool:
        for done, result in enumerate(ahead(range(8), begin, 2)):
            assert result == done * 10
            most[0] = max(most[0], len(begun) - done)
            assert len(begun) == min(8, done + 3)
    assert most[0] == 3
