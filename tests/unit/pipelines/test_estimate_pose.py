"""The pose stage on real clips and the small models."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dynamictrl.mini.marionettes import MarionetteScene
from dynamictrl.poses.dwpose import PoseEstimator
from dynamictrl.poses.dwpose_networks import Acceleration
from dynamictrl.poses.pose import PoseSequence
from pipelines.clip import Clip
from pipelines.records.keys import stage_key
from pipelines.stage import run_local, step
from pipelines.stages.estimate_pose import EstimatePose

Make = Callable[..., Clip]
MINI = EstimatePose(model="mini/dwpose", device="cpu")


@pytest.fixture
def clips(cut_clip: Make) -> list[Clip]:
    """One person, two persons, a broken file, one person."""
    made = []
    for seed, (persons, frames) in enumerate([(1, 6), (2, 4), (1, 3), (1, 5)], start=1):
        scene = MarionetteScene(seed, seed + 2, 3, persons=persons, close_up=False)
        made.append(cut_clip(scene.render(frames, 192, 256, 12).frames, source_sha256=f"{seed}" * 64))
    made[2].file("mp4").write_bytes(b"no video")
    return made


def test_every_frame_has_its_pose_and_a_broken_clip_costs_no_other(clips: list[Clip]):
    done = step(MINI, clips)
    assert [clip.rejected for clip in done] == ["", "", "not_media", ""]
    assert done[2].stage == "estimate_pose"
    poses = [PoseSequence.from_npz(c.file("pose.npz").read_bytes()) for c in done if not c.rejected]
    assert [pose.num_frames for pose in poses] == [6, 4, 5]
    assert [clip.scores.get("persons") for clip in done] == [1, 2, None, 1]
    assert done[0].models["pose"] == "mini/dwpose"


def test_several_clips_at_once_give_the_bytes_of_one_after_another(clips: list[Clip]):
    run_local([MINI], clips)
    alone = [clip.file("pose.npz").read_bytes() for clip in (clips[0], clips[1], clips[3])]
    step(MINI, clips)
    assert [clip.file("pose.npz").read_bytes() for clip in (clips[0], clips[1], clips[3])] == alone


def test_clips_decoded_ahead_come_out_in_order(clips: list[Clip], monkeypatch: pytest.MonkeyPatch):
    stage = replace(MINI, device="cuda")
    how = Acceleration(frames=4, crops=4, threads=2)
    ours = PoseEstimator("mini/dwpose", num_threads=1, acceleration=how)
    # The way of a GPU, on the CPU: the frozen stage keeps what its `estimator` made in its dict.
    stage.__dict__["estimator"] = ours
    done = step(stage, clips)
    assert [clip.key for clip in done] == [clip.key for clip in clips]
    assert [clip.rejected for clip in done] == ["", "", "not_media", ""]
    assert [clip.scores.get("persons") for clip in done] == [1, 2, None, 1]


def test_a_clip_that_lost_a_frame_is_refused(clips: list[Clip]):
    (done,) = step(MINI, [replace(clips[0], frames=7)])
    assert (done.rejected, done.files) == ("pose_misaligned", ("mp4",))
    assert "6 frames" in done.message


def test_the_key_follows_the_weights_and_not_the_machine(tmp_path: Path):
    assert EstimatePose.reads == ("mp4",)
    assert MINI.weights == ("mini/dwpose",)
    assert stage_key(MINI) == stage_key(replace(MINI, gpu_share=1.0, cores=9.0))
    assert stage_key(MINI) != stage_key(replace(MINI, model=str(tmp_path)))


def test_only_a_gpu_is_asked_for_what_it_needs():
    assert (MINI.num_gpus, MINI.num_cpus) == (0.0, 1.0)
    fast = replace(MINI, device="cuda")
    assert (fast.num_gpus, fast.num_cpus) == (0.25, 4.0)
