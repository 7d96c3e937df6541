"""Tracks from sightings made by hand, and from marionettes who cross."""

import numpy as np
import pytest

from dynamictrl.mini.marionettes import MarionetteScene
from dynamictrl.poses.pose import BODY, NECK
from dynamictrl.poses.pose_tracking import Sighting, likeness, track


def person(x: float, y: float = 100.0, size: float = 60.0) -> Sighting:
    rng = np.random.default_rng(0)
    points = np.array([x, y]) + size * rng.uniform(-0.5, 0.5, (134, 2))
    box = np.array([x - size / 2, y - size / 2, x + size / 2, y + size / 2])
    return Sighting(box, points, np.ones(134))


def tracked(sightings, **options):
    return track(sightings, height=200, width=400, **options)


def test_persons_are_told_apart_whatever_order_they_are_found_in():
    frames = [[person(100 + 3 * k), person(300 - 3 * k, size=80)] for k in range(6)]
    frames[2].reverse()
    frames[5].reverse()
    pose = tracked(frames)
    # The larger one comes first.
    assert pose.track_ids.tolist() == [1, 2]
    centres = pose.boxes[..., [0, 2]].mean(axis=-1) * 400
    np.testing.assert_allclose(centres[:, 0], [300 - 3 * k for k in range(6)], rtol=1e-5)
    np.testing.assert_allclose(centres[:, 1], [100 + 3 * k for k in range(6)], rtol=1e-5)


def test_a_person_missed_for_a_few_frames_keeps_its_id_and_is_absent_meanwhile():
    frames = [[person(100)] if k not in (3, 4) else [] for k in range(9)]
    pose = tracked(frames)
    assert pose.num_persons == 1
    assert pose.present()[:, 0].tolist() == [True, True, True, False, False, True, True, True, True]
    assert not pose.scores[3:5].any()


def test_a_gap_that_is_too_long_makes_two_tracks():
    frames = [[person(100)] if k < 4 or k > 7 else [] for k in range(12)]
    assert tracked(frames, longest_gap=3).num_persons == 2
    assert tracked(frames, longest_gap=4).num_persons == 1


def test_a_flicker_is_no_person_unless_the_clip_is_as_short():
    frames = [[person(100)] + ([person(300)] if k == 4 else []) for k in range(8)]
    assert tracked(frames, shortest_track=3).num_persons == 1
    assert tracked([[person(100)]], shortest_track=3).num_persons == 1


def test_no_sightings_give_an_empty_pose_of_the_right_length():
    pose = tracked([[], [], []])
    assert pose.num_persons == 0
    assert pose.num_frames == 3


def test_likeness_is_one_for_the_same_and_zero_for_the_distant():
    assert likeness(person(100), person(100)) > 0.999
    assert likeness(person(50), person(350)) < 1e-6


@pytest.mark.parametrize("hidden", [0.0, 0.25])
@pytest.mark.parametrize("seed", range(4))
def test_two_marionettes_who_cross_keep_their_ids_though_one_hides_the_other(seed: int, hidden: float):
    frames, size = 25, np.array([128.0, 192.0])
    truth = (
        MarionetteScene(seed, seed, seed, persons=2, close_up=False).render(frames, 192, 128, 12, supersampling=1).pose
    )
    apart = np.abs(np.diff(truth.keypoints[:, :, NECK, 0], axis=1)).mean()
    rng, sightings, who = np.random.default_rng(seed), [], {}
    for frame in range(frames):
        shift = np.array([[1.6 * apart * frame / frames, 0]]) * size
        points = [truth.keypoints[frame, 0] * size + shift, truth.keypoints[frame, 1] * size - shift]
        near = abs(points[0][NECK, 0] - points[1][NECK, 0]) < hidden * apart * size[0]
        found = []
        for person in (0,) if near else rng.permutation(2):
            seen = points[person][BODY]
            box = np.concatenate([seen.min(axis=0), seen.max(axis=0)])
            found.append(Sighting(box, points[person], truth.scores[frame, person].astype(float)))
            who[(frame, float(np.float32(points[person][NECK, 0] / size[0])))] = person
        sightings.append(found)
    poses = track(sightings, height=192, width=128)
    assert poses.num_persons == 2
    for person in range(2):
        seen = np.nonzero(poses.present()[:, person])[0]
        assert len({who[(int(frame), float(poses.keypoints[frame, person, NECK, 0]))] for frame in seen}) == 1
