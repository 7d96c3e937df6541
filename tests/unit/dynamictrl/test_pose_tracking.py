"""Tracks from sightings made by hand."""

import numpy as np

from dynamictrl.pose_tracking import Sighting, likeness, track


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
