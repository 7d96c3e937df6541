"""A mark is not seen, is found again after what people do to clips, and is found nowhere else."""

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from dynamictrl.media.invisible_mark import FOUND, find, mark, strongest
from dynamictrl.media.video import crop_to_even, encode_video, read_video
from dynamictrl.mini.marionettes import sample_clip

KEY, PAYLOAD = b"a secret of the service", 0xDEADBEEF


@pytest.fixture(scope="module")
def frames() -> NDArray[np.uint8]:
    return sample_clip(np.random.default_rng(1), num_frames=9, height=320, width=192, fps=12).frames


@pytest.fixture(scope="module")
def marked(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return mark(frames, PAYLOAD, KEY)


def encoded(frames: NDArray[np.uint8], crf: int) -> NDArray[np.uint8]:
    return read_video(encode_video(frames, 12, crf=crf)).frames


def payload(frames: NDArray[np.uint8], key: bytes = KEY) -> int | None:
    found = find(frames, key)
    return None if found is None else found.payload


def test_a_mark_is_40_db_below_the_picture_and_the_same_on_every_frame(
    frames: NDArray[np.uint8], marked: NDArray[np.uint8]
):
    error = marked.astype(np.float64) - frames
    assert 10 * np.log10(255**2 / np.mean(error**2)) >= 40
    assert np.abs(error).max() <= 16
    inside = ((frames > 20) & (frames < 235)).all(axis=0)
    assert (np.ptp(error, axis=0)[inside] == 0).all()
    assert np.array_equal(marked, mark(frames, PAYLOAD, KEY))


@pytest.mark.parametrize("crf", [18, 28])
def test_a_mark_is_found_after_encoding_at_the_projects_own_quality_and_a_worse_one(
    marked: NDArray[np.uint8], crf: int
):
    assert payload(encoded(marked, crf)) == PAYLOAD


def test_a_mark_is_found_after_scaling_and_cropping(marked: NDArray[np.uint8]):
    smaller = np.stack([cv2.resize(frame, (172, 288), interpolation=cv2.INTER_AREA) for frame in marked])
    found = find(encoded(smaller.astype(np.uint8), 23), KEY)
    assert found is not None
    assert (found.payload, abs(found.scale - 0.9) < 0.02) == (PAYLOAD, True)
    assert payload(encoded(crop_to_even(marked[:, 11:-9, 7:-5]), 23)) == PAYLOAD
    assert payload(encoded(crop_to_even(smaller.astype(np.uint8)[:, 5:-4, 3:-6]), 20)) == PAYLOAD


def test_nothing_is_found_without_a_mark_or_with_another_key(frames: NDArray[np.uint8], marked: NDArray[np.uint8]):
    scores = [strongest(frames, KEY).score, *(strongest(marked, bytes([n]) * 16).score for n in range(3))]
    assert max(scores) < FOUND


def test_each_payload_reads_back_as_itself(frames: NDArray[np.uint8]):
    for number in (0, 1, 0x01234567, 2**32 - 1):
        assert payload(mark(frames, number, KEY)) == number
