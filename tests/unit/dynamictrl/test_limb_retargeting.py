"""Bone lengths of one person under the motion of another, against the truth of marionettes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from dynamictrl.mini.marionettes import MarionetteScene
from dynamictrl.poses.limb_retargeting import BONES, Lengths, factors, lowest_foot, retarget, with_pelvis
from dynamictrl.poses.pose import BODY, LEFT_ELBOW, LEFT_HAND, LEFT_WRIST, NECK, NOSE, VISIBLE, PoseSequence
from dynamictrl.poses.pose_alignment import align

HEIGHT, WIDTH = 192, 128
SIZE: dict[str, Any] = {"driving_size": (HEIGHT, WIDTH), "reference_size": (HEIGHT, WIDTH)}
PIXELS = np.array([WIDTH, HEIGHT], np.float64)


@dataclass(frozen=True)
class Cast(MarionetteScene):
    """Character 1 is long in the leg and small in the head, character 2 the other way round."""

    def people(self):
        lanky = {"leg": 1.12, "head": 1.0, "shoulder": 0.14, "height": 1.0}
        childlike = {"leg": 0.84, "head": 1.5, "shoulder": 0.1, "height": 0.8}
        return [replace(who, **(lanky if self.character_seed == 1 else childlike)) for who in super().people()]


def performed(character: int, action: str, motion: int = 5, frames: int = 25) -> PoseSequence:
    made = Cast(character, motion, 3, persons=1, action=action, close_up=False)
    return made.render(frames, HEIGHT, WIDTH, 12, supersampling=1).pose


@pytest.fixture(scope="module")
def photo() -> PoseSequence:
    return performed(2, "talk", motion=8, frames=1)


def error(found: PoseSequence, truth: PoseSequence) -> float:
    """Pixels."""
    seen = truth.scores[:, 0, BODY] > VISIBLE
    away = (found.keypoints[:, 0, BODY] - truth.keypoints[:, 0, BODY]) * PIXELS
    return float(np.linalg.norm(away, axis=-1)[seen].mean())


@pytest.mark.parametrize("action", ["wave", "dance", "jumping_jacks", "walk"])
def test_anothers_motion_comes_nearer_to_the_truth_than_one_scale_does(photo, action):
    driving, truth = performed(1, action), performed(2, action)
    limbs, affine = (error(align(driving, photo, **SIZE, alignment=name), truth) for name in ("limbs", "affine"))
    assert limbs < 0.8 * affine
    assert limbs < 6


def test_bones_take_the_reference_persons_lengths_and_keep_their_directions(photo):
    driving = performed(1, "wave")
    points, seen = driving.keypoints[:, 0] * PIXELS, driving.scores[:, 0] > VISIBLE
    built = retarget(points, seen, photo.keypoints[0, 0] * PIXELS, photo.scores[0, 0] > VISIBLE)
    assert built is not None
    for start, end in (
        pair for name in ("upper_arm", "forearm", "thigh", "shin", "neck") for pair in BONES[name].pairs
    ):
        before, after = points[:, end] - points[:, start], built[:, end] - built[:, start]
        ratio = np.linalg.norm(after, axis=-1) / np.linalg.norm(before, axis=-1)
        # One factor for the whole clip: no jitter that was not there.
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)
        turned = (before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]) / (
            np.linalg.norm(before, axis=-1) * np.linalg.norm(after, axis=-1)
        )
        np.testing.assert_allclose(turned, 0, atol=1e-3)
    measured = Lengths.of(*with_pelvis(built, seen))
    wanted = Lengths.of(*with_pelvis(photo.keypoints[:, 0] * PIXELS, photo.scores[:, 0] > VISIBLE))
    for name in ("shoulders", "spine", "thigh", "shin", "ears"):
        ratio = np.nanpercentile(measured.bones[name], 90) / np.nanmax(wanted.bones[name])
        assert ratio == pytest.approx(1, abs=0.12), name


def test_hands_go_with_the_forearm_and_faces_with_the_head(photo):
    driving = performed(1, "wave")
    aligned = align(driving, photo, **SIZE)
    scale = factors(
        *(Lengths.of(*with_pelvis(p.keypoints[:, 0] * PIXELS, p.scores[:, 0] > VISIBLE)) for p in (driving, photo))
    )
    assert scale is not None

    def spread(pose: PoseSequence, joints: slice) -> float:
        return float(np.ptp(pose.keypoints[0, 0, joints] * PIXELS, axis=0).max())

    assert spread(aligned, LEFT_HAND) / spread(driving, LEFT_HAND) == pytest.approx(scale["forearm"], rel=0.01)
    assert spread(aligned, slice(24, 92)) / spread(driving, slice(24, 92)) == pytest.approx(scale["head"], rel=0.01)
    # A childlike head on a childlike body is larger against the legs than the driver's was.
    assert scale["head"] / scale["thigh"] > 1.3
    np.testing.assert_allclose(aligned.keypoints[:, 0, LEFT_HAND.start], aligned.keypoints[:, 0, LEFT_WRIST], atol=1e-3)


@pytest.mark.parametrize("action", ["squat", "march", "jumping_jacks"])
def test_feet_stay_on_the_ground_line(photo, action):
    """The lowest ankle rises and falls as the driver's does, at the image's size, and rests where the image's is."""
    driving = performed(1, action)
    aligned = align(driving, photo, **SIZE)
    depth, driven = (lowest_foot(p.keypoints[:, 0] * PIXELS, p.scores[:, 0] > VISIBLE) for p in (aligned, driving))
    scale = np.ptp(depth) / np.ptp(driven)
    assert 0.5 < scale < 1.1
    np.testing.assert_allclose(depth - depth[0], (driven - driven[0]) * scale, atol=0.05)
    stands = lowest_foot(photo.keypoints[:, 0] * PIXELS, photo.scores[:, 0] > VISIBLE)[0]
    assert np.percentile(depth, 75) == pytest.approx(stands, abs=0.05)


def test_noise_in_the_clip_is_not_made_larger(photo):
    clean = performed(1, "wave")
    noise = np.random.default_rng(0).normal(0, 1.0, clean.keypoints.shape)
    rough = PoseSequence(
        (clean.keypoints + noise / PIXELS).astype(np.float32), clean.scores, clean.boxes, clean.track_ids
    )
    smooth, shaken = (align(p, photo, **SIZE).keypoints[:, 0, BODY] * PIXELS for p in (clean, rough))
    # Two ends of a bone shake: a joint at the end of four bones adds no more than what it shook before.
    trembling = (shaken - smooth) - (shaken - smooth).mean(axis=0)
    assert trembling.std() < 1.3


def test_a_forearm_that_points_at_the_camera_in_the_photo_is_not_taken_for_a_short_one(photo):
    driving = performed(1, "wave")
    whole = align(driving, photo, **SIZE)
    points = photo.keypoints.copy()
    for elbow, wrist, hand in ((3, 4, slice(113, 134)), (LEFT_ELBOW, LEFT_WRIST, LEFT_HAND)):
        points[:, 0, wrist] = points[:, 0, elbow] + 0.3 * (points[:, 0, wrist] - points[:, 0, elbow])
        points[:, 0, hand] = points[:, 0, wrist, None]
    pointing = PoseSequence(points, photo.scores, photo.boxes, photo.track_ids)
    aligned = align(driving, pointing, **SIZE)

    def forearm(pose: PoseSequence) -> np.ndarray:
        return np.linalg.norm((pose.keypoints[:, 0, LEFT_WRIST] - pose.keypoints[:, 0, LEFT_ELBOW]) * PIXELS, axis=-1)

    assert np.median(forearm(aligned) / forearm(whole)) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("shown", [(NOSE, 14, 15, 16, 17), (NOSE, NECK, 2, 5), (*range(8), 14, 15, 16, 17)])
def test_a_photo_of_the_upper_body_alone_places_the_whole(photo, shown):
    scores = np.zeros_like(photo.scores)
    scores[..., list(shown)] = photo.scores[..., list(shown)]
    cut = PoseSequence(photo.keypoints, scores, photo.boxes, photo.track_ids)
    aligned = align(performed(1, "talk", motion=8), cut, **SIZE)
    where = aligned.keypoints[:, 0, NOSE].mean(axis=0)
    np.testing.assert_allclose(where, photo.keypoints[0, 0, NOSE], atol=0.08)
    assert np.isfinite(aligned.keypoints).all()


def test_a_single_frame_drives_and_nothing_in_common_gives_nothing(photo):
    points, seen = photo.keypoints[:, 0] * PIXELS, photo.scores[:, 0] > VISIBLE
    built = retarget(points, seen, points[0], seen[0])
    assert built is not None
    np.testing.assert_allclose(built[0][seen[0]], points[0][seen[0]], atol=1e-6)
    head, legs = np.zeros_like(seen), np.zeros_like(seen)
    head[:, [NOSE, 14, 15]], legs[:, [8, 9, 10]] = True, True
    assert retarget(points, legs, points[0], head[0]) is None
