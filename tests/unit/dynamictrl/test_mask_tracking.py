"""Masks follow the persons that the poses name, with and without weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dynamictrl.errors import CheckpointError, InputError
from dynamictrl.masks.mask_tracking import SkeletonMaskTracker, drifted, share_on_masks
from dynamictrl.masks.sam_tracking import Sam2MaskTracker, stretches, windows
from dynamictrl.mini.marionettes import MarionetteClip, MarionetteScene
from dynamictrl.poses.pose import PoseSequence


@pytest.fixture(scope="module")
def clips() -> list[MarionetteClip]:
    """Six shots, two of them of two persons."""
    return [
        MarionetteScene(seed, seed + 100, seed + 200, persons=2 if seed % 3 == 0 else 1, close_up=False).render(
            6, 384, 256, 12.0
        )
        for seed in range(6)
    ]


def overlap(found: np.ndarray, true: np.ndarray) -> float:
    """Intersection over union."""
    return float((found & true).sum() / max(1, (found | true).sum()))


def overlaps(clip: MarionetteClip, masks: np.ndarray) -> list[float]:
    return [
        float(np.mean([overlap(m == label, t == label) for m, t in zip(masks, clip.persons, strict=True)]))
        for label in range(1, clip.pose.num_persons + 1)
    ]


def test_skeleton_seeded_masks_cover_marionettes(clips: list[MarionetteClip]):
    tracker = SkeletonMaskTracker()
    assert tracker.model_id == "skeleton-seeded"
    scores = [score for clip in clips for score in overlaps(clip, tracker(clip.frames, clip.pose))]
    assert np.mean(scores) > 0.8
    assert min(scores) > 0.55


def test_two_persons_keep_their_own_labels(clips: list[MarionetteClip]):
    clip = clips[0]
    masks = SkeletonMaskTracker()(clip.frames, clip.pose)
    right, wrong = overlaps(clip, masks), overlap(masks == 1, clip.persons == 2)
    assert min(right) > 0.55 > 0.2 > wrong


def test_the_same_clip_gives_the_same_masks(clips: list[MarionetteClip]):
    clip = clips[1]
    np.testing.assert_array_equal(
        SkeletonMaskTracker()(clip.frames, clip.pose), SkeletonMaskTracker()(clip.frames, clip.pose)
    )


def test_frames_without_anyone_are_background(clips: list[MarionetteClip]):
    clip = clips[1]
    assert not SkeletonMaskTracker()(clip.frames, PoseSequence.empty(6)).any()
    scores = clip.pose.scores.copy()
    scores[:3] = 0
    pose = PoseSequence(clip.pose.keypoints, scores, clip.pose.boxes, clip.pose.track_ids)
    masks = SkeletonMaskTracker()(clip.frames, pose)
    assert not masks[:3].any()
    assert masks[3:].any(axis=(1, 2)).all()


def test_a_plain_picture_of_one_colour_does_not_stop_the_tracker(clips: list[MarionetteClip]):
    masks = SkeletonMaskTracker()(np.full_like(clips[1].frames, 90), clips[1].pose)
    assert masks.any()


def test_poses_of_another_length_are_refused(clips: list[MarionetteClip]):
    with pytest.raises(InputError, match="6 frames and poses of 4"):
        SkeletonMaskTracker()(clips[0].frames, clips[0].pose.frames(slice(0, 4)))


def test_poses_tell_frames_and_persons_whose_mask_drifted(clips: list[MarionetteClip]):
    clip = clips[0]
    true = share_on_masks(clip.persons, clip.pose)
    assert true.shape == (6, 2)
    assert np.nanmean(true) > 0.8
    drifted = clip.persons.copy()
    drifted[3] = 0
    drifted[4] = np.where(drifted[4] == 1, 2, np.where(drifted[4] == 2, 1, 0))
    shares = share_on_masks(drifted, clip.pose)
    assert (shares[3] == 0).all()
    assert (shares[4] < 0.2).all()
    np.testing.assert_array_equal(shares[[0, 1, 2, 5]], true[[0, 1, 2, 5]])
    scores = clip.pose.scores.copy()
    scores[2, 1] = 0
    unseen = PoseSequence(clip.pose.keypoints, scores, clip.pose.boxes, clip.pose.track_ids)
    assert np.isnan(share_on_masks(clip.persons, unseen)[2, 1])


# SAM 2: the real classes, tiny and untrained.


@pytest.fixture(scope="module")
def tiny_sam2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved Sam2VideoModel of the real class with random weights, for pictures of 128 x 128."""
    import torch
    from transformers import (
        Sam2HieraDetConfig,
        Sam2VideoConfig,
        Sam2VideoModel,
        Sam2VideoProcessor,
        Sam2VisionConfig,
    )
    from transformers.models.sam2.image_processing_sam2 import Sam2ImageProcessor
    from transformers.models.sam2_video.video_processing_sam2_video import Sam2VideoVideoProcessor

    backbone = Sam2HieraDetConfig(
        hidden_size=8,
        num_attention_heads=1,
        image_size=[128, 128],
        blocks_per_stage=[1, 1, 1, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2],
        global_attention_blocks=[],
        window_size_per_stage=[8, 4, 4, 4],
        window_positional_embedding_background_size=[2, 2],
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
        fpn_hidden_size=128,
    )
    config = Sam2VideoConfig(
        vision_config=vision.to_dict(),
        prompt_encoder_config={"hidden_size": 128, "image_size": 128, "patch_size": 16},
        mask_decoder_config={"hidden_size": 128, "iou_head_hidden_dim": 32, "mlp_dim": 64, "num_attention_heads": 2},
        image_size=128,
        memory_attention_hidden_size=128,
        memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=32,
        memory_attention_rope_feat_sizes=[8, 8],
        memory_encoder_hidden_size=128,
        memory_encoder_output_channels=64,
        mask_downsampler_embed_dim=128,
        memory_fuser_embed_dim=128,
        memory_fuser_intermediate_dim=32,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sam2")
    Sam2VideoModel(config).save_pretrained(folder)
    size = {"height": 128, "width": 128}
    Sam2VideoProcessor(
        Sam2ImageProcessor(size=size, mask_size={"height": 32, "width": 32}), Sam2VideoVideoProcessor(size=size)
    ).save_pretrained(folder)
    return folder


def test_sam2_is_prompted_on_the_clearest_frame_and_runs_both_ways(
    tiny_sam2: Path, clips: list[MarionetteClip], monkeypatch: pytest.MonkeyPatch
):
    clip = clips[0]
    scores = clip.pose.scores * 0.6
    scores[2] = clip.pose.scores[2]  # both persons are clearest in frame 2
    pose = PoseSequence(clip.pose.keypoints, scores, clip.pose.boxes, clip.pose.track_ids)
    tracker = Sam2MaskTracker(tiny_sam2, "cpu")
    ran: list[tuple[int | None, bool]] = []
    real = tracker.model.propagate_in_video_iterator

    def watched(session: object, *, start_frame_idx: int | None = None, reverse: bool = False) -> Iterator[object]:
        ran.append((start_frame_idx, reverse))
        return real(session, start_frame_idx=start_frame_idx, reverse=reverse)

    monkeypatch.setattr(tracker.model, "propagate_in_video_iterator", watched)
    masks = tracker(clip.frames, pose)
    # What follows, if anything, mends stretches where these untrained masks lie beside the poses.
    assert ran[:2] == [(2, False), (2, True)]
    assert masks.shape == clip.frames.shape[:3]
    assert masks.dtype == np.uint8
    assert set(np.unique(masks)) <= {0, 1, 2}
    assert tracker.model_id == str(tiny_sam2)


def test_sam2_visits_every_frame_for_every_person(tiny_sam2: Path, clips: list[MarionetteClip]):
    tracker, clip = Sam2MaskTracker(tiny_sam2, "cpu"), clips[0]
    seen = [(index, logits.shape) for index, logits in tracker._track(clip.frames, clip.pose, 2, [0, 1])]
    assert sorted(index for index, _ in seen) == list(range(6))
    assert {shape for _, shape in seen} == {(2, 384, 256)}


def test_persons_never_clear_together_are_prompted_apart(tiny_sam2: Path, clips: list[MarionetteClip]):
    clip = clips[0]
    scores = clip.pose.scores.copy()
    scores[:3, 1] = 0
    scores[3:, 0] = 0
    pose = PoseSequence(clip.pose.keypoints, scores, clip.pose.boxes, clip.pose.track_ids)
    masks = Sam2MaskTracker(tiny_sam2, "cpu")(clip.frames, pose)
    assert masks.shape == clip.frames.shape[:3]
    assert not Sam2MaskTracker(tiny_sam2, "cpu")(clip.frames, PoseSequence.empty(6)).any()


def test_missing_weights_are_named(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"config.json"):
        Sam2MaskTracker(tmp_path, "cpu")


def test_a_mask_that_drifted_is_tracked_anew_and_the_better_one_kept(
    tiny_sam2: Path, clips: list[MarionetteClip], monkeypatch: pytest.MonkeyPatch
):
    clip, tracker = clips[1], Sam2MaskTracker(tiny_sam2, "cpu")
    elsewhere = np.full((1, *clip.frames.shape[1:3]), -1.0, np.float16)
    elsewhere[:, :4, :4] = 1.0
    right = np.where(clip.persons == 1, 1.0, -1.0).astype(np.float16)[:, None]
    starts: list[int] = []

    def track(frames: np.ndarray, pose: PoseSequence, prompted: int, persons: list[int]) -> Iterator[object]:
        starts.append(len(frames))
        # The first run loses the person from the third frame on; the second one, of those frames, does not.
        for index in range(len(frames)):
            lost = len(frames) == 6 and index >= 2
            yield index, elsewhere if lost else right[index + 6 - len(frames)]

    monkeypatch.setattr(tracker, "_track", track)
    masks = tracker(clip.frames, clip.pose)
    assert starts == [6, 4]
    np.testing.assert_array_equal(masks == 1, clip.persons == 1)
    assert not drifted(masks, clip.pose).any()


def test_a_second_try_that_is_no_better_changes_nothing(
    tiny_sam2: Path, clips: list[MarionetteClip], monkeypatch: pytest.MonkeyPatch
):
    clip, tracker = clips[1], Sam2MaskTracker(tiny_sam2, "cpu")

    def track(frames: np.ndarray, pose: PoseSequence, prompted: int, persons: list[int]) -> Iterator[object]:
        logits = np.full((1, *frames.shape[1:3]), -1.0, np.float16)
        logits[:, : 4 if tried else 8] = 1.0
        tried.append(len(frames))
        for index in range(len(frames)):
            yield index, logits

    tried: list[int] = []
    monkeypatch.setattr(tracker, "_track", track)
    masks = tracker(clip.frames, clip.pose)
    assert len(tried) == 2
    assert (masks[:, :8] == 1).all()


def test_short_slips_and_poses_that_see_little_are_no_drift(clips: list[MarionetteClip]):
    clip = clips[1]
    masks = clip.persons.copy()
    masks[1:3] = 0
    assert drifted(masks, clip.pose)[:, 0].tolist() == [False, True, True, False, False, False]
    assert stretches(drifted(masks, clip.pose)) == []
    masks[3] = 0
    assert stretches(drifted(masks, clip.pose)) == [(0, slice(1, 4))]
    scores = clip.pose.scores.copy()
    scores[:, :, 4:18] = 0
    dim = PoseSequence(clip.pose.keypoints, scores, clip.pose.boxes, clip.pose.track_ids)
    assert not drifted(masks, dim).any()


def test_long_clips_are_tracked_in_windows_that_cover_them_once(
    tiny_sam2: Path, clips: list[MarionetteClip], monkeypatch: pytest.MonkeyPatch
):
    assert windows(6, 4) == [slice(0, 3), slice(3, 6)]
    assert windows(7, 7) == [slice(0, 7)]
    assert windows(0, 5) == []
    assert [s.stop - s.start for s in windows(1000, 120)] == [111, 111, 111, 111, 112, 111, 111, 111, 111]
    tracker = Sam2MaskTracker(tiny_sam2, "cpu", window=4, state_device="cpu")
    seen: list[int] = []
    real = tracker.preparation.init_video_session

    def watched(*, video: np.ndarray, **known: object) -> object:
        seen.append(len(video))
        return real(video=video, **known)

    monkeypatch.setattr(tracker.preparation, "init_video_session", watched)
    masks = tracker(clips[1].frames, clips[1].pose)
    assert masks.shape == clips[1].frames.shape[:3]
    assert seen[0] == 3
    assert max(seen) == 3
    with pytest.raises(InputError, match="window is 0"):
        Sam2MaskTracker(tiny_sam2, "cpu", window=0)
