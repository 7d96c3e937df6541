"""The drawing is DWPose's, and stays readable at every size."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from dynamictrl.poses.pose import BODY, FACE, LEFT_ELBOW, LEFT_HAND, LEFT_SHOULDER, NECK, PoseSequence
from dynamictrl.poses.pose_drawing import draw_pose

STANDING = (
    (0.5, 0.15), (0.5, 0.25), (0.42, 0.25), (0.36, 0.37), (0.33, 0.48), (0.58, 0.25), (0.64, 0.37), (0.67, 0.48),
    (0.45, 0.5), (0.44, 0.68), (0.43, 0.88), (0.55, 0.5), (0.56, 0.68), (0.57, 0.88), (0.48, 0.13), (0.52, 0.13),
    (0.46, 0.14), (0.54, 0.14),
)  # fmt: skip


def standing(frames: int = 1, persons: int = 1, *, parts: tuple[slice, ...] = (BODY,)) -> PoseSequence:
    """A person facing us; persons stand side by side; only `parts` are seen."""
    keypoints = np.full((frames, persons, 134, 2), 0.5, np.float32)
    keypoints[:, :, BODY] = STANDING
    angle = np.linspace(0, 2 * np.pi, 68, endpoint=False)
    keypoints[:, :, FACE] = np.stack([0.5 + 0.05 * np.cos(angle), 0.15 + 0.04 * np.sin(angle)], -1)
    keypoints[:, :, LEFT_HAND] = np.stack([0.67 + 0.004 * np.arange(21), 0.48 + 0.003 * np.arange(21)], -1)
    keypoints[..., 0] += 0.3 * np.arange(persons)[:, None] - 0.15 * (persons - 1)
    scores = np.zeros((frames, persons, 134), np.float32)
    for part in parts:
        scores[:, :, part] = 1
    boxes = np.tile(np.array([0.3, 0.1, 0.7, 0.9], np.float32), (frames, persons, 1))
    return PoseSequence(keypoints, scores, boxes, np.arange(1, persons + 1, dtype=np.int32))


def with_score(pose: PoseSequence, joint: int, score: float) -> PoseSequence:
    scores = pose.scores.copy()
    scores[..., joint] = score
    return replace(pose, scores=scores)


def at(picture: np.ndarray, x: float, y: float) -> list[int]:
    return picture[int(y * picture.shape[0]), int(x * picture.shape[1])].tolist()


@pytest.mark.parametrize("style", ["scaled", "released"])
def test_limbs_are_dim_joints_bright_and_the_first_limb_is_blue(style):
    picture = draw_pose(standing(), 2160, 2160, style=style)[0]
    assert at(picture, 0.46, 0.25) == [0, 0, 153]
    assert at(picture, *STANDING[NECK]) == [0, 85, 255]
    assert at(picture, 0.61, 0.31) == [0, 153, 102]
    assert at(picture, 0.1, 0.1) == [0, 0, 0]


def test_a_released_limb_is_eight_pixels_wide_on_its_canvas():
    picture = draw_pose(standing(), 2160, 2160, style="released")[0]
    shoulder = slice(int(0.23 * 2160), int(0.27 * 2160))
    across = picture[shoulder, int(0.46 * 2160)].any(axis=-1)
    assert 7 <= across.sum() <= 9


def test_colours_are_dimmed_by_the_scores_and_below_the_threshold_nothing_is_drawn():
    half = draw_pose(with_score(standing(), LEFT_ELBOW, 0.5), 2160, 2160)[0]
    assert at(half, *STANDING[LEFT_ELBOW]) == [0, 127, 0]
    # The limb takes the product of both scores, then the shade of limbs.
    assert at(half, 0.61, 0.31) == [0, 76, 51]
    unseen = draw_pose(with_score(standing(), LEFT_ELBOW, 0.29), 2160, 2160)[0]
    assert at(unseen, *STANDING[LEFT_ELBOW]) == [0, 0, 0]
    assert at(unseen, 0.61, 0.31) == [0, 0, 0]
    assert at(unseen, *STANDING[LEFT_SHOULDER]) != [0, 0, 0]


def test_hand_points_are_red_and_face_points_as_grey_as_they_are_sure():
    pose = with_score(standing(parts=(FACE, LEFT_HAND)), 24, 0.4)
    picture = draw_pose(pose, 2160, 2160, style="released")[0]
    assert at(picture, 0.67 + 0.08, 0.48 + 0.06) == [255, 0, 0]
    assert at(picture, 0.55, 0.15) == [102, 102, 102]
    assert at(picture, 0.45, 0.15) == [255, 255, 255]


@pytest.mark.parametrize("style", ["scaled", "released"])
def test_nobody_is_black_and_an_absent_person_draws_nothing(style):
    assert not draw_pose(PoseSequence.empty(2), 192, 128, style=style).any()
    two = standing(1, 2)
    gone = replace(two, scores=two.scores * np.array([1, 0], np.float32)[:, None])
    alone = PoseSequence(two.keypoints[:, :1], two.scores[:, :1], two.boxes[:, :1], two.track_ids[:1])
    np.testing.assert_array_equal(draw_pose(gone, 192, 128, style=style), draw_pose(alone, 192, 128, style=style))


def test_several_people_and_frames_are_drawn():
    pictures = draw_pose(standing(3, 2), 192, 256)
    assert pictures.shape == (3, 192, 256, 3)
    assert pictures.dtype == np.uint8
    assert pictures[0, :, :128].any()
    assert pictures[0, :, 128:].any()


def test_a_scaled_drawing_looks_the_same_at_every_size_and_a_released_one_fades():
    pose = standing()
    large = draw_pose(pose, 1536, 1024)[0]
    shrunk = cv2.resize(large, (128, 192), interpolation=cv2.INTER_AREA)
    small = draw_pose(pose, 192, 128)[0]
    assert np.abs(shrunk.astype(int) - small).mean() < 1.0
    assert draw_pose(pose, 192, 128, style="released").sum() < small.sum() / 3


def test_joints_that_are_no_numbers_or_far_away_are_left_out():
    pose = standing()
    keypoints = pose.keypoints.copy()
    keypoints[0, 0, 3] = np.nan
    keypoints[0, 0, 4] = 1e9
    keypoints[0, 0, 7] = (-0.2, 1.3)
    picture = draw_pose(replace(pose, keypoints=keypoints), 192, 128)[0]
    assert picture.any()
    assert at(picture, 0.39, 0.31) == [0, 0, 0]


def test_an_unknown_style_is_refused():
    with pytest.raises(ValueError, match="'thick'"):
        draw_pose(standing(), 64, 64, style="thick")  # pyright: ignore[reportArgumentType]
