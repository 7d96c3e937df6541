"""Measures of persons and of motion, on poses made for it and on marionettes, whose truth is known."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from dynamictrl.mini.marionettes import MarionetteScene
from dynamictrl.mini.marionettes.clip import MarionetteClip
from dynamictrl.poses.pose import BODY, NUM_KEYPOINTS, RIGHT_WRIST, PoseSequence
from dynamictrl.quality import Samples, measure_motion, measure_people
from dynamictrl.quality.camera import camera_path
from dynamictrl.quality.people import jitter, pose_jump

FPS = 12


def stander(frames: int = 24, x: float = 0.5, height: float = 0.8, seed: int = 3) -> PoseSequence:
    """Someone who does not move; the joints are scattered over their box."""
    box = np.array([x - 0.15, 0.5 - height / 2, x + 0.15, 0.5 + height / 2], np.float32)
    joints = box[:2] + np.random.default_rng(seed).uniform(0.05, 0.95, (NUM_KEYPOINTS, 2)) * (box[2:] - box[:2])
    keypoints = np.tile(joints.astype(np.float32), (frames, 1, 1, 1))
    return PoseSequence(
        keypoints,
        np.ones((frames, 1, NUM_KEYPOINTS), np.float32),
        np.tile(box, (frames, 1, 1)),
        np.array([1], np.int32),
    )


def together(*poses: PoseSequence) -> PoseSequence:
    parts = [np.concatenate([getattr(p, n) for p in poses], axis=1) for n in ("keypoints", "scores", "boxes")]
    return PoseSequence(*parts, np.arange(1, len(poses) + 1, dtype=np.int32))


def samples_of(frames: NDArray[np.uint8]) -> Samples:
    grey = frames if frames.ndim == 3 else frames.mean(axis=-1).astype(np.uint8)
    return Samples(grey, np.arange(len(grey)) / FPS, np.arange(len(grey)))


def wall(frames: int, shift: NDArray[np.float64], seed: int = 0) -> NDArray[np.uint8]:
    """A blotchy wall of 160 x 200 pixels, seen by a camera that moves by `shift` [F, 2] pixels."""
    import cv2

    wide = cv2.resize(np.random.default_rng(seed).integers(0, 255, (60, 60)).astype(np.uint8), (480, 480))
    moves = [np.array([[1, 0, x - 140], [0, 1, y - 140]], np.float64) for x, y in shift[:frames]]
    return np.stack([cv2.warpAffine(wide, move, (200, 160)) for move in moves])


def scene(**fields: object) -> MarionetteClip:
    settings = {"character_seed": 1, "motion_seed": 2, "background_seed": 3, "persons": 1, "close_up": False}
    return MarionetteScene(**{**settings, **fields}).render(30, 192, 128, FPS, supersampling=1)  # type: ignore[arg-type]


def test_dominance_is_the_largest_persons_share_and_passers_by_do_not_count_as_persons():
    small, passer = stander(x=0.2, height=0.4), stander(x=0.8, height=0.4)
    rarely = replace(passer, scores=passer.scores * (np.arange(24) < 2)[:, None, None])
    scores = measure_people(together(stander(), small, rarely))
    assert scores["persons"] == 2
    assert scores["dominance"] == pytest.approx((22 * 2 / 3 + 2 * 1 / 2) / 24)
    assert scores["person_height"] == pytest.approx(0.8)


def test_a_whole_person_is_not_cut_off_and_one_at_the_border_is():
    assert measure_people(stander())["cut_off"] == 0
    leaves = stander()
    leaves.keypoints[12:, 0, RIGHT_WRIST] = (1.0, 0.5)
    assert measure_people(leaves)["cut_off"] == 0.5
    assert measure_people(leaves)["head_cut"] == 0


def test_marionettes_in_a_close_up_are_cut_off_and_others_are_not():
    assert measure_people(scene(action="talk").pose)["cut_off"] == 0
    assert measure_people(scene(action="talk", close_up=True).pose)["cut_off"] == 1


def test_jitter_is_near_nothing_for_a_dance_and_grows_with_the_noise_of_the_pose():
    pose = scene(action="dance").pose
    calm = jitter(pose, 0)
    noise = np.random.default_rng(0).normal(0, 0.03 * 0.7, pose.keypoints.shape).astype(np.float32)
    assert calm < 2.5
    assert jitter(replace(pose, keypoints=pose.keypoints + noise), 0) > 4


def test_nobody_has_no_scores_but_all_their_names():
    nobody = measure_people(PoseSequence.empty(5))
    assert set(nobody.values()) == {0}
    assert set(nobody) == set(measure_people(stander()))


def test_a_camera_is_followed_behind_the_person_and_not_on_them():
    still = np.zeros((24, 2))
    boxes = np.tile(np.array([0.3, 0.1, 0.7, 0.9], np.float32), (24, 1, 1))
    frames = wall(24, still)
    # A textured person who jumps up and down over half of the picture.
    leap = (10 * np.abs(np.sin(np.arange(24)))).astype(int)
    person = wall(1, still, seed=5)[0][20:140, 60:140]
    for frame, up in zip(frames, leap, strict=True):
        frame[24 - up : 24 - up + 120, 60:140] = person
    path = camera_path(frames, np.arange(24) / FPS, boxes)
    assert path.scores()["camera_seen"] == 1
    assert path.scores()["camera_travel"] < 0.01


def test_a_pan_is_measured_in_the_pictures_shorter_side_and_is_smooth():
    pan = np.stack([np.arange(24) * 4.0, np.zeros(24)], axis=-1) - (40, 0)
    scores = camera_path(wall(24, pan), np.arange(24) / FPS, np.zeros((24, 1, 4), np.float32)).scores()
    assert scores["camera_speed"] == pytest.approx(4 * FPS / 160, rel=0.05)
    assert scores["camera_travel"] == pytest.approx(4 * 23 / 160, rel=0.05)
    assert scores["camera_shake"] < 0.02


def test_a_trembling_camera_shakes_and_goes_nowhere():
    tremble = np.random.default_rng(1).normal(0, 4, (24, 2))
    scores = camera_path(wall(24, tremble), np.arange(24) / FPS, np.zeros((24, 1, 4), np.float32)).scores()
    assert scores["camera_shake"] > 0.3
    assert scores["camera_travel"] < 0.15


def test_before_a_plain_wall_the_camera_is_not_seen():
    plain = np.full((12, 160, 200), 90, np.uint8)
    assert camera_path(plain, np.arange(12) / FPS, np.zeros((12, 1, 4), np.float32)).scores()["camera_seen"] == 0


def test_a_still_person_before_a_panning_camera_is_all_camera_and_no_motion():
    pan = np.stack([np.arange(24) * 2.0, np.zeros(24)], axis=-1) - (20, 0)
    pose = stander()
    # The camera carries the person over the picture.
    carried = pose.keypoints + (np.arange(24) * 2.0 / 200)[:, None, None, None] * np.array([1, 0], np.float32)
    moved = replace(pose, keypoints=carried.astype(np.float32))
    scores = measure_motion(samples_of(wall(24, pan)), moved)
    assert scores["body_motion"] < 0.002
    assert scores["body_travel"] < 0.05
    assert scores["camera_share"] > 0.9


def test_a_dancer_before_a_resting_camera_moves_by_themselves():
    clip = scene(action="dance", place="street")
    scores = measure_motion(samples_of(clip.frames), clip.pose)
    assert scores["body_motion"] > 0.04
    assert scores["camera_share"] < 0.4


def test_a_walk_that_the_camera_follows_is_the_persons_travel():
    clip = scene(action="walk", place="street")
    scores = measure_motion(samples_of(clip.frames), clip.pose)
    assert scores["camera_travel"] > 0.2
    assert scores["body_travel"] > 0.2


def test_a_trembling_pose_of_a_still_person_is_hardly_a_motion():
    pose = stander(48)
    noise = np.random.default_rng(0).normal(0, 0.005, pose.keypoints.shape).astype(np.float32)
    scores = measure_motion(samples_of(wall(48, np.zeros((48, 2)))), replace(pose, keypoints=pose.keypoints + noise))
    assert scores["body_motion"] < 0.015


def test_across_a_cut_the_person_jumps_and_in_a_dance_they_do_not():
    one, other = stander(10), stander(10, seed=9)
    cut = PoseSequence(
        np.concatenate([one.keypoints, other.keypoints]),
        np.concatenate([one.scores, other.scores]),
        np.concatenate([one.boxes, other.boxes]),
        one.track_ids,
    )
    assert pose_jump(cut, 9.5) > 0.2
    assert pose_jump(cut, 9, reach=1) > 0.2
    assert pose_jump(cut, 4.5) == 0
    dance = scene(action="dance").pose
    assert max(pose_jump(dance, frame + 0.5) for frame in range(29)) < 0.04


def test_who_is_replaced_by_somebody_else_is_gone():
    one, other = stander(10, x=0.3), stander(10, x=0.7)
    one.scores[5:], other.scores[:5] = 0, 0
    assert pose_jump(together(one, other), 4.5) == 1
    assert pose_jump(PoseSequence.empty(10), 4.5) == 0


def test_only_body_joints_say_what_moves():
    pose = stander()
    pose.keypoints[::2, 0, BODY.stop :] += 0.1
    assert measure_motion(samples_of(wall(24, np.zeros((24, 2)))), pose)["body_motion"] < 1e-9
