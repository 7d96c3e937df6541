"""The pose runner on the mini models, which carry DWPose's file names and signatures."""

import threading
import weakref

import numpy as np
import onnxruntime
import pytest

from dynamictrl.errors import CheckpointError, ConfigError, InputError
from dynamictrl.mini.marionettes import MarionetteClip, MarionetteScene, sample_clip
from dynamictrl.mini.marionettes.scene import PLACES, choose_place, paint_place
from dynamictrl.poses.dwpose import PoseEstimator
from dynamictrl.poses.dwpose_networks import Acceleration, BatchedDetector, BatchedPoseModel, check_provider
from dynamictrl.poses.dwpose_pictures import decode_simcc, letterbox, person_boxes, suppress, to_layout
from dynamictrl.poses.pose import (
    BODY,
    FACE,
    LEFT_HAND,
    LEFT_HIP,
    LEFT_SHOULDER,
    NECK,
    NOSE,
    RIGHT_HAND,
    RIGHT_HIP,
    RIGHT_SHOULDER,
    PoseSequence,
)


@pytest.fixture(scope="module")
def estimate() -> PoseEstimator:
    return PoseEstimator("mini/dwpose", num_threads=2)


def near(found: PoseSequence, clip: MarionetteClip, part: slice) -> np.ndarray:
    """Whether each seen joint was found within a tenth of the torso, each person with its nearest track."""
    height, width = clip.frames.shape[1:3]
    size = np.array([width, height])
    hits = []
    for person in range(clip.pose.num_persons):
        truth = clip.pose.keypoints[:, person] * size
        away = np.linalg.norm(found.keypoints * size - truth[:, None], axis=-1)
        away = away[:, np.median(away, axis=(0, 2)).argmin()]
        diagonals = (RIGHT_SHOULDER, LEFT_HIP), (LEFT_SHOULDER, RIGHT_HIP)
        torso = np.max([np.linalg.norm(truth[:, a] - truth[:, b], axis=-1) for a, b in diagonals], axis=0)
        seen = clip.pose.scores[:, person] > 0.9
        hits.append((away < 0.1 * torso[:, None])[:, part][seen[:, part]])
    return np.concatenate(hits)


def test_held_out_marionettes_are_measured_well(estimate):
    clips = [sample_clip(np.random.default_rng([4242, k]), 4, *((256, 192), (360, 640))[k % 2], 3) for k in range(10)]
    found = [estimate(clip.frames) for clip in clips]
    assert [pose.num_persons for pose in found] == [clip.pose.num_persons for clip in clips]
    body = np.concatenate([near(pose, clip, BODY) for pose, clip in zip(found, clips, strict=True)])
    face = np.concatenate([near(pose, clip, FACE) for pose, clip in zip(found, clips, strict=True)])
    hands = np.concatenate(
        [near(p, c, part) for p, c in zip(found, clips, strict=True) for part in (LEFT_HAND, RIGHT_HAND)]
    )
    assert body.mean() > 0.95
    assert face.mean() > 0.95
    assert hands.mean() > 0.85


def test_two_persons_keep_their_ids_through_the_clip(estimate):
    clip = MarionetteScene(1, 6, 3, persons=2, action="dance", close_up=False).render(16, 360, 640, 12)
    found = estimate(clip.frames)
    assert found.track_ids.tolist() == [1, 2]
    assert found.present().all()
    nose_x = found.keypoints[:, :, NOSE, 0]
    left_first = nose_x[:, 0] < nose_x[:, 1]
    assert left_first.all() or not left_first.any()


def test_pictures_without_people_have_nobody_in_them(estimate):
    black = np.zeros((3, 180, 320, 3), np.uint8)
    assert estimate(black).num_persons == 0
    assert estimate(black).num_frames == 3
    for index, name in enumerate(PLACES):
        rng = np.random.default_rng(index)
        place = paint_place(rng, choose_place(rng, name), 180, 320, 1.0)[:180, :320]
        assert estimate(np.repeat(place[None], 2, axis=0)).num_persons == 0, name


def test_a_box_without_visible_joints_is_no_person():
    clip = MarionetteScene(1, 2, 3, persons=1, close_up=False).render(2, 256, 192, 12)
    assert PoseEstimator("mini/dwpose", num_threads=1, fewest_joints=19)(clip.frames).num_persons == 0


def test_one_frame_alone_still_has_its_person(estimate):
    clip = MarionetteScene(1, 2, 3, persons=1, close_up=False).render(1, 256, 192, 12)
    found = estimate(clip.frames)
    assert found.num_persons == 1
    assert found.keypoints.shape == (1, 1, 134, 2)


def test_a_batch_of_one_gives_what_a_large_batch_gives():
    clip = MarionetteScene(5, 2, 3, persons=2, close_up=False).render(3, 192, 256, 12)
    one, many = (PoseEstimator("mini/dwpose", num_threads=1, batch_size=size)(clip.frames) for size in (1, 5))
    np.testing.assert_allclose(one.scores, many.scores, atol=1e-4)
    np.testing.assert_allclose(one.keypoints, many.keypoints, atol=0.01)


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    """Of several sizes and lengths; one shows nobody, one has no frames."""
    scenes = [(1, 7, 256, 192), (2, 3, 192, 256), (1, 1, 180, 320)]
    drawn = [
        MarionetteScene(k, k + 2, 3, persons=persons, close_up=False).render(count, height, width, 12).frames
        for k, (persons, count, height, width) in enumerate(scenes, start=1)
    ]
    return [drawn[0], np.zeros((5, 90, 160, 3), np.uint8), drawn[1], np.zeros((0, 8, 8, 3), np.uint8), drawn[2]]


@pytest.fixture(scope="module")
def batched() -> PoseEstimator:
    """As on a GPU: bytes in, peaks out, several runs under way, crops of several clips in one batch."""
    return PoseEstimator("mini/dwpose", num_threads=1, acceleration=Acceleration(frames=4, crops=5, threads=2))


def test_batches_over_clip_ends_give_what_frames_one_by_one_give(batched, clips):
    one_by_one = PoseEstimator("mini/dwpose", num_threads=1, batch_size=1)
    together = list(batched.many(iter(clip) for clip in clips))
    assert len(together) == len(clips)
    for clip, found in zip(clips, together, strict=True):
        alone = one_by_one(clip)
        assert found.num_frames == len(clip)
        assert found.track_ids.tolist() == alone.track_ids.tolist()
        np.testing.assert_allclose(found.scores, alone.scores, atol=1e-4)
        np.testing.assert_allclose(found.keypoints, alone.keypoints, atol=1e-4)
    assert [pose.num_persons for pose in together] == [1, 0, 2, 0, 1]


def test_on_the_cpu_a_clip_has_the_same_bytes_whatever_is_beside_it(clips):
    estimate = PoseEstimator("mini/dwpose", num_threads=1)
    alone = [estimate(clip).to_npz() for clip in clips if len(clip)]
    assert [pose.to_npz() for pose in estimate.many(clips) if pose.num_frames] == alone


def test_frames_are_let_go_before_the_clip_ends(batched):
    frame = MarionetteScene(1, 2, 3, persons=1, close_up=False).render(1, 96, 128, 12).frames[0]
    alive: weakref.WeakSet = weakref.WeakSet()
    most = 0

    class Picture(np.ndarray):
        __hash__ = object.__hash__

    def frames():
        nonlocal most
        for _ in range(80):
            picture = frame.copy().view(Picture)
            alive.add(picture)
            most = max(most, len(alive))
            yield picture

    (found,) = batched.many([frames()])
    assert found.num_frames == 80
    assert most < 40


def test_a_detector_that_cannot_be_freed_of_its_batch_runs_one_by_one_and_says_so(batched):
    detector, pose = batched._detector, batched._pose
    assert isinstance(detector, BatchedDetector)
    assert isinstance(pose, BatchedPoseModel)
    assert detector.batch_size == 1
    assert "fixed batch" in detector.note
    assert (pose.batch_size, pose.note) == (5, "")


def test_an_error_of_one_clips_frames_is_raised_and_ends_the_threads(batched, clips):
    def broken():
        yield clips[0][0]
        raise ValueError("cut off")

    before = threading.active_count()
    poses = batched.many([clips[2], broken(), clips[4]])
    with pytest.raises(ValueError, match="cut off"):
        list(poses)
    assert threading.active_count() == before


def test_scores_are_floats_between_seen_and_unseen(estimate):
    clip = MarionetteScene(1, 2, 3, persons=1, close_up=False).render(2, 256, 192, 12)
    scores = estimate(clip.frames).scores
    assert len(np.unique(scores.round(4))) > 50
    assert scores.min() >= 0


def test_the_estimator_says_which_weights_it_ran(estimate):
    assert estimate.model_id == "mini/dwpose"
    assert set(estimate.weights_sha256) == {"yolox_l.onnx", "dw-ll_ucoco_384.onnx"}
    assert all(len(value) == 64 for value in estimate.weights_sha256.values())


def test_cuda_asked_for_and_absent_is_an_error_and_not_a_slow_run():
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(ConfigError, match="onnxruntime-gpu"):
        PoseEstimator("mini/dwpose", provider="cuda")


def test_an_unknown_provider_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"'tpu'.*cpu.*cuda"):
        check_provider("tpu")


def test_a_folder_without_the_models_is_refused_by_file_name(tmp_path):
    with pytest.raises(CheckpointError, match=r"yolox_l\.onnx"):
        PoseEstimator(tmp_path)


def test_frames_of_another_shape_are_refused(estimate):
    with pytest.raises(InputError, match="float32"):
        estimate(np.zeros((2, 64, 64, 3), np.float32))


def test_letterbox_keeps_the_shape_and_fills_with_grey():
    image, ratio = letterbox(np.full((100, 200, 3), 7, np.uint8))
    assert image.shape == (1, 3, 640, 640)
    assert ratio == pytest.approx(3.2)
    assert np.all(image[0, :, :320] == 7)
    assert np.all(image[0, :, 320:] == 114)


def test_a_cell_is_decoded_by_its_place_and_stride():
    raw = np.zeros((8400, 85))
    # Stride 32: the cell in row 3, column 5 is cell 6400 + 1600 + 3 * 20 + 5.
    raw[8065, :6] = (0.5, 0.25, np.log(2), np.log(4), 0.9, 1.0)
    boxes, scores = person_boxes(raw, ratio=2.0)
    np.testing.assert_allclose(boxes, [[(5.5 - 1) * 16, (3.25 - 2) * 16, (5.5 + 1) * 16, (3.25 + 2) * 16]])
    np.testing.assert_allclose(scores, [0.9])


def test_other_classes_and_faint_persons_are_left_out():
    raw = np.zeros((8400, 85))
    raw[0, :7] = (0, 0, 3, 3, 1.0, 0.25, 0.9)
    assert len(person_boxes(raw, 1.0)[0]) == 0


def test_overlapping_boxes_are_one():
    boxes = np.array([[0, 0, 100, 100], [5, 5, 105, 105], [200, 0, 300, 100]], float)
    assert suppress(boxes, np.array([0.8, 0.9, 0.5])) == [1, 2]


def test_simcc_peaks_are_places_and_their_smaller_height_is_the_score():
    x, y = np.zeros((1, 133, 576), np.float32), np.zeros((1, 133, 768), np.float32)
    x[0, 0, 100], y[0, 0, 50] = 0.9, 0.6
    points, scores = decode_simcc(x, y)
    assert points[0, 0].tolist() == [50.0, 25.0]
    assert scores[0, 0] == pytest.approx(0.6)
    assert points[0, 1].tolist() == [-0.5, -0.5]


def test_the_133_joints_become_the_134_with_a_neck():
    points = np.stack([np.arange(133.0), np.zeros(133)], axis=-1)
    laid, scores = to_layout(points, np.ones(133))
    assert laid.shape == (134, 2)
    assert laid[NECK, 0] == pytest.approx((5 + 6) / 2)
    expected = [0, 5.5, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3]
    assert laid[:18, 0].tolist() == expected
    assert laid[18:, 0].tolist() == list(range(17, 133))
    faint = np.ones(133)
    faint[5] = 0.2
    assert to_layout(points, faint)[1][NECK] == 0
    assert scores[NECK] == 1
