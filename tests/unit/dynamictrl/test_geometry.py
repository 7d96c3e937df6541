"""What may be rendered, and how pictures are fitted to it."""

import numpy as np
import pytest
from PIL import Image

from dynamictrl import geometry
from dynamictrl.errors import InputError


@pytest.mark.parametrize("count", [5, 9, 25, 37, 81])
def test_every_4k_plus_1_is_legal(count):
    geometry.check_num_frames(count)
    assert geometry.legal_frames_below(count) == geometry.nearest_frames(count) == count
    assert geometry.latent_frames(count) == (count + 3) // 4


@pytest.mark.parametrize(
    ("count", "named"),
    [
        (24, "nearest are 21 and 25"),
        (26, "nearest are 25 and 29"),
        (36, "nearest are 33 and 37"),
        (4, "smallest is 5"),
        (1, "smallest is 5"),
        (-3, "smallest is 5"),
    ],
)
def test_an_illegal_count_is_refused_with_its_neighbours(count, named):
    with pytest.raises(InputError, match=f"^{count} frames .* the {named}") as caught:
        geometry.check_num_frames(count)
    assert caught.value.code == "bad_num_frames"
    assert caught.value.param == "num_frames"


def test_frames_that_do_not_suffice_for_the_shortest_clip_count_for_nothing():
    assert [geometry.legal_frames_below(n) for n in (0, 1, 4, 5, 8, 9, 38)] == [0, 0, 0, 5, 5, 9, 37]


@pytest.mark.parametrize(("height", "width"), [(1360, 768), (192, 128), (16, 16)])
def test_multiples_of_16_are_legal_sizes(height, width):
    geometry.check_size(height, width)


@pytest.mark.parametrize(
    ("height", "width", "named"), [(1000, 768, "768x992"), (768, 1000, "992x768"), (0, 8, "16x16"), (-16, 32, "32x16")]
)
def test_an_illegal_size_is_refused_with_the_nearest(height, width, named):
    with pytest.raises(InputError, match=f"{width}x{height}.* {named}") as caught:
        geometry.check_size(height, width)
    assert caught.value.code == "bad_size"


def test_cover_crop_keeps_the_aspect_and_the_centre():
    """A wide picture made square loses its left and right thirds, not its shape."""
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    fitted = geometry.cover_crop(Image.fromarray(wide), 20, 20)
    assert isinstance(fitted, Image.Image)
    assert fitted.size == (20, 20)
    assert np.asarray(fitted)[:, 6:-6].min() == 255


def test_frames_and_a_picture_are_fitted_alike():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, 40, 24, 3), dtype=np.uint8)
    fitted = geometry.cover_crop(frames, 32, 32)
    alone = geometry.cover_crop(Image.fromarray(frames[1]), 32, 32)
    assert isinstance(fitted, np.ndarray)
    assert np.array_equal(fitted[1], np.asarray(alone))


def test_masks_stay_labels_and_equal_sizes_stay_untouched():
    masks = np.random.default_rng(0).integers(0, 3, (2, 30, 20), dtype=np.uint8)
    fitted = geometry.cover_crop(masks, 16, 16, resample=Image.Resampling.NEAREST)
    assert set(np.unique(fitted)) <= {0, 1, 2}
    assert fitted.shape == (2, 16, 16)
    assert geometry.cover_crop(masks, 30, 20) is masks


def test_too_few_frames_are_refused_with_what_there_is():
    assert geometry.consecutive_indices(10, 5, start=5).tolist() == [5, 6, 7, 8, 9]
    with pytest.raises(InputError, match=r"37 frames were asked for and the clip has 30; ask for at most 29") as caught:
        geometry.consecutive_indices(30, 37)
    assert caught.value.code == "too_few_frames"
    with pytest.raises(InputError, match="the clip has 3; give a longer clip"):
        geometry.consecutive_indices(3, 5)
