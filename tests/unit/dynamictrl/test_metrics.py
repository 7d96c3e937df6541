"""Scores are the published definitions, checked against golden values and independent formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dynamictrl.errors import InputError
from dynamictrl.metrics import (
    l1_disco,
    mask_iou,
    mean_absolute_error,
    pck,
    psnr,
    psnr_uint8_wrapped,
    seam_contrast,
    ssim,
)
from dynamictrl.poses.pose import BODY, LEFT_WRIST, PoseSequence

BODY_XY = np.array(
    [
        (0.5, 0.15), (0.5, 0.25), (0.42, 0.25), (0.36, 0.37), (0.33, 0.48), (0.58, 0.25), (0.64, 0.37), (0.67, 0.48),
        (0.45, 0.5), (0.44, 0.68), (0.43, 0.88), (0.55, 0.5), (0.56, 0.68), (0.57, 0.88), (0.48, 0.13), (0.52, 0.13),
        (0.46, 0.14), (0.54, 0.14),
    ]
)  # fmt: skip


def flat(level: int, size: int = 256) -> np.ndarray:
    return np.full((1, size, size, 3), level, np.uint8)


def noise(seed: int, frames: int = 2, size: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, size, size, 3), np.uint8)


@pytest.mark.parametrize(
    ("a", "b", "wrapped", "true"),
    [(100, 110, 28.1308, 28.1308), (100, 116, 100.0, 24.0484), (100, 130, 26.9251, 18.5884), (0, 255, 48.1308, 0.0)],
)
def test_psnr_is_the_true_one_and_the_wrapped_one_is_the_old_tables(a: int, b: int, wrapped: float, true: float):
    assert psnr(flat(a), flat(b)) == pytest.approx(true, abs=1e-4)
    assert psnr_uint8_wrapped(flat(a), flat(b)) == pytest.approx(wrapped, abs=1e-4)


def test_l1_is_divided_by_the_size_as_in_the_tables():
    assert l1_disco(flat(100), flat(110)) == pytest.approx(1.52588e-4, rel=1e-5)
    assert l1_disco(flat(100, 512), flat(110, 512)) == pytest.approx(1.52588e-4 / 4, rel=1e-5)
    assert mean_absolute_error(flat(100), flat(110)) == 10


def test_unrelated_noise_has_the_known_scores():
    a, b = noise(0, 4, 128), noise(1, 4, 128)
    assert psnr(a, b) == pytest.approx(7.75, abs=0.1)
    assert psnr_uint8_wrapped(a, b) == pytest.approx(27.9, abs=0.2)


def test_bytes_and_floats_give_the_same_scores():
    a, b = noise(0), noise(1)
    for metric in (psnr, ssim, l1_disco, mean_absolute_error):
        assert metric(a, b) == pytest.approx(metric(a.astype(np.float32), b.astype(np.float64)), rel=1e-12)


def test_psnr_is_the_mean_over_frames_and_equal_frames_count_as_a_hundred():
    a = np.concatenate([flat(100), flat(100)])
    b = np.concatenate([flat(100), flat(110)])
    assert psnr(a, b) == pytest.approx((100 + 28.1308) / 2, abs=1e-4)


def ssim_by_windows(a: np.ndarray, b: np.ndarray) -> float:
    """The definition, window by window with numpy's own sample covariance."""
    weights = np.array([0.299, 0.587, 0.114])
    x, y = np.floor(a @ weights + 0.5), np.floor(b @ weights + 0.5)
    scores = []
    for row in range(x.shape[0] - 6):
        for column in range(x.shape[1] - 6):
            p, q = x[row : row + 7, column : column + 7].ravel(), y[row : row + 7, column : column + 7].ravel()
            cov = np.cov(p, q, ddof=1)
            c1, c2 = 2.55**2, 7.65**2
            scores.append(
                (2 * p.mean() * q.mean() + c1)
                * (2 * cov[0, 1] + c2)
                / ((p.mean() ** 2 + q.mean() ** 2 + c1) * (cov[0, 0] + cov[1, 1] + c2))
            )
    return float(np.mean(scores))


def test_ssim_is_the_definition_window_by_window():
    a, b = noise(3, 1, 20), noise(4, 1, 20) // 2 + noise(3, 1, 20) // 2
    assert ssim(a, b) == pytest.approx(ssim_by_windows(a[0], b[0]), abs=1e-9)
    assert ssim(a, a) == pytest.approx(1)
    assert ssim(flat(100), flat(110)) == pytest.approx(
        (2 * 100 * 110 + 2.55**2) / (100**2 + 110**2 + 2.55**2), rel=1e-9
    )


def test_clips_of_different_counts_or_sizes_are_refused_not_cut():
    for other in (noise(1, 3), noise(1, 2, 16), noise(1)[..., 0]):
        with pytest.raises(InputError):
            psnr(noise(0), other)
    with pytest.raises(InputError, match="no frames"):
        ssim(noise(0, 0), noise(1, 0))


def poses(bodies: np.ndarray, score: float = 1.0) -> PoseSequence:
    """[F, P, 18, 2] with only bodies seen."""
    frames, persons = bodies.shape[:2]
    keypoints, scores = np.zeros((frames, persons, 134, 2), np.float32), np.zeros((frames, persons, 134), np.float32)
    keypoints[:, :, BODY], scores[:, :, BODY] = bodies, score
    return PoseSequence(
        keypoints, scores, np.zeros((frames, persons, 4), np.float32), np.arange(1, persons + 1, dtype=np.int32)
    )


def test_keypoints_within_reach_are_correct_and_others_are_not():
    truth = poses(np.repeat(BODY_XY[None, None], 3, axis=0))
    assert pck(truth, truth) == 1
    # The trunk is a quarter of the frame high, so 0.2 of it is 0.05.
    shifted = BODY_XY + (0.049, 0)
    assert pck(poses(np.repeat(shifted[None, None], 3, axis=0)), truth) == 1
    bad_wrist = BODY_XY.copy()
    bad_wrist[LEFT_WRIST] += (0.06, 0)
    assert pck(poses(np.repeat(bad_wrist[None, None], 3, axis=0)), truth) == pytest.approx(17 / 18)
    assert pck(poses(np.repeat(bad_wrist[None, None], 3, axis=0)), truth, 0.3) == 1
    # In a frame twice as wide as high the same shift is twice as far.
    assert pck(poses(np.repeat(shifted[None, None], 3, axis=0)), truth, aspect_ratio=2.0) < 0.1


def test_a_person_missed_is_wrong_and_the_order_of_persons_does_not_matter():
    two = np.stack([BODY_XY * 0.5, BODY_XY * 0.5 + (0.5, 0)])[None]
    assert pck(poses(two[:, ::-1]), poses(two)) == 1
    assert pck(poses(two[:, :1]), poses(two)) == 0.5
    assert pck(PoseSequence.empty(1), poses(two)) == 0
    assert pck(poses(two, score=0.1), poses(two)) == 0
    assert math.isnan(pck(poses(two), PoseSequence.empty(1)))
    assert math.isnan(pck(poses(two), poses(two), part="hands"))


def test_mask_overlap_is_counted_person_by_person():
    truth = np.zeros((2, 8, 8), np.uint8)
    truth[:, :4, :4], truth[0, 4:, 4:] = 1, 2
    assert mask_iou(truth, truth) == 1
    half = truth.copy()
    half[:, :2, :4] = 0
    # Person 1 has half in both frames, person 2 is whole in the one frame it is in.
    assert mask_iou(half, truth) == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert mask_iou(np.where(truth == 1, 2, 0).astype(np.uint8), truth) == 0
    assert math.isnan(mask_iou(truth, np.zeros_like(truth)))


def drifting(count: int) -> np.ndarray:
    """A bright bar that wanders at a steady pace."""
    clip = np.zeros((count, 24, 80, 3), np.uint8)
    for index in range(count):
        clip[index, :, index % 60 : index % 60 + 12] = 200
    return clip


def test_a_planted_seam_stands_out_by_its_height_and_a_seamless_clip_does_not():
    clip, borders = drifting(60), [20, 40]
    assert seam_contrast(clip, borders) == pytest.approx(1)
    darker = clip.copy()
    darker[20:40] //= 2
    darker[20:40] += 30
    assert seam_contrast(darker, borders) > 3
    # A seam elsewhere is no seam of these windows.
    assert seam_contrast(darker, [30, 50]) < 1
    jumping = np.concatenate([clip[:20], drifting(60)[35:55], clip[40:]])
    assert seam_contrast(jumping, borders) > 5


def test_a_clip_without_borders_or_movement_has_no_contrast():
    assert np.isnan(seam_contrast(drifting(20), []))
    assert np.isnan(seam_contrast(np.repeat(drifting(1), 40, axis=0), [20]))
    assert np.isnan(seam_contrast(drifting(9), [4]))
