"""The mini tracker's training goes SAM 2's own way, and what it writes is loaded unchanged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Sam2VideoModel

from dynamictrl.masks.sam_tracking import Sam2MaskTracker
from dynamictrl.mini.marionettes import MarionetteScene
from dynamictrl.mini.stream import NUM_FRAMES, Pool, draw_example
from dynamictrl.mini.tracker.clips import TrackClips, draw_prompts, draw_times
from dynamictrl.mini.tracker.evaluate import overlaps
from dynamictrl.mini.tracker.held_out import held_out_clip
from dynamictrl.mini.tracker.models import TrackerSize, new_tracker, picture_preparation
from dynamictrl.mini.tracker.train import Settings, Training, mask_loss
from dynamictrl.mini.tracker.unroll import unroll
from dynamictrl.weights import MINI

SMALL = TrackerSize(image=96, stages=(8, 16, 32), blocks=(1, 1, 2), memory_layers=1)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    filled = Pool(tmp_path_factory.mktemp("pool"), 2)
    for index in range(2):
        filled.write(index, draw_example(7, index))
    return filled


@pytest.fixture
def model() -> Sam2VideoModel:
    """Untrained, but with something to see everywhere and sure of the person's presence."""
    torch.manual_seed(0)
    tracker = new_tracker(SMALL).eval()
    with torch.no_grad():
        for parameter in tracker.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        tracker.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(5.0)
    return tracker


def test_training_forward_is_the_sessions(model: Sam2VideoModel):
    video = np.repeat(np.repeat(np.random.default_rng(0).integers(0, 256, (6, 12, 8, 3), np.uint8), 8, 1), 8, 2)
    preparation = picture_preparation(SMALL.image)
    session = preparation.init_video_session(video=video)
    boxes = [[10.0, 20.0, 50.0, 90.0], [30.0, 20.0, 60.0, 60.0]]
    joints = [[[30.0, 30.0], [30.0, 50.0]], [[40.0, 30.0], [50.0, 40.0]]]
    preparation.add_inputs_to_inference_session(
        session, frame_idx=0, obj_ids=[1, 2], input_boxes=[boxes], input_points=[joints], input_labels=[[[1, 1]] * 2]
    )
    masks = [out.pred_masks for out in model.propagate_in_video_iterator(session, start_frame_idx=0)]

    pixels = torch.stack([session.get_frame(index) for index in range(6)]).expand(2, -1, -1, -1, -1)
    corners = torch.tensor(boxes).reshape(2, 2, 2)
    points = torch.cat([corners, torch.tensor(joints)], dim=1) * torch.tensor([96 / 64, 1.0])
    labels = torch.tensor([[2, 3, 1, 1]] * 2)
    with torch.no_grad():
        said = unroll(model, pixels, points, labels, torch.arange(6).expand(2, -1))
    expected = torch.stack([mask[:, 0] for mask in masks if mask is not None], dim=1)
    assert expected.std() > 0.01
    assert (expected[:, 1:] - expected[:, :-1]).abs().max() > 0.01
    torch.testing.assert_close(said.logits_BFHW, expected, rtol=1e-3, atol=1e-4)


def test_every_part_that_tracking_uses_is_trained(model: Sam2VideoModel, pool: Pool):
    clips = TrackClips(pool, 3, SMALL.image, "cpu")
    clips.grow()
    mask_loss(model, clips.batch(2, 3)).backward()
    untrained = {name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()}
    # Mask prompts are never given, nobody is absent, and the class does not use the last.
    unused = ("prompt_encoder.mask_embed", "mask_downsample.", "no_object_pointer", "occlusion_", "no_memory_pos")
    assert not {name for name in untrained if not name.startswith(unused)}


def test_a_training_writes_what_the_mask_tracker_loads(pool: Pool, tmp_path: Path):
    settings = Settings(
        device="cpu", max_steps=2, batch=2, frames=2, single_batch=2, single_share=0.5, held_out=1, log_seconds=0.0
    )
    torch.manual_seed(0)
    model = new_tracker(SMALL)
    measured = Training(model, pool, settings).run()
    assert measured["steps"] == 2
    assert 0 <= measured["held_out_iou_forward"] <= 1
    model.half().save_pretrained(tmp_path)
    picture_preparation(SMALL.image).save_pretrained(tmp_path)
    clip = MarionetteScene(1, 2, 3, persons=1, close_up=False).render(3, 96, 64, 12.0)
    tracker = Sam2MaskTracker(tmp_path, "cpu")
    assert tracker(clip.frames, clip.pose).shape == (3, 96, 64)


def test_prompts_lie_on_the_person():
    mask = torch.zeros(2, 96, 96)
    mask[0, 20:80, 30:60] = 1
    points, labels = draw_prompts(mask)
    assert labels.tolist() == [[2, 3, 1, 1, 1, 1]] * 2
    low, high, joints = points[0, 0], points[0, 1], points[0, 2:]
    assert (low - torch.tensor([30.0, 20.0])).abs().max() < 20
    assert (high - torch.tensor([59.0, 79.0])).abs().max() < 20
    assert (joints[:, 0] > 24).all()
    assert (joints[:, 0] < 66).all()
    assert (joints[:2, 1].mean() < joints[2:, 1].mean()) or (joints[:2] == joints[2:]).all()
    assert torch.isfinite(points).all()
    assert (points >= 0).all()
    assert (points <= 95).all()


def test_runs_of_frames_stay_within_the_clip_and_keep_their_direction():
    random = np.random.default_rng(0)
    for _ in range(200):
        times = draw_times(random, NUM_FRAMES, 6)
        steps = np.diff(times)
        assert times.min() >= 0
        assert times.max() < NUM_FRAMES
        assert (steps > 0).all() or (steps < 0).all()
        assert len(set(steps[1:])) == 1


def test_overlap_is_per_person_whatever_their_labels():
    true = np.zeros((2, 8, 8), np.uint8)
    true[:, :4], true[:, 4:] = 1, 2
    swapped = np.where(true == 1, 2, 1).astype(np.uint8)
    assert overlaps(swapped, true) == [[1.0, 1.0], [1.0, 1.0]]
    swapped[1, :4] = 0
    assert overlaps(swapped, true) == [[1.0, 0.0], [1.0, 1.0]]


@pytest.mark.skipif(not (MINI / "tracker").is_dir(), reason="the trained tracker is not among the shipped weights")
def test_the_shipped_tracker_follows_marionettes_that_no_trainer_drew():
    clip = held_out_clip(0)
    part = slice(0, 8)
    masks = Sam2MaskTracker("mini/tracker", "cpu")(clip.frames[part], clip.pose.frames(part))
    assert all(np.mean(person) > 0.8 for person in overlaps(masks, clip.persons[part]))
