"""Strangers' media: whatever is in a file, the caller gets facts or a coded refusal, and the guard lives on."""

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from dynamictrl.errors import InputError
from serving.config import Limits
from serving.jobs import VideoFacts
from serving.media_guard import ImageFacts, MediaGuard

LIMITS = Limits(image_pixels=200 * 200, frame_pixels=100 * 100, video_seconds=30.0)


@pytest.fixture(scope="module")
def guard() -> Iterator[MediaGuard]:
    guard = MediaGuard(LIMITS, "mini/none", probers=1)
    yield guard
    guard.close()


def written(folder: Path, data: bytes) -> Path:
    path = folder / "medium"
    path.write_bytes(data)
    return path


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def test_an_image_and_a_video_give_their_facts(guard: MediaGuard, person_and_pose: tuple[Path, Path]):
    person, pose = person_and_pose
    assert guard.image(person, "input_reference") == ImageFacts(64, 96)
    facts = guard.video(pose, "pose_video")
    assert facts == VideoFacts(64, 96, 12.0, 17, pytest.approx(17 / 12, abs=0.01))


@pytest.mark.parametrize("data", [b"", b"not an image", png(64, 64)[:60], b"GIF89a" + b"\0" * 20])
def test_what_is_no_image_is_refused_with_its_parameter(guard: MediaGuard, tmp_path: Path, data: bytes):
    with pytest.raises(InputError) as refused:
        guard.image(written(tmp_path, data), "mask")
    assert refused.value.param == "mask"
    assert refused.value.code
    assert str(tmp_path) not in str(refused.value)


@pytest.mark.parametrize("data", [b"", b"not a video", png(64, 64), b"\0\0\0\x18ftypmp42" + b"\0" * 100])
def test_what_is_no_video_is_refused(guard: MediaGuard, tmp_path: Path, data: bytes):
    with pytest.raises(InputError) as refused:
        guard.video(written(tmp_path, data), "driving_video")
    assert refused.value.param == "driving_video"


def test_a_picture_that_unpacks_to_too_many_pixels_is_refused(guard: MediaGuard, tmp_path: Path):
    with pytest.raises(InputError, match="at most 40000") as refused:
        guard.image(written(tmp_path, png(3000, 3000)), "input_reference")
    assert refused.value.code == "image_too_large"


def test_a_prober_that_does_not_answer_in_time_is_killed_and_replaced(
    tmp_path: Path, person_and_pose: tuple[Path, Path]
):
    person, pose = person_and_pose
    hasty = MediaGuard(replace(LIMITS, probe_seconds=0.0), "mini/none", probers=1)
    try:
        with pytest.raises(InputError) as refused:
            hasty.video(pose, "pose_video")
        assert refused.value.code == "media_timeout"
        hasty.limits = LIMITS
        assert hasty.image(person, "input_reference") == ImageFacts(64, 96)
    finally:
        hasty.close()


def test_a_prober_that_dies_over_a_file_is_the_files_fault_and_replaced(
    guard: MediaGuard, person_and_pose: tuple[Path, Path]
):
    prober = guard._free.get()
    process = prober.start()
    process.kill()
    process.wait(10)
    guard._free.put(prober)
    assert guard.image(person_and_pose[0], "mask") == ImageFacts(64, 96)


def test_a_file_over_the_limit_is_not_even_opened(tmp_path: Path):
    guard = MediaGuard(replace(LIMITS, media_bytes=10), "mini/none", probers=1)
    with pytest.raises(InputError) as refused:
        guard.image(written(tmp_path, b"12345678901"), "mask")
    assert refused.value.code == "too_large"


def test_real_broken_media_are_refused_with_a_code_and_real_ones_taken(shared_data: Path):
    guard = MediaGuard(Limits(), "mini/none", probers=1)
    try:
        assert guard.video(shared_data / "clips" / "dynamictrl__motion1.mp4", "driving_video").width == 1080
        for name in ("moviepy__result.webm", "screenpipe__selah.mp4", "androidx__sample_audio_only.mp4",
                     "mp4parse__invalid_userdata.mp4"):  # fmt: skip
            with pytest.raises(InputError) as refused:
                guard.video(shared_data / "odd" / name, "driving_video")
            assert refused.value.code
    finally:
        guard.close()
