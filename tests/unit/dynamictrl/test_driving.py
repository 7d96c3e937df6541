"""A driving video or a ready-made rendering becomes the pose video that was asked for, or says why not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dynamictrl.errors import InputError
from dynamictrl.media.video import Video, read_video
from dynamictrl.poses.driving import frames_at, from_driving_video, from_pose_video, letterbox
from dynamictrl.poses.pose import BODY, LEFT_HAND, PoseSequence
from dynamictrl.poses.pose_drawing import draw_pose

BODY_XY = np.array(
    [
        (0.5, 0.15), (0.5, 0.25), (0.42, 0.25), (0.36, 0.37), (0.33, 0.48), (0.58, 0.25), (0.64, 0.37), (0.67, 0.48),
        (0.45, 0.5), (0.44, 0.68), (0.43, 0.88), (0.55, 0.5), (0.56, 0.68), (0.57, 0.88), (0.48, 0.13), (0.52, 0.13),
        (0.46, 0.14), (0.54, 0.14),
    ]
)  # fmt: skip


def find_bright_box(frames: np.ndarray) -> PoseSequence:
    """A real, if simple, estimator: the person is what is brighter than 128, its pose a stick figure in that box."""
    count, height, width = frames.shape[:3]
    keypoints = np.zeros((count, 1, 134, 2), np.float32)
    scores, boxes = np.zeros((count, 1, 134), np.float32), np.zeros((count, 1, 4), np.float32)
    for index, frame in enumerate(frames):
        rows, columns = np.nonzero(frame.max(axis=-1) > 128)
        if len(rows) == 0:
            continue
        low = np.array([columns.min() / width, rows.min() / height])
        high = np.array([(columns.max() + 1) / width, (rows.max() + 1) / height])
        keypoints[index, 0, BODY] = low + BODY_XY * (high - low)
        scores[index, 0, BODY] = 1
        boxes[index, 0] = (*low, *high)
    return PoseSequence(keypoints, scores, boxes, np.array([1], np.int32))


def walking_box(count: int, height: int = 120, width: int = 160) -> np.ndarray:
    frames = np.zeros((count, height, width, 3), np.uint8)
    for index in range(count):
        frames[index, 30:90, 20 + index : 50 + index] = 200
    return frames


def video_of(frames: np.ndarray, fps: float = 10.0) -> Video:
    return Video(frames, fps, np.arange(len(frames)) / fps)


def person_image(height: int = 192, width: int = 128) -> Image.Image:
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[40:160, 40:100] = 255
    return Image.fromarray(pixels)


def middle_of_mass(picture: np.ndarray) -> float:
    columns = picture.astype(float).sum(axis=(0, 2))
    return float((columns * np.arange(len(columns))).sum() / columns.sum())


def test_the_drawn_person_stands_where_the_image_has_one_and_walks_as_the_video_does():
    driving = from_driving_video(
        video_of(walking_box(21)), person_image(), find_bright_box, height=192, width=128, num_frames=21, fps=None
    )
    assert driving.pose_video.shape == (21, 192, 128, 3)
    assert driving.fps == 10
    lit_rows = np.nonzero(driving.pose_video[0].any(axis=(1, 2)))[0]
    # The figure spans 13 % to 88 % of the box of 120 rows that begins at row 40.
    assert lit_rows.min() == pytest.approx(40 + 0.13 * 120, abs=3)
    assert lit_rows.max() == pytest.approx(40 + 0.88 * 120, abs=3)
    # 20 pixels to the right in the video, at twice the size.
    moved = middle_of_mass(driving.pose_video[-1]) - middle_of_mass(driving.pose_video[0])
    assert moved == pytest.approx(40, abs=2)


def test_the_released_style_begins_with_the_images_own_pose_and_lags_the_video_by_one():
    size = {"height": 192, "width": 128, "fps": None, "style": "released"}
    video, image = video_of(walking_box(21)), person_image()
    made = from_driving_video(video, image, find_bright_box, num_frames=21, **size).pose_video
    assert made.shape == (21, 192, 128, 3)
    own = draw_pose(find_bright_box(np.asarray(image)[None]), 192, 128, style="released")
    assert np.array_equal(made[0], own[0])
    steps = [middle_of_mass(frame) for frame in made[1:]]
    assert np.diff(steps) == pytest.approx(2, abs=0.5)  # twenty frames of the video from its first on
    twenty = video_of(walking_box(20))
    assert np.array_equal(made, from_driving_video(twenty, image, find_bright_box, num_frames=21, **size).pose_video)


def test_frames_are_chosen_by_their_times():
    times = np.array([0, 0.1, 0.5, 0.6])
    video = Video(np.zeros((4, 8, 8, 3), np.uint8), 5.0, times)
    index, rate = frames_at(video, 8, 10)
    assert index.tolist() == [0, 1, 1, 1, 2, 2, 3, 3]
    assert rate == 10
    thirty = video_of(np.zeros((83, 8, 8, 3), np.uint8), 30)
    assert frames_at(thirty, 45, 16)[0].tolist() == np.round(np.arange(45) * 30 / 16 - 1e-9).clip(max=82).tolist()
    assert frames_at(thirty, 81, None)[0].tolist() == list(range(81))


def test_too_few_frames_names_both_counts_and_the_largest_that_can_be_had():
    with pytest.raises(InputError, match=r"num_frames is 49.* hold 20 .*at most 17") as caught:
        from_pose_video(video_of(walking_box(20)), height=64, width=64, num_frames=49, fps=None)
    assert caught.value.code == "too_few_frames"
    with pytest.raises(InputError, match=r"hold 2 at 10.*; give a longer video$"):
        frames_at(video_of(walking_box(2)), 5, None)
    # The same stretch holds more frames at a higher rate.
    assert len(frames_at(video_of(walking_box(20)), 37, 20)[0]) == 37


def test_nobody_in_the_image_or_the_video_is_told_apart():
    black = Image.new("RGB", (128, 192))
    size = {"height": 192, "width": 128, "num_frames": 5, "fps": None}
    with pytest.raises(InputError) as caught:
        from_driving_video(video_of(walking_box(9)), black, find_bright_box, **size)
    assert caught.value.code == "no_person_in_image"
    with pytest.raises(InputError) as caught:
        from_driving_video(video_of(walking_box(9) * 0), person_image(), find_bright_box, **size)
    assert caught.value.code == "no_person_in_video"


def rendering(count: int = 9) -> np.ndarray:
    keypoints = np.zeros((count, 1, 134, 2), np.float32)
    keypoints[:, 0, BODY] = BODY_XY
    keypoints[:, 0, LEFT_HAND] = BODY_XY[7] + 0.005 * np.stack([np.arange(21), np.arange(21)], -1)
    scores = np.zeros((count, 1, 134), np.float32)
    scores[:, 0, BODY] = scores[:, 0, LEFT_HAND] = 1
    pose = PoseSequence(keypoints, scores, np.zeros((count, 1, 4), np.float32), np.array([1], np.int32))
    return draw_pose(pose, 384, 512)


def test_a_rendering_of_the_right_size_is_taken_as_it_is():
    frames = rendering()
    driving = from_pose_video(video_of(frames, 16), height=384, width=512, num_frames=9, fps=None)
    np.testing.assert_array_equal(driving.pose_video, frames)


def test_a_rendering_of_another_shape_is_fitted_whole():
    driving = from_pose_video(video_of(rendering()), height=192, width=128, num_frames=9, fps=None)
    lit = driving.pose_video[0].max(axis=-1) > 20
    rows, columns = np.nonzero(lit)
    # 512x384 becomes 128x96, in the middle of 192 rows.
    assert rows.min() == pytest.approx(48 + 0.12 * 96, abs=3)
    assert rows.max() == pytest.approx(48 + 0.89 * 96, abs=3)
    assert columns.max() == pytest.approx(0.77 * 128, abs=4)


def test_other_tools_red_and_blue_are_exchanged_and_our_own_are_not():
    ours = rendering()
    theirs = ours[..., ::-1].copy()
    for frames in (ours, theirs):
        driving = from_pose_video(video_of(frames), height=384, width=512, num_frames=9, fps=None)
        np.testing.assert_array_equal(driving.pose_video, ours)


def test_an_ordinary_video_or_a_black_one_is_no_rendering():
    for frames, code in ((walking_box(9) + 60, "not_a_pose_video"), (walking_box(9) * 0, "no_person_in_video")):
        with pytest.raises(InputError) as caught:
            from_pose_video(video_of(frames), height=64, width=64, num_frames=9, fps=None)
        assert caught.value.code == code


@pytest.mark.parametrize(("height", "width"), [(10, 40), (40, 10), (64, 64)])
def test_letterboxing_keeps_the_whole_picture(height: int, width: int):
    frames = np.full((2, 20, 20, 3), 255, np.uint8)
    fitted = letterbox(frames, height, width)
    assert fitted.shape == (2, height, width, 3)
    assert (fitted[0, ..., 0] > 0).sum() == min(height, width) ** 2


def test_a_real_rendering_is_taken_at_another_size_and_rate(shared_data: Path):
    video = read_video(shared_data / "pose_videos" / "moore__anyone-video-2_kps.mp4")
    driving = from_pose_video(video, height=192, width=128, num_frames=49, fps=12)
    assert driving.pose_video.shape == (49, 192, 128, 3)
    # Its tool drew hands blue; the model knows them red, and the first limb blue.
    assert driving.pose_video[..., 0].sum() != driving.pose_video[..., 2].sum()
    points = driving.pose_video.reshape(-1, 3)
    assert ((points[:, 0] > 150) & (points[:, 2] < 70)).sum() > 2 * ((points[:, 2] > 150) & (points[:, 0] < 70)).sum()
    clip = read_video(shared_data / "clips" / "dynamictrl__motion1.mp4", max_pixels=60_000)
    with pytest.raises(InputError, match="not black"):
        from_pose_video(clip, height=192, width=128, num_frames=25, fps=None)
