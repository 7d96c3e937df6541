"""The order of samples depends on the seed alone; windows and poses fit together."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dynamictrl.errors import DatasetError
from dynamictrl.poses.person_crop import crop_centre
from dynamictrl.poses.pose import NUM_KEYPOINTS, VISIBLE, PoseSequence
from dynamictrl.samples.shards import read_sample
from dynamictrl.samples.windows import Window, crop_pose, frame_indices, read_window, window_starts
from training.samples.arrangement import timesteps
from training.samples.data import build_index
from training.samples.order import Order
from training.settings.clips import Clips

CLIPS = Clips(height=32, width=32, num_frames=5, fps=12.0)


@pytest.fixture(scope="module")
def order(small_dataset: Path) -> Order:
    return Order(3, CLIPS, build_index(small_dataset, CLIPS).entries)


def test_clips_too_short_are_left_out_and_counted(small_dataset: Path):
    index = build_index(small_dataset, CLIPS)

    assert [entry.key for entry in index.entries] == [f"clip{n:04d}" for n in (0, 1, 2, 4, 5, 6)]
    assert index.skipped == {"too short": 1}


def test_no_clip_left_is_an_error_that_says_why(small_dataset: Path):
    with pytest.raises(DatasetError, match=r"7 too short.*--num-frames"):
        build_index(small_dataset, replace(CLIPS, num_frames=97))


def test_an_empty_data_set_is_refused(small_dataset: Path, tmp_path: Path):
    shutil.copy(small_dataset / "dataset.json", tmp_path)

    with pytest.raises(DatasetError, match="holds no clips"):
        build_index(tmp_path, CLIPS)


def test_another_schema_version_is_refused(tmp_path: Path):
    (tmp_path / "dataset.json").write_text(json.dumps({"schema_version": 99}))

    with pytest.raises(DatasetError, match="99"):
        build_index(tmp_path, CLIPS)


def test_a_damaged_shard_is_named(small_dataset: Path, tmp_path: Path):
    root = shutil.copytree(small_dataset, tmp_path / "set")
    shard = root / "shards" / "train-000000.tar"
    shard.write_bytes(b"x" * 2000 + shard.read_bytes()[2000:])

    with pytest.raises(DatasetError, match="train-000000.tar is damaged"):
        build_index(root, CLIPS)


def test_every_clip_comes_once_an_epoch_and_epochs_differ(order: Order):
    count = len(order.entries)
    epochs = [[order.draw(epoch * count + place).entry.key for place in range(count)] for epoch in range(3)]

    assert all(sorted(keys) == sorted(entry.key for entry in order.entries) for keys in epochs)
    assert epochs[0] != epochs[1] or epochs[1] != epochs[2]


def test_a_draw_depends_on_nothing_but_seed_and_position(order: Order):
    again = Order(3, CLIPS, order.entries)
    [again.draw(position) for position in range(5)]

    assert again.draw(41) == order.draw(41)
    assert Order(4, CLIPS, order.entries).draw(41) != order.draw(41)


def test_dropout_shares_are_as_asked(order: Order):
    dropping = Order(3, replace(CLIPS, caption_dropout=0.25, image_dropout=1.0), order.entries)
    draws = [dropping.draw(position) for position in range(400)]

    assert np.mean([draw.drops_caption for draw in draws]) == pytest.approx(0.25, abs=0.07)
    assert all(draw.drops_image for draw in draws)


def test_stratified_timesteps_fall_one_in_each_part():
    times = timesteps(1, 7, 10, True, 1000)

    assert sorted(time // 100 for time in times) == list(range(10))
    assert (timesteps(1, 8, 10, True, 1000) != times).any()


def test_windows_keep_the_clips_speed():
    assert frame_indices(Window(2, 4, 0, 0, 10.0), 30.0).tolist() == [2, 5, 8, 11]
    assert list(window_starts(10, 30.0, 4, 10.0)) == [0]
    assert list(window_starts(9, 30.0, 4, 10.0)) == []
    assert window_starts(30, 10.0, 5, 0.0, count=3) == [0, 12, 25]


def test_the_pose_is_drawn_where_the_cropped_person_is(order: Order):
    entry = order.entries[0]
    sample = read_sample(entry.shard, entry.offset)
    window = read_window(sample, Window(0, 5, 64, 64, 12.0))
    poses = sample.pose.frames(np.arange(5))
    first = crop_pose(poses, 96, 64, 64, 64, crop_centre(poses, 96, 64, 64, 64))
    seen = (first.scores[0, 0, :18] > VISIBLE) & (
        (first.keypoints[0, 0, :18] > 0.05) & (first.keypoints[0, 0, :18] < 0.95)
    ).all(-1)

    assert window.video.shape == window.pose.shape == (5, 64, 64, 3)
    assert seen.sum() >= 5
    for x, y in (first.keypoints[0, 0, :18][seen] * 64).astype(int):
        assert window.pose[0, y - 1 : y + 2, x - 1 : x + 2].max() > 0
    assert (window.pose[0].max(axis=-1) > 0).mean() < 0.5


def test_cropping_moves_keypoints_with_the_picture():
    # A 100 x 200 frame shown at 100 x 100 keeps its middle half in width.
    keypoints = np.full((1, 1, NUM_KEYPOINTS, 2), 0.5, np.float32)
    keypoints[..., 0] = 0.25
    pose = PoseSequence(
        keypoints,
        np.ones((1, 1, NUM_KEYPOINTS), np.float32),
        np.full((1, 1, 4), 0.75, np.float32),
        np.ones(1, np.int32),
    )

    cropped = crop_pose(pose, 100, 200, 100, 100)

    assert cropped.keypoints[0, 0, 0].tolist() == [0.0, 0.5]
    assert cropped.boxes[0, 0].tolist() == [1.0, 0.75, 1.0, 0.75]


@pytest.mark.parametrize("region", ["background", "clothes"])
def test_a_masked_reference_is_black_where_asked_and_the_video_is_not(order: Order, region):
    entry = order.entries[0]
    sample = read_sample(entry.shard, entry.offset)
    window = read_window(sample, Window(0, 5, 96, 64, 12.0), region)
    mask = sample.person_mask[0] == 0 if region == "background" else sample.clothes_mask[0] > 0  # pyright: ignore[reportOptionalSubscript]

    assert (window.reference[mask] == 0).all()
    assert (window.reference[~mask] == window.video[0][~mask]).all()
    assert window.video[0][mask].max() > 0
