"""A cut keeps the persons of a window, and is the same for all its frames."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dynamictrl.geometry import CENTRE, cover_box
from dynamictrl.media.video import encode_video
from dynamictrl.poses.person_crop import crop_centre
from dynamictrl.poses.pose import NUM_KEYPOINTS, PoseSequence
from dynamictrl.samples.shards import Sample, pack_mask
from dynamictrl.samples.windows import Window, mask_encoded_reference, read_window


def one_person(boxes: list[list[float]], seen: list[bool] | None = None) -> PoseSequence:
    frames = len(boxes)
    scores = np.ones((frames, 1, NUM_KEYPOINTS), np.float32)
    if seen is not None:
        scores[~np.array(seen)] = 0
    middle = np.array(boxes, np.float32).reshape(frames, 1, 1, 2, 2).mean(axis=3)
    keypoints = np.repeat(middle, NUM_KEYPOINTS, axis=2)
    return PoseSequence(keypoints, scores, np.array(boxes, np.float32)[:, None], np.ones(1, np.int32))


def sample_of(pose: PoseSequence, height: int, width: int) -> Sample:
    """A clip whose pictures grow brighter from left to right; the person's mask is the right half."""
    frames = pose.num_frames
    ramp = np.tile(np.linspace(0, 255, width).astype(np.uint8)[None, None, :, None], (frames, height, 1, 3))
    mask = np.zeros((frames, height, width), np.uint8)
    mask[:, :, width // 2 :] = 1
    members = {
        "mp4": encode_video(ramp, 12),
        "pose.npz": pose.to_npz(),
        "mask.npz": pack_mask(mask),
        "txt": b"a ramp",
        "json": json.dumps({"fps": 12.0, "frames": frames}).encode(),
    }
    return Sample("ramp", members)


@pytest.mark.parametrize(
    ("boxes", "centre"),
    [
        ([[0.7, 0.1, 0.9, 0.9], [0.6, 0.1, 0.8, 0.9]], (0.75, 0.5)),
        ([[0.0, 0.1, 0.1, 0.9]], (0.25, 0.5)),
        # Two of three frames on the left: they are kept, the third is not.
        ([[0.0, 0.1, 0.3, 0.9], [0.0, 0.1, 0.3, 0.9], [0.7, 0.1, 1.0, 0.9]], (0.25, 0.5)),
    ],
)
def test_a_wide_picture_is_cut_around_its_persons_within_its_edges(boxes: list[list[float]], centre):
    assert crop_centre(one_person(boxes), 100, 200, 100, 100) == pytest.approx(centre, abs=1e-6)


def test_a_person_too_tall_is_kept_from_the_head_down():
    x, y = crop_centre(one_person([[0.2, 0.1, 0.8, 0.9]]), 200, 100, 100, 100)

    _, top, _, bottom = cover_box(200, 100, 100, 100, (x, y))
    assert (top, bottom) == pytest.approx((20, 120), abs=1e-3)


def test_frames_without_a_person_do_not_pull_and_nobody_means_the_middle():
    boxes = [[0.7, 0.1, 0.9, 0.9], [0.0, 0.0, 0.1, 0.1]]

    assert crop_centre(one_person(boxes, [True, False]), 100, 200, 100, 100)[0] == pytest.approx(0.75, abs=1e-6)
    assert crop_centre(one_person(boxes, [False, False]), 100, 200, 100, 100) == CENTRE
    assert crop_centre(PoseSequence.empty(3), 100, 200, 100, 100) == CENTRE


def test_whatever_the_boxes_no_other_place_of_the_cut_keeps_more_of_them():
    generator = np.random.default_rng(5)
    for _ in range(200):
        corners = np.sort(generator.uniform(-0.1, 1.1, (generator.integers(1, 9), 2, 2)), axis=1)
        boxes = corners.reshape(-1, 4).tolist()
        height, width = generator.integers(50, 400, 2).tolist()
        x, y = crop_centre(one_person(boxes), height, width, 64, 96)
        chosen = kept(boxes, cover_box(height, width, 64, 96, (x, y)), height, width)
        others = [
            kept(boxes, cover_box(height, width, 64, 96, tuple(place)), height, width)
            for place in generator.uniform(0, 1, (20, 2))
        ]
        assert chosen >= max(others) - 1e-4


def kept(boxes: list[list[float]], cut: tuple[float, float, float, float], height: int, width: int) -> float:
    """What a cut keeps along the side that it shortens, summed over boxes."""
    left, top, right, bottom = cut
    across = right - left < width - 1e-6
    start, end = (left / width, right / width) if across else (top / height, bottom / height)
    low, high = np.clip(np.array(boxes), 0, 1)[:, [0, 2] if across else [1, 3]].T
    return float((np.minimum(high, end) - np.maximum(low, start)).clip(0).sum())


def test_pictures_poses_and_masks_of_a_window_are_cut_alike_and_all_frames_at_one_place():
    boxes = [[0.8, 0.2, 1.0, 0.8]] * 4 + [[0.75, 0.2, 0.95, 0.8]]
    sample = sample_of(one_person(boxes), 64, 128)

    window = read_window(sample, Window(0, 5, 64, 64, 12.0), "background")
    middle = read_window(sample, Window(0, 5, 64, 64, 12.0, "centre"), "background")

    # The right half is shown, where the ramp is bright and the mask is set.
    assert window.video[:, :, 2].min() > 110
    assert middle.video[:, :, 2].max() < 110
    assert np.abs(window.video.astype(int) - window.video[0]).max() < 8
    assert (window.reference[:, 1:] > 0).all()
    assert (middle.reference[:, :31] == 0).all()


@pytest.mark.parametrize("crop", ["persons", "centre"])
def test_a_reference_masked_after_encoding_is_the_one_masked_before(crop):
    sample = sample_of(one_person([[0.4, 0.2, 0.9, 0.8]] * 5), 64, 128)
    window = Window(0, 5, 48, 48, 12.0, crop)

    whole = read_window(sample, window).reference
    masked = mask_encoded_reference(sample, window, whole, "background")

    assert np.array_equal(masked, read_window(sample, window, "background").reference)
    assert not np.array_equal(masked, whole)
