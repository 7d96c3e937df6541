"""Driving poses land on the person of the reference image, as in the released recipe, and where that would break."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dynamictrl.errors import ConfigError, InputError
from dynamictrl.poses.pose import BODY, LEFT_HIP, NECK, NOSE, RIGHT_HIP, PoseSequence
from dynamictrl.poses.pose_alignment import FIT_JOINTS, align, main_person, place, released_placement

BODY_XY = np.array(
    [
        (0.5, 0.15), (0.5, 0.25), (0.42, 0.25), (0.36, 0.37), (0.33, 0.48), (0.58, 0.25), (0.64, 0.37), (0.67, 0.48),
        (0.45, 0.5), (0.44, 0.68), (0.43, 0.88), (0.55, 0.5), (0.56, 0.68), (0.57, 0.88), (0.48, 0.13), (0.52, 0.13),
        (0.46, 0.14), (0.54, 0.14),
    ]
)  # fmt: skip


def sequence(bodies: np.ndarray, scores: np.ndarray | None = None) -> PoseSequence:
    """[F, P, 18, 2] -> a pose in which only bodies are seen."""
    frames, persons = bodies.shape[:2]
    keypoints = np.zeros((frames, persons, 134, 2), np.float32)
    keypoints[:, :, BODY] = bodies
    seen = np.zeros((frames, persons, 134), np.float32)
    seen[:, :, BODY] = 1 if scores is None else scores
    boxes = np.concatenate([bodies.min(axis=2), bodies.max(axis=2)], axis=-1).astype(np.float32)
    return PoseSequence(keypoints, seen, boxes, np.arange(1, persons + 1, dtype=np.int32))


def moving(frames: int, *, noise: float = 0.01, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    sway = 0.05 * np.sin(np.linspace(0, 6, frames))[:, None, None] * np.array([1, 0.2])
    return (BODY_XY + sway + noise * rng.standard_normal((frames, 18, 2)))[:, None]


def released(driving: np.ndarray, reference: np.ndarray, driving_size, reference_size) -> tuple[np.ndarray, np.ndarray]:
    """The formulas of the released code, all joints seen: an independent reading of design notes, with np.polyfit."""
    joints = list(FIT_JOINTS)
    clip, model = driving[:, 0, joints], reference[joints]
    a_y, _ = np.polyfit(clip[..., 1].ravel(), np.tile(model[:, 1], len(clip)), 1)
    a_x = a_y / ((driving_size[0] / driving_size[1]) * (reference_size[1] / reference_size[0]))
    b_x = np.mean(np.tile(model[:, 0], len(clip)) - a_x * clip[..., 0].ravel())
    b_y = model[0, 1] - a_y * clip[0, 0, 1]
    return np.array([a_x, a_y]), np.array([b_x, b_y])


def test_it_gives_the_numbers_of_the_released_recipe_where_that_works():
    driving, reference = moving(20), BODY_XY * (0.8, 0.7) + (0.05, 0.2)
    sizes = (1920, 1080), (960, 640)
    found = place(sequence(driving), sequence(reference[None, None]), driving_size=sizes[0], reference_size=sizes[1])
    scale, shift = released(driving, reference, *sizes)
    np.testing.assert_allclose(found.scale, scale, rtol=1e-5)
    np.testing.assert_allclose(found.shift, shift, atol=1e-5)


def test_the_same_person_moved_and_scaled_lands_exactly():
    # In pixels: 1080x1920 frame, reference 512x512 at half the scale, 30 pixels to the right.
    reference_px = BODY_XY * (1080, 1920) * 0.25 + (30, 10)
    reference = sequence((reference_px / 512)[None, None])
    driving = sequence(np.repeat(BODY_XY[None, None], 5, axis=0))
    aligned = align(driving, reference, driving_size=(1920, 1080), reference_size=(512, 512))
    np.testing.assert_allclose(
        aligned.keypoints[:, 0, BODY], np.repeat(reference.keypoints[:, 0, BODY], 5, 0), atol=1e-5
    )
    np.testing.assert_allclose(aligned.boxes[3, 0], reference.boxes[0, 0], atol=1e-5)


def test_the_first_nose_lands_on_the_reference_nose_and_shapes_are_kept():
    driving, reference = sequence(moving(10)), sequence((BODY_XY * 0.6 + 0.2)[None, None])
    aligned = align(driving, reference, driving_size=(720, 1280), reference_size=(960, 640), alignment="affine")
    assert aligned.keypoints[0, 0, NOSE, 1] == pytest.approx(reference.keypoints[0, 0, NOSE, 1], abs=1e-6)
    before = np.diff(driving.keypoints[4, 0, BODY], axis=0) * (1280, 720)
    after = np.diff(aligned.keypoints[4, 0, BODY], axis=0) * (640, 960)
    ratio = np.linalg.norm(after, axis=-1) / np.linalg.norm(before, axis=-1)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)


def test_joints_the_clip_does_not_show_do_not_pull_the_fit():
    scores = np.ones((8, 1, 18))
    scores[:, :, 8:14] = 0
    bodies = np.repeat(BODY_XY[None, None], 8, axis=0).copy()
    bodies[:, :, 8:14] = 0
    reference = sequence((BODY_XY * 0.5 + 0.1)[None, None])
    aligned = align(sequence(bodies, scores), reference, driving_size=(100, 100), reference_size=(100, 100))
    np.testing.assert_allclose(aligned.keypoints[0, 0, :8], reference.keypoints[0, 0, :8], atol=1e-5)


def test_a_bystander_without_a_partner_in_the_image_is_left_out():
    small = BODY_XY * 0.3 + (0.65, 0.1)
    driving = sequence(np.repeat(np.stack([small, BODY_XY])[None], 6, axis=0))
    reference = sequence((BODY_XY * 0.5 + 0.25)[None, None])
    assert main_person(driving) == 1
    aligned = align(driving, reference, driving_size=(100, 100), reference_size=(100, 100))
    assert aligned.num_persons == 1
    np.testing.assert_allclose(aligned.keypoints[2, 0, BODY], reference.keypoints[0, 0, BODY], atol=1e-5)


def test_a_handstand_is_not_turned_over():
    upside_down = BODY_XY * (1, -1) + (0, 1)
    driving = sequence(np.repeat(upside_down[None, None], 5, axis=0))
    found = place(driving, sequence(BODY_XY[None, None]), driving_size=(100, 100), reference_size=(100, 100))
    np.testing.assert_allclose(found.scale, 1, atol=1e-5)


def test_a_person_absent_from_some_frames_stays_absent():
    scores = np.ones((4, 1, 18))
    scores[0] = 0
    bodies = np.repeat(BODY_XY[None, None], 4, axis=0).copy()
    bodies[0] = 0
    reference = sequence((BODY_XY * 0.5 + 0.25)[None, None])
    aligned = align(sequence(bodies, scores), reference, driving_size=(100, 100), reference_size=(100, 100))
    assert not aligned.keypoints[0].any()
    np.testing.assert_allclose(aligned.keypoints[1, 0, BODY], reference.keypoints[0, 0, BODY], atol=1e-5)


def test_with_nothing_in_common_the_clip_keeps_its_shape():
    legs, head = np.zeros((3, 1, 18)), np.zeros((1, 1, 18))
    legs[..., [RIGHT_HIP, LEFT_HIP, 9, 12]] = 1
    head[..., [NOSE, 14, 15]] = 1
    driving = sequence(np.repeat(BODY_XY[None, None], 3, axis=0), legs)
    found = place(driving, sequence(BODY_XY[None, None], head), driving_size=(100, 200), reference_size=(200, 200))
    np.testing.assert_allclose(found.scale, (1, 0.5))
    np.testing.assert_allclose(found.shift, (0, 0.25))


def test_the_released_rule_gives_what_was_worked_out_by_hand():
    """The image shows a neck and a right hip; the clip has two frames of one person and one of two.

    y: pairs (.2, .4) (.4, .8) (.3, .4) (.5, .8), slope .08 / .05 = 1.6. The image's first joint is its neck, at .4, and
    the first nose, seen or not, is at .1: shift .4 - 1.6 * .1 = .24. x: 1.6 / (100/100 * 100/200) = 3.2, shift
    mean(.5, .4) - 3.2 * mean(.5, .4, .6, .5) = .45 - 1.6 = -1.15.
    """
    model, model_scores = np.zeros((1, 1, 18, 2)), np.zeros((1, 1, 18))
    model[0, 0, [NECK, RIGHT_HIP]], model_scores[0, 0, [NECK, RIGHT_HIP]] = [(0.5, 0.4), (0.4, 0.8)], 1
    clip, scores = np.full((3, 2, 18, 2), 0.9), np.zeros((3, 2, 18))
    clip[0, 0, [NOSE, NECK, RIGHT_HIP]] = [(0.5, 0.1), (0.5, 0.2), (0.4, 0.4)]
    clip[1, 0, [NOSE, NECK, RIGHT_HIP]] = [(0.6, 0.2), (0.6, 0.3), (0.5, 0.5)]
    scores[0, 0, RIGHT_HIP] = scores[1, 0, NECK] = 1
    scores[2] = 1
    found = released_placement(
        sequence(clip, scores), sequence(model, model_scores), driving_size=(100, 100), reference_size=(200, 100)
    )
    np.testing.assert_allclose(found.scale, (3.2, 1.6), rtol=1e-6)
    np.testing.assert_allclose(found.shift, (-1.15, 0.24), rtol=1e-5)
    given = {"driving_size": (100, 100), "reference_size": (200, 100), "alignment": "released"}
    aligned = align(sequence(clip, scores), sequence(model, model_scores), **given)
    assert aligned.num_persons == 2
    np.testing.assert_allclose(aligned.keypoints[0, 0, NOSE], (3.2 * 0.5 - 1.15, 0.4), rtol=1e-5)


def test_the_released_rule_and_affine_agree_where_all_is_seen():
    driving, reference = sequence(moving(20)), sequence((BODY_XY * (0.8, 0.7) + (0.05, 0.2))[None, None])
    given = {"driving_size": (1920, 1080), "reference_size": (960, 640)}
    clips = [align(driving, reference, **given, alignment=name) for name in ("released", "affine")]
    np.testing.assert_allclose(clips[0].keypoints, clips[1].keypoints, atol=1e-4)


def test_a_clip_of_several_people_throughout_stops_the_released_rule_only():
    driving = sequence(np.repeat(np.stack([BODY_XY * 0.4, BODY_XY * 0.4 + 0.5])[None], 4, axis=0))
    reference = sequence(BODY_XY[None, None])
    size = {"driving_size": (64, 64), "reference_size": (64, 64)}
    with pytest.raises(InputError, match="affine") as caught:
        align(driving, reference, **size, alignment="released")
    assert caught.value.code == "no_single_person"
    for name in ("affine", "limbs"):
        aligned = align(driving, reference, **size, alignment=name)
        np.testing.assert_allclose(aligned.keypoints[0, 0, BODY], BODY_XY, atol=1e-5)


def test_without_alignment_poses_are_cropped_as_the_frame_would_be():
    driving = sequence(np.repeat(BODY_XY[None, None], 2, axis=0))
    size = {"driving_size": (100, 200), "reference_size": (100, 100)}
    aligned = align(driving, PoseSequence.empty(1), **size, alignment="none")
    np.testing.assert_allclose(aligned.keypoints[0, 0, BODY], (BODY_XY - (0.25, 0)) * (2, 1), atol=1e-6)


def test_an_unknown_alignment_is_refused_with_the_known_ones():
    someone = sequence(BODY_XY[None, None])
    with pytest.raises(ConfigError, match="'similar'.*affine, limbs, released, none"):
        align(someone, someone, driving_size=(64, 64), reference_size=(64, 64), alignment="similar")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("alignment", ["affine", "limbs"])
@pytest.mark.parametrize(
    "hidden", [range(8, 14), [3, 4, 6, 7], range(2, 18), [NOSE], [1, 2, 5], [RIGHT_HIP], range(14)]
)
@pytest.mark.parametrize("whose", ["reference", "clip", "both", "now and then"])
def test_missing_joints_leave_the_person_where_the_image_has_it(alignment, hidden, whose):
    """Cut at the waist, arms hidden, only a nose, only legs and arms ...: what both show still lands exactly."""
    frames = 1 if whose == "both" else 7
    scores, model_scores = np.ones((frames, 1, 18)), np.ones((1, 1, 18))
    scores[:: 2 if whose == "now and then" else 1, :, list(hidden)] = whose == "reference"
    model_scores[..., list(hidden)] = whose in ("clip", "now and then")
    bodies = np.repeat(BODY_XY[None, None], frames, axis=0)
    bodies = np.where(scores[..., None] > 0, bodies, 0)
    reference = sequence((BODY_XY * 0.5 + 0.2)[None, None], model_scores)
    size = {"driving_size": (200, 200), "reference_size": (200, 200)}
    aligned = align(sequence(bodies, scores), reference, **size, alignment=alignment)
    seen = (scores[:, 0] > 0) & (model_scores[0, 0] > 0)
    # One joint in common says where, and not how large.
    if seen.any(axis=0).sum() > 1:
        where = np.broadcast_to(BODY_XY * 0.5 + 0.2, (frames, 18, 2))
        np.testing.assert_allclose(aligned.keypoints[:, 0, BODY][seen], where[seen], atol=1e-4)
    assert np.isfinite(aligned.keypoints).all()


def test_nobody_is_a_fault_of_the_input_that_says_where():
    someone, nobody = sequence(BODY_XY[None, None]), PoseSequence.empty(1)
    unseen = replace(someone, scores=someone.scores * 0)
    for reference in (nobody, unseen):
        with pytest.raises(InputError) as caught:
            align(someone, reference, driving_size=(64, 64), reference_size=(64, 64))
        assert (caught.value.code, caught.value.param) == ("no_person_in_image", "image")
    for driving in (nobody, unseen):
        with pytest.raises(InputError) as caught:
            align(driving, someone, driving_size=(64, 64), reference_size=(64, 64))
        assert (caught.value.code, caught.value.param) == ("no_person_in_video", "driving_video")
