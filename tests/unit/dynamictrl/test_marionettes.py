"""The marionettes: what is said of them is true, and the same seeds give the same bytes."""

import json

import numpy as np
import pytest

from dynamictrl.errors import ConfigError
from dynamictrl.media.video import read_video
from dynamictrl.mini.marionettes import MarionetteScene, sample_clip, write_marionettes
from dynamictrl.mini.marionettes.motion import ACTIONS
from dynamictrl.poses.pose import BODY, FACE, LEFT_HAND, LEFT_WRIST, RIGHT_HAND, RIGHT_WRIST, PoseSequence


def _clip(seed: int, **options):
    return sample_clip(np.random.default_rng(seed), 9, 192, 128, 12, **options)


def test_a_clip_has_the_shapes_that_were_asked_for():
    clip = _clip(1, persons=2)
    assert clip.frames.shape == (9, 192, 128, 3)
    assert clip.frames.dtype == np.uint8
    assert clip.pose.keypoints.shape == (9, 2, 134, 2)
    assert clip.persons.shape == clip.clothes.shape == (9, 192, 128)
    assert set(np.unique(clip.persons)) == {0, 1, 2}
    assert set(np.unique(clip.clothes)) == {0, 1}
    assert clip.attributes["count"] == 2


def test_the_same_seed_gives_the_same_clip_and_another_seed_another():
    one, same, other = _clip(5), _clip(5), _clip(6)
    np.testing.assert_array_equal(one.frames, same.frames)
    np.testing.assert_array_equal(one.pose.keypoints, same.pose.keypoints)
    assert one.caption == same.caption
    assert not np.array_equal(one.frames, other.frames)


@pytest.mark.parametrize("action", sorted(ACTIONS))
def test_seen_keypoints_lie_on_the_person_and_the_person_in_the_box(action):
    clip = MarionetteScene(11, 12, 13, persons=1, action=action, close_up=False).render(8, 256, 256, 6)
    seen = clip.pose.scores[:, 0] > 0.9
    place = np.floor(clip.pose.keypoints[:, 0] * 256).astype(int)
    frame, joint = np.nonzero(seen)
    x, y = place[frame, joint].T
    # A fingertip's or a jaw's point is on the outline itself, so its neighbours count too.
    near = np.zeros(len(x), bool)
    for dx in (-1, 0, 1):
        for dy in (-1, 0, 1):
            near |= clip.persons[frame, np.clip(y + dy, 0, 255), np.clip(x + dx, 0, 255)] == 1
    assert near.all()
    assert seen[:, BODY].mean() > 0.4
    for index, mask in enumerate(clip.persons):
        rows, columns = np.nonzero(mask)
        x1, y1, x2, y2 = clip.pose.boxes[index, 0] * 256
        assert columns.min() >= x1 - 2
        assert columns.max() <= x2 + 2
        assert rows.min() >= y1 - 2
        assert rows.max() <= y2 + 2


def test_clothes_are_worn_by_persons():
    clip = _clip(3)
    assert clip.clothes.sum() > 0
    assert not np.any(clip.clothes[clip.persons == 0])


def test_hands_begin_at_the_wrists():
    points = _clip(4).pose.keypoints
    np.testing.assert_array_equal(points[:, :, LEFT_HAND.start], points[:, :, LEFT_WRIST])
    np.testing.assert_array_equal(points[:, :, RIGHT_HAND.start], points[:, :, RIGHT_WRIST])


def test_a_face_turned_away_is_not_scored_as_seen():
    clip = MarionetteScene(1, 2, 3, persons=1, action="turn", close_up=False).render(40, 192, 128, 8)
    seen = (clip.pose.scores[:, 0, FACE] > 0.9).mean(axis=1)
    assert seen.max() > 0.7
    assert seen.min() < 0.2


def test_motion_is_smooth():
    clip = MarionetteScene(1, 2, 3, persons=1, action="dance", close_up=False).render(48, 192, 128, 24)
    jump = np.linalg.norm(np.diff(clip.pose.keypoints[:, 0, BODY], axis=0), axis=-1)
    assert jump.max() < 0.08
    assert jump.max() > 0.005


def test_a_person_stays_the_same_while_the_motion_changes():
    one, other = (MarionetteScene(21, motion, 5, persons=1).render(3, 192, 128, 12) for motion in (1, 2))
    for name in ("top", "trousers", "shoes", "hair"):
        assert one.attributes["persons"][0][name] == other.attributes["persons"][0][name]
    assert one.attributes["background"] == other.attributes["background"]
    assert not np.allclose(one.pose.keypoints, other.pose.keypoints)


def test_the_caption_names_what_is_in_the_picture():
    clip = _clip(8, persons=1)
    for word in (clip.attributes["top"], clip.attributes["trousers"], clip.attributes["action"]):
        assert word in clip.caption


@pytest.mark.parametrize(
    ("options", "named"),
    [({"persons": 3}, "persons is 3"), ({"action": "fly"}, "action is 'fly'")],
)
def test_a_scene_that_cannot_be_is_refused_with_what_can(options, named):
    with pytest.raises(ConfigError, match=named):
        MarionetteScene(1, 2, 3, **options)


def test_written_videos_are_the_same_bytes_again_and_agree_with_their_truth(tmp_path):
    first = write_marionettes(tmp_path / "a", 1, seed=3)
    second = write_marionettes(tmp_path / "b", 1, seed=3)
    for suffix in (".mp4", ".json", ".truth.npz"):
        assert first[0].with_suffix(suffix).read_bytes() == second[0].with_suffix(suffix).read_bytes()
    video = read_video(first[0])
    side_car = json.loads(first[0].with_suffix(".json").read_text())
    truth = first[0].with_suffix(".truth.npz").read_bytes()
    pose = PoseSequence.from_npz(truth)
    assert pose.num_frames == len(video.frames)
    assert side_car["shots"][-1]["end"] == pytest.approx(len(video.frames) / side_car["fps"])
    assert side_car["generator"] == "marionettes"
    assert all(shot["caption"] for shot in side_car["shots"])
    with np.load(first[0].with_suffix(".truth.npz")) as arrays:
        assert arrays["persons"].shape == video.frames.shape[:3]
        assert arrays["persons"].max() == pose.num_persons
