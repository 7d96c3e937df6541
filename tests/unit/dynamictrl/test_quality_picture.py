"""Measures of a clip's picture: on generated pictures, on marionettes, and on real clips where they are at hand."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from dynamictrl.media.video import encode_video
from dynamictrl.mini.marionettes import MarionetteScene
from dynamictrl.quality import Samples, measure_picture, read_samples
from dynamictrl.quality.frame_edges import bars, seam
from dynamictrl.quality.lettering import lettering
from dynamictrl.quality.light import exposure, jump, standstill
from dynamictrl.quality.overlay import overlay
from dynamictrl.quality.samples import RATE
from dynamictrl.quality.sharpness import sharpness

Grey = NDArray[np.uint8]


def grey(frames: NDArray[np.uint8]) -> Grey:
    return np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames])


def scenery(seed: int, height: int = 240, width: int = 320) -> Grey:
    """Blobs of all sizes with sharp edges: what a landscape is to these measures."""
    rng, picture = np.random.default_rng(seed), np.full((height, width), 120, np.uint8)
    for _ in range(60):
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        axes = (int(rng.integers(4, 60)), int(rng.integers(4, 40)))
        cv2.ellipse(picture, centre, axes, float(rng.uniform(0, 180)), 0, 360, int(rng.integers(20, 235)), -1)
    return picture


def panned(seed: int, frames: int, step: int = 3) -> Grey:
    wide = scenery(seed, 160, 240 + step * frames)
    return np.stack([wide[:, step * i : step * i + 240] for i in range(frames)])


@pytest.fixture(scope="module")
def dancer() -> Grey:
    return grey(MarionetteScene(1, 2, 3, persons=1, action="dance", place="park").render(30, 320, 192, 12).frames)


def times(frames: Grey) -> NDArray[np.float64]:
    return np.arange(len(frames)) / RATE


def test_a_video_is_sampled_at_most_twelve_times_a_second_and_shown_whole_a_few_times():
    frames = np.repeat(panned(1, 48)[..., None], 3, axis=3)
    samples = read_samples(encode_video(frames, 24))
    assert (len(samples.small_FHW), samples.small_FHW.shape[1:]) == (24, (160, 240))
    assert 4 <= len(samples.details) <= 8
    assert samples.indices_F.tolist() == list(range(0, 48, 2))
    slow = read_samples(encode_video(frames[:10], 5))
    assert len(slow.small_FHW) == 10
    assert slow.seconds == pytest.approx(1.8)


@pytest.mark.parametrize("blur", [1.0, 2.0, 4.0])
def test_sharpness_is_what_the_detail_is_worth_in_pixels_and_falls_with_blur(blur: float):
    sharp = scenery(3, 480, 640)
    worth = sharpness([cv2.GaussianBlur(sharp, (0, 0), blur)])
    # An edge of standard deviation s is pixel sharp at 0.6 / s of the size.
    assert worth == pytest.approx(480 * 0.6 / blur, rel=0.25)


def test_neither_noise_nor_low_contrast_nor_enlarging_deceives_the_sharpness():
    small = np.asarray(cv2.GaussianBlur(scenery(3, 240, 320), (0, 0), 0.8), np.uint8)
    worth = sharpness([small])
    enlarged = cv2.resize(small, (960, 720), interpolation=cv2.INTER_CUBIC)
    noise = np.random.default_rng(0).normal(0, 6, enlarged.shape)
    noisy = np.clip(enlarged + noise, 0, 255).astype(np.uint8)
    pale = (100 + enlarged.astype(float) / 4).astype(np.uint8)
    assert worth < 240
    for picture in (enlarged, noisy, pale):
        assert sharpness([np.asarray(picture, np.uint8)]) == pytest.approx(worth, rel=0.4)


def test_a_plain_picture_has_no_detail():
    assert sharpness([np.full((240, 320), 90, np.uint8)]) == 0


def test_exposure_tells_dark_flat_and_burnt_out_pictures_from_a_good_one():
    good = exposure(panned(1, 4))
    dark = exposure((panned(1, 4) * 0.1).astype(np.uint8))
    burnt = exposure(np.clip(panned(1, 4).astype(int) * 4 - 200, 0, 255).astype(np.uint8))
    flat = exposure((110 + panned(1, 4) * 0.1).astype(np.uint8))
    assert dark["brightness"] < 25 < good["brightness"]
    assert flat["contrast"] < 30 < 150 < good["contrast"]
    assert good["clipped"] < 0.02 < 0.5 < burnt["clipped"]


def test_a_photograph_is_still_after_encoding_and_someone_who_breathes_is_not():
    photograph = np.repeat(scenery(5)[None, ..., None], 48, axis=0).repeat(3, axis=3)
    noise = np.random.default_rng(0).normal(0, 2, photograph.shape)
    samples = read_samples(encode_video(np.clip(photograph + noise, 0, 255).astype(np.uint8), 24, crf=23))
    assert standstill(samples.small_FHW, samples.times_F)["frozen"] == 1
    calm = grey(MarionetteScene(1, 2, 3, persons=1, action="talk", place="park").render(30, 320, 192, 12).frames)
    assert standstill(calm, times(calm)) == {"black": 0, "still": 0, "frozen": 0}


def test_a_slide_show_is_mostly_still_and_a_recording_that_froze_for_a_third_is_said_to():
    slides = np.concatenate([np.repeat(scenery(seed)[None], 12, axis=0) for seed in range(3)])
    assert standstill(slides, times(slides))["still"] > 0.9
    moving = panned(2, 31)
    moving[10:21] = moving[10]
    frozen = standstill(moving, times(moving))
    assert frozen["frozen"] == frozen["still"] == pytest.approx(1 / 3, abs=0.01)


def test_a_fade_to_black_is_counted():
    frames = panned(2, 20)
    frames[15:] = 3
    assert standstill(frames, times(frames))["black"] == 0.25


def test_a_cut_is_a_jump_at_its_time_and_a_flash_a_pan_or_a_dance_is_none(dancer: Grey):
    cut = np.concatenate([panned(1, 12), panned(8, 12)])
    found = jump(cut, times(cut))
    assert found["picture_jump"] > 0.4
    assert found["picture_jump_at"] == pytest.approx(11.5 / 12)
    flash = panned(1, 24)
    flash[12] = 250
    for calm in (flash, panned(1, 24), dancer):
        assert jump(calm, times(calm))["picture_jump"] < 0.2


@pytest.mark.parametrize("colour", [0, 255, 90])
def test_bars_of_any_colour_are_found_and_measured(colour: int):
    frames = panned(4, 8)
    frames[:, :, :40] = frames[:, :, -20:] = colour
    share, inside = bars(frames)
    assert share == pytest.approx(60 / 240)
    assert inside == (0, 160, 40, 220)


def test_a_plain_wall_or_a_night_is_no_bar(dancer: Grey):
    studio = grey(MarionetteScene(1, 2, 3, persons=1, place="studio", wall="white").render(8, 320, 192, 12).frames)
    night = grey(MarionetteScene(1, 2, 3, persons=1, place="night city").render(8, 320, 192, 12).frames)
    assert [bars(frames)[0] for frames in (studio, night, dancer)] == [0, 0, 0]


def test_a_divider_between_two_pictures_is_a_seam_and_a_horizon_is_none(dancer: Grey):
    both = np.concatenate([panned(4, 8)[:, :, :120], panned(9, 8)[:, :, :120]], axis=2)
    both[:, :, 119:121] = 255
    whole = (0, 160, 0, 240)
    assert seam(both, whole) > 0.9
    assert seam(both.transpose(0, 2, 1), (0, 240, 0, 160)) > 0.9
    horizon = panned(4, 8)
    horizon[:, :70] = 200
    for calm in (panned(4, 8), horizon):
        assert seam(calm, whole) < 0.8
    assert seam(dancer, (0, 320, 0, 192)) < 0.8


def subtitle(picture: Grey, text: str = "follow me for more") -> Grey:
    shown = picture.copy()
    for colour, width in ((0, 6), (255, 2)):
        cv2.putText(shown, text, (20, 200), cv2.FONT_HERSHEY_SIMPLEX, 0.8, colour, width, cv2.LINE_AA)
    return shown


def test_a_subtitle_is_lettering_and_its_area_is_measured():
    pictures = [subtitle(scenery(seed)) for seed in range(6)]
    assert lettering([scenery(seed) for seed in range(6)]) < 0.005
    # 18 letters of 0.8 are about 260 x 20 pixels of 320 x 240.
    assert 0.03 < lettering(pictures) < 0.12


def test_print_that_moves_along_is_no_overlay():
    shirts = [np.roll(subtitle(np.full((240, 320), 120, np.uint8)), 25 * i, axis=0) for i in range(6)]
    assert lettering(shirts) == 0


def test_a_logo_stays_while_the_camera_moves_and_nothing_is_said_where_it_rests():
    frames = panned(6, 24)
    marked = frames.copy()
    logo = cv2.resize(np.random.default_rng(0).integers(0, 2, (6, 6)).astype(np.uint8) * 255, (40, 40), interpolation=0)
    marked[:, 10:50, 10:50] = logo
    assert overlay(frames, camera_travel=0.4) == 0
    assert overlay(marked, camera_travel=0.4) == pytest.approx(40 * 40 / (160 * 240), rel=0.6)
    assert overlay(np.repeat(frames[:1], 24, axis=0), camera_travel=0.0) == 0


def test_all_scores_of_the_picture_are_finite_also_for_one_frame():
    one = scenery(1)
    scores = measure_picture(Samples(one[None], np.zeros(1), np.zeros(1, np.int64), [one]))
    assert all(np.isfinite(value) for value in scores.values())
    assert scores["frozen"] == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("animatex__dance_2.mp4", {"bars": (0.15, 0.2), "sharpness": (220, 320), "frozen": (0, 0.05)}),
        ("moviepy__chaplin.mp4", {"bars": (0.2, 0.25), "lettering": (0, 0.01)}),
        ("dynamictrl__motion1.mp4", {"lettering": (0.03, 0.12), "bars": (0, 0), "sharpness": (600, 768)}),
        ("intel__asl_again.mkv", {"lettering": (0, 0.01), "picture_jump": (0, 0.2), "sharpness": (400, 480)}),
    ],
)
def test_real_clips_measure_as_they_look(name: str, expected: dict[str, tuple[float, float]], shared_data: Path):
    scores = measure_picture(read_samples(shared_data / "clips" / name))
    for score, (low, high) in expected.items():
        assert low <= scores[score] <= high, f"{score} is {scores[score]:.3f}"
