"""Faces are hidden wherever they are: checked against the exact faces of marionettes."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from dynamictrl.masks.face_blur import FaceRegions, blur_faces, face_regions
from dynamictrl.mini.marionettes import MarionetteScene
from dynamictrl.mini.marionettes.clip import MarionetteClip
from dynamictrl.poses.pose import BODY, FACE, LEFT_EAR, LEFT_EYE, NOSE, RIGHT_EAR, RIGHT_EYE, VISIBLE, PoseSequence

HEIGHT, WIDTH = 192, 128
HEAD = [NOSE, LEFT_EAR, LEFT_EYE, RIGHT_EAR, RIGHT_EYE]


@pytest.fixture(scope="module", params=[("dance", 1, 1), ("walk", 2, 1), ("kick", 4, 2), ("turn", 5, 1)])
def clip(request: pytest.FixtureRequest) -> MarionetteClip:
    action, seed, persons = request.param
    scene = MarionetteScene(seed, seed + 1, seed + 2, persons=persons, action=action)
    return scene.render(18, HEIGHT, WIDTH, 12, supersampling=1)


def covered(clip: MarionetteClip, pose: PoseSequence) -> NDArray[np.bool_]:
    """For every face point that can truly be seen, whether it lies in the region found by `pose`."""
    regions = face_regions(pose, HEIGHT, WIDTH, longest_gap=6)
    points = clip.pose.keypoints[:, :, FACE] * (WIDTH, HEIGHT)
    away = np.linalg.norm(points - regions.circles_FP3[:, :, None, :2], axis=-1)
    return (away <= regions.circles_FP3[:, :, None, 2])[clip.pose.scores[:, :, FACE] > VISIBLE]


def without(pose: PoseSequence, frames: slice, joints: object) -> PoseSequence:
    scores = pose.scores.copy()
    scores[frames, :, joints] = 0  # type: ignore[index]
    return replace(pose, scores=scores)


EVER = slice(None)


WEAKER: dict[str, Callable[[PoseSequence], PoseSequence]] = {
    "all seen": lambda pose: pose,
    "no face points": lambda pose: without(pose, EVER, FACE),
    "shoulders only": lambda pose: without(without(pose, EVER, FACE), EVER, HEAD),
    "a gap": lambda pose: without(pose, slice(6, 12), EVER),
    "found late": lambda pose: without(pose, slice(0, 4), EVER),
    "low scores": lambda pose: replace(pose, scores=np.maximum(pose.scores * 0.35, 0).astype(np.float32)),
}


@pytest.mark.parametrize("weaker", WEAKER)
def test_every_point_of_every_face_is_covered_however_little_of_the_pose_is_seen(clip: MarionetteClip, weaker: str):
    assert covered(clip, WEAKER[weaker](clip.pose)).all()


def test_lower_scores_make_larger_regions_never_smaller(clip: MarionetteClip):
    weaker = replace(clip.pose, scores=clip.pose.scores * np.float32(0.5))
    sure, unsure = (face_regions(pose, HEIGHT, WIDTH).circles_FP3[..., 2] for pose in (clip.pose, weaker))
    assert (unsure >= sure).all()


def detail(picture: NDArray[np.uint8]) -> float:
    """How much brightness bends from pixel to pixel; slow shades of colour have none."""
    return float(np.abs(np.diff(picture.astype(int), n=2, axis=1)).mean())


def test_inside_no_detail_is_left_and_outside_every_pixel_is_as_it_was(clip: MarionetteClip):
    regions = face_regions(clip.pose, HEIGHT, WIDTH)
    blurred, count = blur_faces(clip.frames, regions)
    assert count == clip.pose.num_persons * 18
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    for frame in (0, 9):
        outside = np.ones((HEIGHT, WIDTH), bool)
        for x, y, radius in regions.circles_FP3[frame]:
            outside &= np.hypot(columns - x, rows - y) > 1.3 * radius + 3
            half = int(radius / 2)
            inner = (slice(max(0, int(y) - half), int(y) + half), slice(max(0, int(x) - half), int(x) + half))
            assert detail(blurred[frame][inner]) < 0.25 * detail(clip.frames[frame][inner])
        assert np.array_equal(blurred[frame][outside], clip.frames[frame][outside])


def test_what_a_blur_leaves_does_not_tell_two_faces_apart():
    faces = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3)).astype(np.uint8)
    regions = FaceRegions(np.tile([32.0, 32.0, 40.0], (2, 1, 1)), np.zeros((2, 1), bool), np.zeros((2, 1), bool))
    blurred, _ = blur_faces(faces, regions)
    assert np.abs(faces[0].astype(int) - faces[1]).mean() > 60
    assert np.abs(blurred[0].astype(int) - blurred[1]).mean() < 10


def test_a_person_without_head_or_shoulders_is_lost_unless_they_reach_out_of_the_picture(clip: MarionetteClip):
    headless = without(clip.pose, EVER, slice(0, 8))
    headless = without(without(headless, EVER, HEAD), EVER, FACE)
    assert (headless.scores[..., BODY] > VISIBLE).any()
    assert face_regions(headless, HEIGHT, WIDTH).lost_FP.any()
    boxes = headless.boxes.copy()
    boxes[..., 1] = 0
    assert not face_regions(replace(headless, boxes=boxes), HEIGHT, WIDTH).lost_FP.any()


def test_an_absent_person_is_neither_blurred_nor_lost_beyond_the_gap():
    pose = MarionetteScene(1, 2, 3, persons=1, action="talk").render(24, HEIGHT, WIDTH, 12, supersampling=1).pose
    gone = without(pose, slice(8, None), slice(None))
    regions = face_regions(gone, HEIGHT, WIDTH, longest_gap=4)
    assert (regions.circles_FP3[:, 0, 2] > 0).tolist() == [True] * 12 + [False] * 12
    assert regions.guessed_FP[8:12].all()
    assert not regions.lost_FP.any()
