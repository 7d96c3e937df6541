"""The stages `Caption` and `TrackMasks` on several clips: what is recorded, retried, refused, and joined to whom."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dynamictrl.captions.captioning import Answer, Manner
from dynamictrl.errors import ConfigError, MediaError
from dynamictrl.mini.tracker.held_out import held_out_clip
from dynamictrl.poses.pose import PoseSequence
from pipelines.clip import Clip
from pipelines.files import storage
from pipelines.records.keys import stage_key
from pipelines.stage import run_local
from pipelines.stages.caption import Caption
from pipelines.stages.track_masks import SKELETON_SEEDED, TrackMasks
from tests.unit.pipelines.conftest import FPS, shot, still_person

Make = Callable[..., Clip]


@pytest.fixture
def three(cut_clip: Make) -> list[Clip]:
    return [cut_clip(shot(seed, 6 + 6 * seed), source_sha256=f"{seed:02x}" * 32) for seed in range(3)]


def test_clips_are_described_together_and_come_back_in_order_with_their_record(three: list[Clip]):
    stage = Caption("mini/captioner", device="cpu", required=False)
    stage.setup()
    done = list(stage.process_many(three))
    assert [clip.key for clip in done] == [clip.key for clip in three]
    assert [clip.caption for clip in stage.process_many(three[::-1])] == [clip.caption for clip in done[::-1]]
    # The mini model is shown at most twelve frames.
    assert [clip.scores["caption_frames"] for clip in done] == [6, 12, 12]
    assert done[0].models["caption frames"] == "0 1 2 3 4 5"
    assert done[0].models["caption prompt"] == stage.prompt
    assert done[0].models["caption decoding"] == "greedy, 128 tokens at most"
    assert all(clip.scores["caption_tokens"] > 0 and clip.scores["caption_tries"] == 1 for clip in done)


def test_a_clip_that_cannot_be_decoded_is_refused_alone(three: list[Clip]):
    three[1].file("mp4").write_bytes(b"gone")
    stage = Caption("mini/captioner", device="cpu", required=False)
    done = list(stage.process_many(three))
    assert [clip.rejected for clip in done] == ["", "not_media", ""]
    assert done[0].caption
    assert done[2].caption


def answer(clip: Clip, text: str, manner: Manner) -> Answer:
    return Answer(clip.key, text, len(text.split()), manner, (0,), (0.0,))


def test_what_is_no_caption_is_asked_for_again_in_other_words_and_judged_again(three: list[Clip]):
    stage = Caption("mini/captioner", device="cpu")
    first, second = Manner(stage.prompt), stage.second_manner
    said = {three[0].key: "A man walks.", three[1].key: "I'm sorry, I can't.", three[2].key: "la " * 20}
    answers = {clip.key: answer(clip, said[clip.key], first) for clip in three}
    again = {three[1].key: answer(three[1], "A woman sits.", second), three[2].key: answer(three[2], "", second)}
    done = list(stage.joined(three, answers, again, "hash"))
    assert [clip.caption for clip in done] == ["A man walks.", "A woman sits.", ""]
    assert [clip.rejected for clip in done] == ["", "", "empty_caption"]
    assert [clip.scores["caption_tries"] for clip in done] == [1, 2, 2]
    assert done[1].models["caption prompt"] == stage.second_prompt
    assert "repetition penalty 1.1" in done[1].models["caption decoding"]


def test_an_untrained_model_is_asked_twice_unless_told_otherwise(cut_clip: Make, tiny_captioner: Path):
    clip = cut_clip(shot(1, 8))
    stage = Caption(str(tiny_captioner), device="cpu", required=False, max_new_tokens=40)
    (twice,) = run_local([stage], [clip])
    (once,) = run_local([replace(stage, second_prompt="")], [clip])
    assert once.caption == ""
    assert (once.scores["caption_tries"], twice.scores["caption_tries"]) == (1, 2)


def test_a_failed_reading_is_a_refusal_with_its_own_code(three: list[Clip]):
    stage = Caption("mini/captioner", device="cpu")
    problem = MediaError("ends early", code="truncated")
    (clip,) = stage.joined(three[:1], {three[0].key: problem}, {}, "hash")
    assert (clip.rejected, clip.message) == ("truncated", "ends early")


def test_how_fast_captions_are_made_does_not_name_them_and_what_is_asked_does():
    stage = Caption("mini/captioner")
    assert stage_key(replace(stage, batch=3, readers=9, gpu_share=1.0)) == stage_key(stage)
    assert stage_key(replace(stage, prompt="What?")) != stage_key(stage)
    assert (stage.weights, Caption("sidecar").weights) == (("mini/captioner",), ())
    with pytest.raises(ConfigError, match="batch 0"):
        replace(stage, batch=0)


def posed(clip: Clip, pose: PoseSequence) -> Clip:
    storage.write_bytes(clip.file("pose.npz"), pose.to_npz())
    return clip.with_file("pose.npz")


def test_masks_that_lie_beside_the_pose_are_refused_with_their_scores(cut_clip: Make):
    clip = posed(cut_clip(), still_person(24))
    stage = TrackMasks(tracker=SKELETON_SEEDED, device="cpu")
    (kept,) = run_local([stage], [clip])
    assert kept.scores["mask_on_pose_worst"] > 0.8
    assert kept.scores["mask_drifted"] == 0
    stage.__dict__["tracking"] = Elsewhere()
    (refused,) = stage.process(clip)
    assert (refused.rejected, refused.scores["mask_drifted"]) == ("mask_drift", 1)
    assert "least_on_pose" in refused.message
    any_mask = replace(stage, least_on_pose=0.0)
    any_mask.__dict__["tracking"] = Elsewhere()
    assert next(iter(any_mask.process(clip))).rejected == ""


def test_the_shipped_tracker_s_masks_are_finer_than_the_skeleton_s(cut_clip: Make):
    truth = held_out_clip(0)
    part = slice(0, 6)
    whole = posed(cut_clip(truth.frames[part]), truth.pose.frames(part))
    overlap = {}
    for tracker in ("mini/tracker", SKELETON_SEEDED):
        (clip,) = run_local([TrackMasks(tracker=tracker, device="cpu")], [whole])
        assert (clip.rejected, clip.models["mask"]) == ("", tracker)
        with np.load(io.BytesIO(clip.file("mask.npz").read_bytes())) as arrays:
            found, true = arrays["persons"] > 0, truth.persons[part] > 0
        overlap[tracker] = (found & true).sum() / (found | true).sum()
    assert overlap["mini/tracker"] > max(0.93, overlap[SKELETON_SEEDED])


class Elsewhere:
    """A tracker that follows something in the corner."""

    model_id = "elsewhere"

    def __call__(self, frames: np.ndarray, pose: PoseSequence) -> np.ndarray:
        masks = np.zeros(frames.shape[:3], np.uint8)
        masks[:, :8, :8] = 1
        return masks


def test_clothes_are_those_of_the_persons(cut_clip: Make):
    clip = posed(cut_clip(), still_person(24))
    stage = TrackMasks(tracker=SKELETON_SEEDED, device="cpu", clothes="someone/parser")
    stage.__dict__["clothing"] = lambda frames: np.broadcast_to(
        np.arange(frames.shape[1])[:, None] > 48, frames.shape[:3]
    )
    (clip,) = stage.process(clip)
    with np.load(io.BytesIO(clip.file("mask.npz").read_bytes())) as arrays:
        persons, clothes = arrays["persons"], arrays["clothes"]
    assert clothes.dtype == np.uint8
    np.testing.assert_array_equal(clothes[:, 49:], persons[:, 49:] > 0)
    assert not clothes[:, :49].any()
    assert clip.models["clothes"] == "someone/parser"
    assert 0 < clip.scores["clothes_area"] < clip.scores["mask_area"]
    assert stage.weights == ("someone/parser",)
    assert clip.fps == FPS
