"""How far generated frames are from true ones, and poses and masks from where they should be. Numpy and cv2 only.

Frames are compared on the scale 0..255; uint8 and float input give the same number (uint8 arithmetic wraps, which
made the PSNR of many published tables; see `psnr_uint8_wrapped`). Frame metrics are means over frames, as in DisCo's
evaluation code, whose definitions these are unless said otherwise.

Shape suffixes: F frames, P persons, J joints, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from dynamictrl.errors import InputError
from dynamictrl.poses.pose import (
    BODY,
    FACE,
    LEFT_HAND,
    LEFT_HIP,
    LEFT_SHOULDER,
    RIGHT_HAND,
    RIGHT_HIP,
    RIGHT_SHOULDER,
    VISIBLE,
    PoseSequence,
)

Pixels = NDArray[np.uint8] | NDArray[np.floating]
Part = Literal["body", "hands", "face"]

_PARTS: dict[Part, NDArray[np.intp]] = {
    "body": np.arange(BODY.start, BODY.stop),
    "hands": np.r_[LEFT_HAND, RIGHT_HAND],
    "face": np.arange(FACE.start, FACE.stop),
}
IDENTICAL_PSNR = 100.0
"""What DisCo's code gives for equal frames, where the formula gives infinity."""


def _paired(predicted: Pixels, truth: Pixels) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if predicted.shape != truth.shape or predicted.ndim != 4 or predicted.shape[-1] != 3:
        raise InputError(
            f"frames are {list(predicted.shape)} and {list(truth.shape)}; both must be [frames, height, width, 3] of "
            "one size: resize and cut the clips before scoring them",
            code="frames_shape",
        )
    if len(predicted) == 0:
        raise InputError("there are no frames to compare", code="no_frames")
    return predicted.astype(np.float64), truth.astype(np.float64)


def mean_absolute_error(predicted: Pixels, truth: Pixels) -> float:
    """Mean absolute difference of [F, H, W, 3] frames, 0..255; does not depend on their size."""
    a, b = _paired(predicted, truth)
    return float(np.abs(a - b).mean())


def l1_disco(predicted: Pixels, truth: Pixels) -> float:
    """The L1 column of the published tables: the mean absolute error divided by H * W once more.

    Only comparable at one size: the same frames at half the height and width give four times the number.
    """
    return mean_absolute_error(predicted, truth) / (truth.shape[1] * truth.shape[2])


def psnr(predicted: Pixels, truth: Pixels) -> float:
    """PSNR* in dB: of each frame in floating point, then the mean over frames; equal frames count as 100."""
    a, b = _paired(predicted, truth)
    return _psnr_of(((a - b) ** 2).mean(axis=(1, 2, 3)))


def psnr_uint8_wrapped(predicted: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
    """The "PSNR" of older tables, kept to compare with them: differences and squares wrap modulo 256.

    Never below 24.17 dB, about 27.9 dB for unrelated pictures, 100 dB for some that differ. Not a measure of quality.
    """
    if predicted.dtype != np.uint8 or truth.dtype != np.uint8:
        raise InputError(f"the wrapped PSNR is of uint8 frames, not {predicted.dtype}", code="frames_shape")
    _paired(predicted, truth)
    return _psnr_of(((predicted - truth) ** 2).astype(np.float64).mean(axis=(1, 2, 3)))


def _psnr_of(squared_error_F: NDArray[np.float64]) -> float:
    with np.errstate(divide="ignore"):
        decibels = 10 * np.log10(255.0**2 / squared_error_F)
    return float(np.where(squared_error_F == 0, IDENTICAL_PSNR, decibels).mean())


def ssim(predicted: Pixels, truth: Pixels) -> float:
    """Structural similarity (Wang et al. 2004) as scikit-image's defaults give it on grey frames, mean over frames.

    Uniform 7 x 7 window, sample covariance, K1 0.01, K2 0.03, range 255, 3 border pixels left out.
    """
    a, b = _paired(predicted, truth)
    if min(a.shape[1:3]) < 7:
        raise InputError(f"frames are {a.shape[2]}x{a.shape[1]}; SSIM needs 7 pixels a side", code="frames_shape")
    return float(np.mean([_ssim_of(_grey(x), _grey(y)) for x, y in zip(a, b, strict=True)]))


def _grey(picture: NDArray[np.float64]) -> NDArray[np.float64]:
    # Rounded to whole levels, as converting a uint8 picture does.
    return np.floor(picture @ np.array([0.299, 0.587, 0.114]) + 0.5)


def _ssim_of(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    window, count = (7, 7), 49

    def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(cv2.blur(values, window), np.float64)[3:-3, 3:-3]

    mean_a, mean_b = mean(a), mean(b)
    sample = count / (count - 1)
    variance_a, variance_b = sample * (mean(a * a) - mean_a**2), sample * (mean(b * b) - mean_b**2)
    covariance = sample * (mean(a * b) - mean_a * mean_b)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / (
        (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    )
    return float(similarity.mean())


def seam_contrast(frames: Pixels, borders: Sequence[int], *, reach: int = 4) -> float:
    """How much more a clip changes at the borders of its windows than elsewhere: 1 where no seam can be told.

    `frames` is [F, H, W, 3]; `borders` are the frames at which another window takes over (`WindowPlan.borders`). The
    mean, over the borders, of the greatest change from one frame to the next within `reach` frames, divided by the same
    over all places farther away. NaN where there is no border, no place without one, or no change at all.
    """
    change_F = np.array([np.abs(b.astype(np.float64) - a).mean() for a, b in pairwise(frames)])
    # change_F[i] leads to frame i + 1.
    greatest_F = np.array([change_F[max(0, i - reach) : i + reach].max() for i in range(1, len(frames))])
    near_F = np.zeros(len(greatest_F), np.bool_)
    at = [border - 1 for border in borders if 0 < border < len(frames)]
    for border in at:
        near_F[max(0, border - 2 * reach) : border + 2 * reach + 1] = True
    if not at or near_F.all() or not greatest_F[~near_F].any():
        return float("nan")
    return float(greatest_F[at].mean() / greatest_F[~near_F].mean())


def pck(
    predicted: PoseSequence,
    truth: PoseSequence,
    threshold: float = 0.2,
    *,
    part: Part = "body",
    aspect_ratio: float = 1.0,
) -> float:
    """Percentage of correct keypoints, as a share in [0, 1]: those within `threshold` trunk lengths of the truth.

    Counted are the keypoints visible in the truth; one that the prediction does not see is wrong, and so are all of a
    person it misses. Persons are paired frame by frame, each true one with the nearest predicted one not yet taken.
    `aspect_ratio` is width / height of the frame, for distances in [0, 1] coordinates to mean the same both ways.
    NaN where the truth shows nothing.
    """
    if predicted.num_frames != truth.num_frames:
        raise InputError(
            f"poses of {predicted.num_frames} and {truth.num_frames} frames cannot be compared", code="pose_length"
        )
    joints, stretch = _PARTS[part], np.array([aspect_ratio, 1.0])
    right = counted = 0
    for frame in range(truth.num_frames):
        true_PJ2, found_PJ2 = truth.keypoints[frame] * stretch, predicted.keypoints[frame] * stretch
        true_seen_PJ, found_seen_PJ = truth.scores[frame] > VISIBLE, predicted.scores[frame] > VISIBLE
        partners = _pair_persons(true_PJ2, true_seen_PJ, found_PJ2, found_seen_PJ)
        for person, partner in enumerate(partners):
            visible_J = true_seen_PJ[person, joints]
            counted += int(visible_J.sum())
            if partner is None:
                continue
            distance_J = np.linalg.norm(true_PJ2[person, joints] - found_PJ2[partner, joints], axis=-1)
            reach = threshold * _trunk(true_PJ2[person], true_seen_PJ[person])
            right += int((visible_J & found_seen_PJ[partner, joints] & (distance_J <= reach)).sum())
    return right / counted if counted else float("nan")


def _pair_persons(
    true_PJ2: NDArray[np.float64],
    true_seen_PJ: NDArray[np.bool_],
    found_PJ2: NDArray[np.float64],
    found_seen_PJ: NDArray[np.bool_],
) -> list[int | None]:
    """For each true person of one frame the predicted one, nearest pairs first; None where none is left."""
    distances = []
    for person in range(len(true_PJ2)):
        for candidate in range(len(found_PJ2)):
            common = true_seen_PJ[person] & found_seen_PJ[candidate]
            if common.any():
                gap = np.linalg.norm(true_PJ2[person, common] - found_PJ2[candidate, common], axis=-1)
                distances.append((float(gap.mean()), person, candidate))
    partners: list[int | None] = [None] * len(true_PJ2)
    for _, person, candidate in sorted(distances):
        if partners[person] is None and candidate not in partners:
            partners[person] = candidate
    return partners


def _trunk(points_J2: NDArray[np.float64], seen_J: NDArray[np.bool_]) -> float:
    """Middle of the shoulders to middle of the hips; where a close-up shows no hips, one and a half shoulder widths."""
    shoulders, hips = [RIGHT_SHOULDER, LEFT_SHOULDER], [RIGHT_HIP, LEFT_HIP]
    if seen_J[shoulders].all() and seen_J[hips].all():
        return float(np.linalg.norm(points_J2[shoulders].mean(axis=0) - points_J2[hips].mean(axis=0)))
    if seen_J[shoulders].all():
        return 1.5 * float(np.linalg.norm(points_J2[RIGHT_SHOULDER] - points_J2[LEFT_SHOULDER]))
    extent = np.ptp(points_J2[seen_J], axis=0) if seen_J.any() else np.zeros(2)
    return float(np.linalg.norm(extent)) / 3


def mask_iou(predicted: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
    """Mean intersection over union of label masks [F, H, W]: over the true persons, each in the frames it is in.

    A label predicted where the truth has none lowers nothing here; a person missed counts 0. NaN where the truth is
    empty.
    """
    if predicted.shape != truth.shape:
        raise InputError(
            f"masks are {list(predicted.shape)} and {list(truth.shape)}; they must be of one size", code="mask_shape"
        )
    scores = []
    for label in range(1, int(truth.max(initial=0)) + 1):
        found_FHW, true_FHW = predicted == label, truth == label
        present_F = true_FHW.any(axis=(1, 2))
        union_F = (found_FHW | true_FHW).sum(axis=(1, 2))
        scores.extend(((found_FHW & true_FHW).sum(axis=(1, 2))[present_F] / union_F[present_F]).tolist())
    return float(np.mean(scores)) if scores else float("nan")
