"""A picture is read as people see it: bytes count, not names; damage has a name."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from dynamictrl.errors import MediaError
from dynamictrl.media.images import read_image


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()


@pytest.mark.parametrize(("tag", "corner"), [(1, (0, 0)), (2, (0, -1)), (3, (-1, -1)), (6, (0, -1)), (8, (-1, 0))])
def test_the_exif_orientation_is_obeyed(tag: int, corner: tuple[int, int]):
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = tag
    seen = np.asarray(read_image(saved(Image.fromarray(pixels), "PNG", exif=exif)))
    assert seen.shape == ((40, 20, 3) if tag in (6, 8) else (20, 40, 3))
    assert seen[corner].tolist() == [255, 255, 255]
    assert seen.reshape(-1, 3).any(axis=1).sum() == 64


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(mode: str):
    image = Image.new("RGBA", (10, 10), (0, 0, 0, 0))
    image.paste((200, 200, 200, 255), (0, 0, 5, 10))
    if mode == "P":
        data = saved(image, "GIF")
    else:
        data = saved(image.convert(mode), "PNG")
    seen = np.asarray(read_image(data))
    np.testing.assert_allclose(seen[5, 2], 200, atol=2)
    assert seen[5, 7].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "RGB", "I;16"])
def test_every_mode_becomes_rgb_of_8_bits(mode: str):
    if mode == "I;16":
        image = Image.fromarray(np.full((4, 4), 65535, np.uint16))
    else:
        image = Image.new("RGB", (4, 4), "white").convert(mode)
    seen = read_image(saved(image, "TIFF"))
    assert seen.mode == "RGB"
    assert np.asarray(seen).min() >= 254


def test_a_colour_profile_is_turned_into_srgb():
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    image = Image.merge("LAB", [Image.new("L", (4, 4), value) for value in (136, 208, 195)])
    seen = np.asarray(read_image(saved(image, "TIFF", icc_profile=lab.tobytes())))
    np.testing.assert_allclose(seen[0, 0], (255, 0, 0), atol=12)


def test_a_broken_colour_profile_does_not_cost_the_picture():
    data = saved(Image.new("RGB", (4, 4), (10, 200, 30)), "PNG", icc_profile=b"not a profile")
    assert np.asarray(read_image(data))[0, 0].tolist() == [10, 200, 30]


def test_a_name_means_nothing(tmp_path: Path):
    path = tmp_path / "-picture.mp4"
    path.write_bytes(saved(Image.new("RGB", (8, 6), "red"), "JPEG"))
    assert read_image(path).size == (8, 6)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty_file"),
        (b"<html>404</html>", "not_media"),
        (saved(Image.effect_noise((200, 200), 50), "PNG")[:4000], "decode_error"),
        (saved(Image.effect_noise((200, 200), 50), "JPEG")[:2000], "decode_error"),
    ],
    ids=["empty", "html", "half-png", "half-jpeg"],
)
def test_what_is_no_picture_says_why(data: bytes, code: str):
    with pytest.raises(MediaError) as caught:
        read_image(data)
    assert caught.value.code == code


def test_a_bomb_is_refused_before_it_is_unpacked():
    data = saved(Image.new("1", (16000, 16000)), "PNG")
    assert len(data) < 100_000
    with pytest.raises(MediaError) as caught:
        read_image(data)
    assert caught.value.code == "too_large"


def test_too_little_memory_is_not_the_pictures_fault(monkeypatch: pytest.MonkeyPatch):
    def no_memory(*_: object) -> None:
        raise OSError("out of memory when reading image file")

    data = saved(Image.new("RGB", (4, 4)), "PNG")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", no_memory)
    with pytest.raises(MemoryError, match="out of memory"):
        read_image(data)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path):
    with pytest.raises(MediaError, match="nowhere.png") as caught:
        read_image(tmp_path / "nowhere.png")
    assert caught.value.code == "not_found"
    with pytest.raises(MediaError) as caught:
        read_image(tmp_path)
    assert caught.value.code == "unreadable"


def test_every_real_picture_is_read(shared_data: Path):
    sizes = {path.name: read_image(path).size for path in (shared_data / "images").iterdir()}
    assert sizes["moore__anyone-3.png"] == (614, 922)
    assert read_image(shared_data / "odd" / "exif__Portrait_6.jpg").size == (1200, 1800)
    assert read_image(shared_data / "odd" / "musepose__ref.png").size == (704, 1216)
    with pytest.raises(MediaError):
        read_image(shared_data / "odd" / "decord__video_90.mov")
