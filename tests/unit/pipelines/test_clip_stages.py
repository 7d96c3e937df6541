"""The stages that see a cut clip: sharpness, person, masks, caption, and the check before a shard."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dynamictrl.poses.pose import PoseSequence
from dynamictrl.samples.shards import pack_mask
from pipelines.clip import Clip
from pipelines.files import storage
from pipelines.stage import run_local
from pipelines.stages.caption import SIDECAR, Caption
from pipelines.stages.keep_person import KeepPerson
from pipelines.stages.track_masks import SKELETON_SEEDED, TrackMasks
from pipelines.stages.write_shards import WriteShards
from tests.unit.pipelines.conftest import shot, still_person

Make = Callable[..., Clip]


def with_pose(clip: Clip, pose: PoseSequence) -> Clip:
    storage.write_bytes(clip.file("pose.npz"), pose.to_npz())
    return clip.with_file("pose.npz")


def with_mask(clip: Clip, frames: int) -> Clip:
    storage.write_bytes(clip.file("mask.npz"), pack_mask(np.zeros((frames, clip.height, clip.width), np.uint8)))
    return clip.with_file("mask.npz")


def test_a_person_in_full_view_is_kept_and_measured(cut_clip: Make):
    (clip,) = run_local([KeepPerson()], [with_pose(cut_clip(), still_person(24))])
    assert clip.rejected == ""
    assert clip.scores["presence"] == clip.scores["body_visible"] == 1
    assert clip.scores["person_height"] == pytest.approx(0.8)


def absent_half(pose: PoseSequence) -> PoseSequence:
    return replace(pose, scores=pose.scores * (np.arange(len(pose.scores)) % 2)[:, None, None])


def small(pose: PoseSequence) -> PoseSequence:
    return replace(pose, boxes=np.tile(np.array([0.4, 0.4, 0.5, 0.6], np.float32), (len(pose.boxes), 1, 1)))


def hidden(pose: PoseSequence) -> PoseSequence:
    return replace(pose, scores=np.where(np.arange(pose.scores.shape[2]) < 6, 1, 0.1) * pose.scores)


def crowd(pose: PoseSequence) -> PoseSequence:
    parts = [np.concatenate([getattr(pose, n)] * 6, axis=1) for n in ("keypoints", "scores", "boxes")]
    return PoseSequence(*parts, np.arange(1, 7, dtype=np.int32))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (absent_half, "person_often_absent"),
        (small, "person_too_small"),
        (hidden, "body_hidden"),
        (crowd, "too_many_persons"),
        (lambda pose: PoseSequence.empty(pose.num_frames), "no_person"),
    ],
)
def test_a_person_not_seen_well_is_refused_for_its_own_reason(
    change: Callable[[PoseSequence], PoseSequence], reason: str, cut_clip: Make
):
    (clip,) = run_local([KeepPerson()], [with_pose(cut_clip(), change(still_person(24)))])
    assert clip.rejected == reason


def test_masks_are_of_the_clips_size_and_lie_on_the_person(cut_clip: Make):
    frames = np.full((8, 96, 128, 3), 40, np.uint8)
    frames[:, 10:86, 54:74] = (220, 60, 60)
    clip = with_pose(cut_clip(frames), still_person(8))
    (clip,) = run_local([TrackMasks(tracker=SKELETON_SEEDED, device="cpu")], [clip])
    with np.load(io.BytesIO(clip.file("mask.npz").read_bytes())) as arrays:
        assert arrays["persons"].shape == (8, 96, 128)
        assert set(np.unique(arrays["persons"])) == {0, 1}
    assert clip.models["mask"] == SKELETON_SEEDED
    assert clip.scores["mask_on_pose"] > 0.8


def test_a_caption_is_taken_from_the_text_beside_the_source(cut_clip: Make, tmp_path: Path):
    side_car = {"shots": [{"start": 0, "end": 2, "caption": "a red\n puppet"}]}
    (tmp_path / "v.json").write_text(json.dumps(side_car))
    (clip,) = run_local([Caption(captioner=SIDECAR)], [cut_clip(path=str(tmp_path / "v.mp4"))])
    assert (clip.caption, clip.models["caption"], clip.rejected) == ("a red puppet", "sidecar", "")


@pytest.mark.parametrize(("required", "reason"), [(True, "empty_caption"), (False, "")])
def test_a_clip_without_text_is_refused_only_where_text_is_required(required: bool, reason: str, cut_clip: Make):
    (clip,) = run_local([Caption(captioner=SIDECAR, required=required)], [cut_clip(path="/nowhere/v.mp4")])
    assert (clip.caption, clip.rejected) == ("", reason)
    assert clip.message == "empty_caption: sidecar gave no text"


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize(
    ("text", "problem"),
    [("I'm sorry, I cannot describe this.", "caption_refusal"), ("round and round " * 9, "caption_loop")],
)
def test_words_that_are_no_caption_never_reach_the_training_set(
    text: str, problem: str, required: bool, cut_clip: Make, tmp_path: Path
):
    (tmp_path / "v.json").write_text(json.dumps({"caption": text}))
    stage = Caption(captioner=SIDECAR, required=required)
    (clip,) = run_local([stage], [cut_clip(path=str(tmp_path / "v.mp4"))])
    assert (clip.caption, clip.rejected) == ("", problem if required else "")
    # The record says why, with what was said.
    assert clip.message.startswith(f"{problem}: sidecar said")
    assert text[:20] in clip.message


def test_the_minis_captioner_describes_a_clip_on_the_cpu(cut_clip: Make, tiny_captioner: Path):
    stage = Caption(captioner=str(tiny_captioner), device="cpu", required=False, max_new_tokens=4)
    stage.check()
    assert stage.num_gpus == 0
    clip = cut_clip(shot(1, 12))
    first, second = (run_local([stage], [clip])[0] for _ in range(2))
    assert first.models["caption"] == str(tiny_captioner)
    assert len(first.models["caption sha256"]) == 64
    # Untrained, it may say nothing; then the record must say so.
    assert bool(first.caption) != bool(first.message)
    assert (first.caption, first.message, first.rejected) == (second.caption, second.message, "")


def test_members_of_one_length_pass_and_text_and_description_are_written(cut_clip: Make):
    clip = replace(with_mask(with_pose(cut_clip(), still_person(24)), 24), caption="ä", licence="CC0")
    (clip,) = run_local([WriteShards()], [clip])
    assert clip.rejected == ""
    assert clip.file("txt").read_text() == "ä"
    info = json.loads(clip.file("json").read_text())
    assert {"schema_version", "source", "source_sha256", "start", "end", "fps", "frames", "width", "height"} <= set(
        info
    )
    assert (info["licence"], info["frames"]) == ("CC0", 24)


@pytest.mark.parametrize(("poses", "masks"), [(23, 24), (24, 23)])
def test_a_clip_whose_members_differ_in_length_is_not_written(poses: int, masks: int, cut_clip: Make):
    (clip,) = run_local([WriteShards()], [with_mask(with_pose(cut_clip(), still_person(poses)), masks)])
    assert clip.rejected == "misaligned"
    assert "24" in clip.message
    assert "23" in clip.message


def test_a_clip_without_a_mask_is_not_written(cut_clip: Make):
    assert run_local([WriteShards()], [with_pose(cut_clip(), still_person(24))])[0].rejected == "misaligned"
