"""Who drives whom: crossing, entering, leaving, too many and too few, on scenes with exact poses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dynamictrl.errors import InputError
from dynamictrl.mini.marionettes import MarionetteScene
from dynamictrl.poses.person_roles import assign_roles, driver_of
from dynamictrl.poses.pose import BODY, NECK, PoseSequence
from dynamictrl.poses.pose_alignment import align

SIZE: dict[str, Any] = {"driving_size": (192, 128), "reference_size": (192, 128)}


def scene(persons: int, character: int = 4, motion: int = 3, frames: int = 12) -> PoseSequence:
    made = MarionetteScene(character, motion, 11, persons=persons, action="wave", close_up=False)
    return made.render(frames, 192, 128, 12, supersampling=1).pose


@pytest.fixture(scope="module")
def two() -> PoseSequence:
    return scene(2)


@pytest.fixture(scope="module")
def one() -> PoseSequence:
    return scene(1)


def chosen(pose: PoseSequence, persons: list[int]) -> PoseSequence:
    ids = np.arange(1, len(persons) + 1, dtype=np.int32)
    return PoseSequence(pose.keypoints[:, persons], pose.scores[:, persons], pose.boxes[:, persons], ids)


def joined(*poses: PoseSequence) -> PoseSequence:
    parts = [np.concatenate([getattr(p, name) for p in poses], axis=1) for name in ("keypoints", "scores", "boxes")]
    return PoseSequence(parts[0], parts[1], parts[2], np.arange(1, parts[1].shape[1] + 1, dtype=np.int32))


def during(pose: PoseSequence, frames: slice) -> PoseSequence:
    """Seen in these frames only."""
    scores = np.zeros_like(pose.scores)
    scores[frames] = pose.scores[frames]
    return PoseSequence(pose.keypoints, scores, pose.boxes, pose.track_ids)


def moved(pose: PoseSequence, across: np.ndarray | float, scale: float = 1.0) -> PoseSequence:
    """Shifted to the right by shares of the frame, for all frames or frame by frame."""
    shift = np.zeros((pose.num_frames, 1, 1, 2), np.float32)
    shift[..., 0] = np.reshape(across, (-1, 1, 1))
    return PoseSequence(pose.keypoints * scale + shift, pose.scores, pose.boxes, pose.track_ids)


def roles(driving: PoseSequence, reference: PoseSequence) -> dict[int, list[int]]:
    return {role.model: role.tracks for role in assign_roles(driving, reference.frames(slice(0, 1)))}


def test_people_are_paired_from_left_to_right_whatever_their_order_in_the_lists(two):
    assert roles(two, two) == {0: [0], 1: [1]}
    swapped = chosen(two, [1, 0])
    assert roles(swapped, two) == {0: [1], 1: [0]}
    assert roles(two, swapped) == {0: [1], 1: [0]}
    # The result is in the image's order.
    for reference in (two, swapped):
        aligned = align(two, reference.frames(slice(0, 1)), **SIZE)
        np.testing.assert_allclose(aligned.keypoints[0, :, NECK], reference.keypoints[0, :, NECK], atol=0.03)


def test_people_who_cross_keep_whom_they_drive(two):
    there = np.linspace(0, 0.45, two.num_frames)
    crossing = joined(moved(chosen(two, [0]), there), moved(chosen(two, [1]), -there))
    ends = crossing.keypoints[-1, :, NECK, 0]
    assert ends[0] > ends[1]
    assert roles(crossing, two) == {0: [0], 1: [1]}
    aligned = align(crossing, two.frames(slice(0, 1)), **SIZE, alignment="limbs")
    across = aligned.keypoints[..., NECK, 0]
    assert across[0, 0] < across[0, 1]
    assert across[-1, 0] > across[-1, 1]


@pytest.mark.parametrize("alignment", ["affine", "limbs"])
def test_two_people_land_on_two_others_and_each_is_fitted_alone(two, alignment):
    """The same performance by the same people, the one half as large and elsewhere: both are found again."""
    left, right = chosen(two, [0]), chosen(two, [1])
    driving = joined(moved(left, 0.2, 0.5), moved(right, 0.1, 0.8))
    aligned = align(driving, two.frames(slice(0, 1)), **SIZE, alignment=alignment)
    seen = two.scores[..., BODY] > 0.3
    away = np.linalg.norm(aligned.keypoints[..., BODY, :] - two.keypoints[..., BODY, :], axis=-1)
    assert away[seen].mean() < 0.02
    assert (aligned.scores == two.scores).all()


def test_an_extra_person_in_the_clip_is_left_out_and_the_largest_drives(two, one):
    small = chosen(moved(two, 0.1, 0.6), [0])
    assert roles(joined(small, one), one) == {0: [1]}
    assert align(joined(small, one), one.frames(slice(0, 1)), **SIZE).num_persons == 1


def test_a_person_of_the_image_whom_nobody_drives_keeps_its_pose(two, one):
    found = roles(one, two)
    assert sorted(len(tracks) for tracks in found.values()) == [0, 1]
    still = next(model for model, tracks in found.items() if not tracks)
    aligned = align(one, two.frames(slice(0, 1)), **SIZE)
    assert aligned.num_persons == 2
    for frame in (0, -1):
        np.testing.assert_array_equal(aligned.keypoints[frame, still], two.keypoints[0, still])


def test_a_small_figure_in_the_image_counts_as_no_person(two, one):
    poster = chosen(moved(two, 0.4, 0.2), [0])
    assert roles(two, joined(one, poster)) in ({0: [0]}, {0: [1]})


def test_someone_who_leaves_and_comes_back_under_another_number_goes_on(two, one):
    back = joined(during(one, slice(0, 4)), during(one, slice(7, 12)))
    for reference in (one, two):
        driven = [tracks for tracks in roles(back, reference).values() if tracks]
        assert [sorted(tracks) for tracks in driven] == [[0, 1]]
    aligned = align(back, one.frames(slice(0, 1)), **SIZE)
    assert aligned.present()[:, 0].tolist() == [True] * 4 + [False] * 3 + [True] * 5
    whole = align(one, one.frames(slice(0, 1)), **SIZE)
    np.testing.assert_allclose(aligned.keypoints[8], whole.keypoints[8], atol=0.02)


def test_another_person_who_enters_later_drives_the_free_one(two):
    late = joined(during(chosen(two, [0]), slice(0, 12)), during(chosen(two, [1]), slice(6, 12)))
    assert roles(late, two) == {0: [0], 1: [1]}
    aligned = align(late, two.frames(slice(0, 1)), **SIZE)
    assert not aligned.present()[:6, 1].any()
    assert aligned.present()[6:].all()
    # One after the other, far apart, and never together: two people if the image has two, one role if it has one.
    relay = joined(during(chosen(two, [0]), slice(0, 5)), during(chosen(two, [1]), slice(7, 12)))
    assert roles(relay, two) == {0: [0], 1: [1]}
    assert sorted(roles(relay, chosen(two, [0]))[0]) == [0, 1]


def test_a_person_seen_twice_for_a_moment_counts_once(one):
    twice = joined(during(one, slice(0, 6)), during(moved(one, 0.02), slice(4, 12)))
    assert sorted(roles(twice, one)[0]) == [0, 1]
    role = assign_roles(twice, one.frames(slice(0, 1)))[0]
    merged = driver_of(role, twice)
    assert merged.num_persons == 1
    assert merged.present().all()


def test_people_with_few_joints_still_find_their_partners(two):
    scores = two.scores.copy()
    scores[:, 0, 2:] = 0
    scores[:, 1, :8] = 0
    scores[:, 1, 14:] = 0
    sparse = PoseSequence(two.keypoints, scores, two.boxes, two.track_ids)
    assert roles(sparse, two) == {0: [0], 1: [1]}
    for alignment in ("affine", "limbs"):
        aligned = align(sparse, two.frames(slice(0, 1)), **SIZE, alignment=alignment)
        seen = scores[..., BODY] > 0.3
        assert np.isfinite(aligned.keypoints).all()
        away = np.linalg.norm(aligned.keypoints[..., BODY, :] - two.keypoints[..., BODY, :], axis=-1)
        assert away[seen].mean() < 0.03


def test_nobody_anywhere_is_refused_on_the_side_where_nobody_is(two):
    for driving, reference, code in (
        (two, PoseSequence.empty(1), "no_person_in_image"),
        (PoseSequence.empty(5), two.frames(slice(0, 1)), "no_person_in_video"),
        (during(two, slice(0, 0)), two.frames(slice(0, 1)), "no_person_in_video"),
    ):
        with pytest.raises(InputError) as caught:
            assign_roles(driving, reference)
        assert caught.value.code == code
