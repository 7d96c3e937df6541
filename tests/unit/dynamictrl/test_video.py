"""What comes out of a video is what a viewer sees, at its true time; what cannot be read says why."""

from __future__ import annotations

import io
import itertools
import pickle
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from dynamictrl.errors import InputError, MediaError
from dynamictrl.media.video import crop_to_even, encode_video, iter_frames, probe, read_video, write_video

QUADRANTS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255))


def quadrants(height: int, width: int) -> np.ndarray:
    """Red, green / blue, white: tells every turn and flip apart."""
    picture = np.zeros((height, width, 3), np.uint8)
    h, w = height // 2, width // 2
    for colour, (rows, columns) in zip(
        QUADRANTS, itertools.product((slice(0, h), slice(h, None)), (slice(0, w), slice(w, None))), strict=True
    ):
        picture[rows, columns] = colour
    return picture


def counting_clip(count: int, height: int = 64, width: int = 96) -> np.ndarray:
    """Frame i is grey level 10 + 2 i."""
    levels = (10 + 2 * np.arange(count)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def container(
    pictures: list[np.ndarray],
    *,
    name: str = "mp4",
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    times: list[Fraction] | None = None,
    rotation: int | None = None,
    aspect: Fraction | None = None,
    tags: tuple[int, int] | None = None,
    options: dict[str, str] | None = None,
) -> bytes:
    """Bytes of a video made with PyAV alone, so that the reader is not tested against our own writer."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=name) as out:
        stream = out.add_stream(codec, rate=30, options=options or {})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pixel_format
        stream.time_base = Fraction(1, 3000)
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation is not None:
            stream.set_display_rotation(rotation)
        if tags:
            stream.codec_context.colorspace, stream.codec_context.color_range = tags
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            matrix, full = tags or (5, 1)
            frame = frame.reformat(
                format=pixel_format, src_color_range=2, dst_colorspace=matrix, dst_color_range=full, interpolation=4
            )
            frame.pts = round((times[index] if times else Fraction(index, 30)) * 3000)
            frame.time_base = Fraction(1, 3000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return buffer.getvalue()


def colours_of(picture: np.ndarray) -> list[tuple[int, ...]]:
    """The quadrants' colours, snapped to 0 and 255."""
    height, width = picture.shape[:2]
    points = itertools.product((height // 4, 3 * height // 4), (width // 4, 3 * width // 4))
    return [tuple(int(value > 127) * 255 for value in picture[y, x]) for y, x in points]


@pytest.mark.parametrize(("rotation", "quarters"), [(0, 0), (90, 1), (180, 2), (-90, 3)])
def test_a_display_matrix_turns_the_picture_upright(rotation: int, quarters: int):
    data = container([quadrants(64, 96)] * 3, rotation=rotation)
    video = read_video(data)
    upright = np.rot90(quadrants(64, 96), quarters)
    assert video.frames.shape[1:] == upright.shape
    assert colours_of(video.frames[0]) == colours_of(upright)
    info = probe(data)
    assert (info.height, info.width) == upright.shape[:2]
    assert info.rotation == quarters * 90


@pytest.mark.parametrize(("aspect", "size"), [(Fraction(2, 1), (64, 192)), (Fraction(1, 2), (128, 96))])
def test_pixels_that_are_not_square_are_made_square(aspect: Fraction, size: tuple[int, int]):
    data = container([quadrants(64, 96)] * 2, aspect=aspect)
    assert read_video(data).frames.shape[1:3] == size
    assert (probe(data).height, probe(data).width) == size


def test_a_variable_frame_rate_keeps_its_times_and_is_resampled_by_them():
    times = [Fraction(0), Fraction(1, 10), Fraction(5, 10), Fraction(6, 10)]
    pictures = [np.full((64, 96, 3), 10 + 60 * index, np.uint8) for index in range(4)]
    data = container(pictures, times=times, tags=(1, 1))
    as_stored = read_video(data)
    np.testing.assert_allclose(as_stored.timestamps, [0, 0.1, 0.5, 0.6], atol=1e-6)
    even = read_video(data, fps=10)
    np.testing.assert_allclose(even.timestamps, np.arange(8) / 10, atol=1e-9)
    shown = np.round((even.frames.mean(axis=(1, 2, 3)) - 10) / 60).astype(int).tolist()
    # Frame 1 lasts until half-way to frame 2 (0.3 s, the earlier one on a tie); frame 3 lasts one mean step of 0.2 s.
    assert shown == [0, 1, 1, 1, 2, 2, 3, 3]


def test_resampling_to_the_same_rate_changes_nothing():
    data = encode_video(counting_clip(25), 12)
    whole, resampled = read_video(data), read_video(data, fps=12)
    assert whole.fps == 12
    np.testing.assert_array_equal(whole.frames, resampled.frames)


@pytest.mark.parametrize("start", [0.5, 2.0])
def test_a_span_is_the_same_whether_sought_or_decoded_through(start: float):
    data = container(list(counting_clip(100, 32, 32)), options={"g": "10"}, tags=(1, 1))
    whole = read_video(data)
    part = read_video(data, start=start, end=start + 1)
    first = round(start * 30)
    assert len(part.frames) == 30
    np.testing.assert_array_equal(part.frames, whole.frames[first : first + 30])
    np.testing.assert_allclose(part.timestamps, whole.timestamps[first : first + 30], atol=1e-6)


@pytest.mark.parametrize(
    ("pixel_format", "codec", "name", "tags"),
    [
        ("yuv420p", "libx264", "mp4", (5, 1)),
        ("yuvj420p", "libx264", "mp4", (5, 2)),
        ("yuv420p", "libx264", "mp4", (1, 1)),
        ("yuv444p", "libx264", "mp4", (1, 2)),
        ("yuv422p", "libx264", "matroska", (5, 1)),
        ("yuv420p10le", "libx264", "matroska", (1, 1)),
        ("gray", "libx264", "mp4", (5, 1)),
        ("bgr0", "libx264rgb", "mp4", None),
        ("rgb24", "png", "mov", None),
        ("yuv420p", "mpeg4", "avi", None),
    ],
)
def test_colours_survive_every_pixel_format(pixel_format: str, codec: str, name: str, tags: tuple[int, int] | None):
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:32], picture[32:] = (200, 120, 30), (255, 255, 255)
    if pixel_format == "gray":
        picture[:32] = 120
    seen = read_video(container([picture] * 3, pixel_format=pixel_format, codec=codec, name=name, tags=tags)).frames[1]
    np.testing.assert_allclose(seen[16, 16], picture[0, 0], atol=6)
    np.testing.assert_allclose(seen[48, 48], 255, atol=4)


def test_transparent_pixels_are_shown_on_white():
    buffer = io.BytesIO()
    clear = Image.new("RGBA", (31, 17), (10, 200, 10, 0))
    clear.paste((255, 0, 0, 255), (0, 0, 15, 17))
    clear.save(buffer, "GIF", save_all=True, append_images=[clear.rotate(180)], duration=100, disposal=2)
    first = read_video(buffer.getvalue()).frames[0]
    assert first.shape == (17, 31, 3)
    assert first[8, 5].tolist() == [255, 0, 0]
    assert first[8, 25].tolist() == [255, 255, 255]


def test_large_frames_are_shrunk_to_max_pixels_keeping_their_shape():
    video = read_video(encode_video(counting_clip(3, 240, 480), 10), max_pixels=100 * 200)
    assert video.frames.shape[1:3] == (100, 200)


def test_a_frame_that_fits_no_memory_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dynamictrl.media.video.MAX_READ_BYTES", 64 * 96 * 3 * 4)
    with pytest.raises(MediaError, match="more than 4 frames of 96x64") as caught:
        read_video(encode_video(counting_clip(5), 10))
    assert caught.value.code == "too_large"


# What cannot be read.


def truncated_mp4() -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (60, 64, 64, 3), np.uint8)
    data = encode_video(noise, 30)
    return data[: len(data) // 2]


def sound_only() -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        stream = out.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.rate = 44100
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return buffer.getvalue()


def picture_bytes() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    return buffer.getvalue()


def half_a_matroska() -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (90, 64, 64, 3), np.uint8)
    data = container(list(noise), name="matroska", options={"g": "5"})
    return data[: len(data) // 2]


def unknown_codec() -> bytes:
    return encode_video(counting_clip(3), 10).replace(b"avc1", b"zzzz").replace(b"avcC", b"zzzC")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty_file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "not_media"),
        (b"<html><body>404 Not Found</body></html>", "not_media"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n", "not_media"),
        (b"ffconcat version 1.0\nfile /etc/hostname\n", "not_media"),
        (encode_video(counting_clip(3), 10)[:200], "not_media"),
        (picture_bytes(), "still_image"),
        (sound_only(), "no_video_stream"),
        (unknown_codec(), "unsupported_codec"),
        (truncated_mp4(), "decode_error"),
        (half_a_matroska(), "truncated"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)}-bytes",
)
def test_what_cannot_be_read_says_why(data: bytes, code: str):
    with pytest.raises(MediaError) as caught:
        read_video(data)
    assert caught.value.code == code
    # The reason survives the way home from a worker process.
    assert pickle.loads(pickle.dumps(caught.value)).code == code


@pytest.mark.parametrize("data", [truncated_mp4(), half_a_matroska()], ids=["mp4", "matroska"])
def test_what_was_good_before_the_damage_can_be_kept(data: bytes):
    video = read_video(data, partial=True)
    assert 10 < len(video.frames) < 60
    assert np.all(np.diff(video.timestamps) > 0)


def test_a_path_that_is_no_file_is_named(tmp_path: Path):
    with pytest.raises(MediaError, match="nowhere.mp4") as caught:
        probe(tmp_path / "nowhere.mp4")
    assert caught.value.code == "not_found"
    with pytest.raises(MediaError) as caught:
        probe(tmp_path)
    assert caught.value.code == "unreadable"


def test_a_start_behind_the_end_is_refused():
    with pytest.raises(MediaError) as caught:
        read_video(encode_video(counting_clip(10), 10), start=5)
    assert caught.value.code == "no_such_span"


def test_a_frame_beyond_every_use_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dynamictrl.media.video_stream.MAX_FRAME_PIXELS", 64 * 96 - 1)
    with pytest.raises(MediaError, match="frames are 96x64") as caught:
        probe(encode_video(counting_clip(2), 10))
    assert caught.value.code == "too_large"


# Writing.


def test_a_written_video_reads_back_at_its_rate_and_size(tmp_path: Path):
    path = tmp_path / "-clip.mp4"
    frames = counting_clip(37)
    write_video(path, frames, 30000 / 1001)
    video, info = read_video(path), probe(path)
    assert video.frames.shape == frames.shape
    np.testing.assert_allclose(video.frames.mean(axis=(1, 2, 3)), frames[:, 0, 0, 0], atol=2)
    np.testing.assert_allclose(np.diff(video.timestamps), 1001 / 30000, atol=1e-4)
    assert (info.frames, info.codec, info.pixel_format) == (37, "h264", "yuv420p")
    assert info.fps == pytest.approx(30000 / 1001)
    assert list(tmp_path.iterdir()) == [path]


def test_written_colours_are_tagged_and_kept():
    data = encode_video(np.stack([quadrants(64, 64)] * 3), 10, crf=1)
    with av.open(io.BytesIO(data)) as opened:
        context = opened.streams.video[0].codec_context
        assert (context.colorspace, context.color_range, context.color_primaries, context.color_trc) == (1, 1, 1, 1)
    seen = read_video(data).frames[0]
    for y, x, colour in zip((16, 16, 48, 48), (16, 48, 16, 48), QUADRANTS, strict=True):
        np.testing.assert_allclose(seen[y, x], colour, atol=4)


def test_the_same_frames_give_the_same_bytes_with_the_index_in_front():
    rng = np.random.default_rng(1)
    wave = 60 + 40 * np.sin(np.arange(96) / 9 + np.arange(40)[:, None] / 5)
    frames = (wave[:, None, :, None] + rng.integers(0, 30, (40, 96, 96, 3))).astype(np.uint8)
    data = encode_video(frames, 16)
    for size in rng.integers(10**3, 10**6, 12):
        # Memory that others have used: x264 looked into it, until it was told not to.
        used = [np.full(size * part, 200, np.uint8) for part in (1, 2, 3)]
        del used[::2]
        assert data == encode_video(frames, 16)
    assert data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (np.zeros((0, 64, 64, 3), np.uint8), "no_frames"),
        (np.zeros((2, 63, 64, 3), np.uint8), "odd_size"),
        (np.zeros((2, 64, 64, 3), np.float32), "frames_shape"),
        (np.zeros((2, 64, 64), np.uint8), "frames_shape"),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(frames: np.ndarray, code: str, tmp_path: Path):
    with pytest.raises(InputError) as caught:
        write_video(tmp_path / "clip.mp4", frames, 10)
    assert caught.value.code == code
    assert not list(tmp_path.iterdir())


def test_an_odd_size_is_cropped_by_one_line():
    assert crop_to_even(np.zeros((2, 63, 65, 3), np.uint8)).shape == (2, 62, 64, 3)


# Real files.

TRUE_CODES = {
    "androidx__sample_audio_only.mp4": "no_video_stream",
    "decord__corrupted.mp4": "decode_error",
    "exif__Portrait_6.jpg": "still_image",
    "musepose__ref.png": "still_image",
    "moviepy__result.webm": "empty_file",
    "mp4parse__invalid_userdata.mp4": "no_frames",
    "screenpipe__selah.mp4": "not_media",
}
TRUE_SHAPES = {
    # frames, height, width
    "decord__video_90.mov": (3, 568, 320),
    "androidx__portrait_4k60.mp4": (18, 3840, 2160),
    "moviepy__pigs_in_a_polka.gif": (30, 273, 314),
    "-video-with-dash-.mp4": (5, 1, 1),
    "torchcodec__h265_10bits.mp4": (30, 200, 200),
    "androidx__sample_android_slow_motion.mp4": (7, 720, 1280),
    "moviepy__no_duration.webm": (74, 720, 1280),
    "mmaction2__demo_skeleton.mp4": (72, 1080, 1920),
    "intel__asl_again.mkv": (77, 480, 640),
    "askanything__yoga.mp4": (300, 320, 568),
}


def test_every_real_file_gives_its_frames_or_a_true_reason(shared_data: Path):
    found = {}
    for path in sorted([*(shared_data / "clips").iterdir(), *(shared_data / "odd").iterdir()]):
        try:
            count, shape = 0, None
            for _, picture in iter_frames(path):
                count, shape = count + 1, picture.shape
            found[path.name] = (count, *shape[:2])
        except MediaError as error:
            found[path.name] = error.code
    assert {name: value for name, value in found.items() if isinstance(value, str)} == TRUE_CODES
    assert {name: found[name] for name in TRUE_SHAPES} == TRUE_SHAPES


def test_the_good_part_of_a_real_broken_file_can_be_kept(shared_data: Path):
    assert len(read_video(shared_data / "odd" / "decord__corrupted.mp4", partial=True).frames) >= 28


def test_a_real_variable_rate_becomes_constant(shared_data: Path):
    path = shared_data / "clips" / "mmaction2__demo_skeleton.mp4"
    assert np.ptp(np.diff(read_video(path, max_pixels=10_000).timestamps)) > 0.05
    even = read_video(path, fps=16, max_pixels=10_000)
    np.testing.assert_allclose(np.diff(even.timestamps), 1 / 16)
    assert abs(len(even.frames) - 16 * 2.5667) <= 1
