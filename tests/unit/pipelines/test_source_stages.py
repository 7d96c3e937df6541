"""The stages that see a whole source: fetch, probe, size, shots, duration, cut."""

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dynamictrl.errors import ConfigError
from dynamictrl.media.video import probe, read_video, write_video
from pipelines.clip import Clip
from pipelines.stage import run_local
from pipelines.stages.cut_clips import CutClips
from pipelines.stages.fetch import Fetch
from pipelines.stages.keep_size import KeepSize
from pipelines.stages.probe import Probe
from pipelines.stages.split_shots import SplitShots
from tests.unit.dynamictrl.test_shots import tiny_network

Make = Callable[..., Path]


def source(path: Path, tmp_path: Path) -> Clip:
    return Clip(source=str(path), path=str(path), fingerprint="f", work=str(tmp_path / "work"))


def test_fetch_takes_the_hash_of_the_content(make_video: Make, tmp_path: Path):
    path = make_video("a.mp4", (1, 12))
    (clip,) = run_local([Fetch()], [source(path, tmp_path)])
    assert clip.source_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_source_that_is_gone_is_quarantined_as_unreadable(tmp_path: Path):
    (clip,) = run_local([Fetch()], [source(tmp_path / "gone.mp4", tmp_path)])
    assert (clip.quarantined, clip.rejected) == (True, "unreadable")


def test_a_remote_source_that_cannot_be_had_is_quarantined(tmp_path: Path):
    clip = Clip(source="http://127.0.0.1:9/a.mp4", fingerprint="f", work=str(tmp_path))
    assert run_local([Fetch(wait=0)], [clip])[0].rejected == "unreachable"


def test_probe_knows_size_rate_and_length(make_video: Make, tmp_path: Path):
    (clip,) = run_local([Fetch(), Probe()], [source(make_video("a.mp4", (1, 30), fps=15), tmp_path)])
    assert (clip.width, clip.height, clip.fps, clip.duration) == (128, 96, 15, 2.0)
    assert clip.key.endswith("-00000000-00002000")


@pytest.mark.parametrize(("content", "reason"), [(b"", "empty_file"), (b"<html>no video</html>", "not_media")])
def test_what_is_no_video_is_quarantined_with_a_true_reason(content: bytes, reason: str, tmp_path: Path):
    path = tmp_path / "x.mp4"
    path.write_bytes(content)
    (clip,) = run_local([Fetch(), Probe()], [source(path, tmp_path)])
    assert (clip.quarantined, clip.rejected, clip.stage) == (True, reason, "probe")


def test_a_small_picture_is_refused_and_a_large_enough_one_kept(make_video: Make, tmp_path: Path):
    clip = source(make_video("a.mp4", (1, 12)), tmp_path)
    assert run_local([Probe(), KeepSize(smallest=97)], [clip])[0].rejected == "too_small"
    assert run_local([Probe(), KeepSize(smallest=96)], [clip])[0].rejected == ""


def test_shots_meet_at_the_cuts_and_cover_the_whole(make_video: Make, tmp_path: Path):
    path = make_video("a.mp4", (1, 18), (2, 24), (3, 30))
    shots = run_local([SplitShots()], [source(path, tmp_path)])
    assert [(s.start, s.end) for s in shots] == [(0, 1.5), (1.5, 3.5), (3.5, 6.0)]


def test_one_long_motion_is_one_shot(make_video: Make, tmp_path: Path):
    assert len(run_local([SplitShots()], [source(make_video("a.mp4", (1, 60)), tmp_path)])) == 1


def test_damage_behind_the_first_frame_quarantines_the_source(make_video: Make, tmp_path: Path):
    path = make_video("a.mp4", (1, 120))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    (clip,) = run_local([Fetch(), Probe(), SplitShots()], [source(path, tmp_path)])
    assert clip.quarantined
    assert clip.rejected in {"decode_error", "truncated"}


def test_a_long_shot_becomes_windows_of_equal_length_at_the_rate_asked_for(make_video: Make, tmp_path: Path):
    stages = [Fetch(), SplitShots(), CutClips(longest=2.0, fps=12, width=128, height=96)]
    clips = run_local(stages, [source(make_video("a.mp4", (1, 150), fps=30), tmp_path)])
    assert [(c.start, c.end) for c in clips] == [(0, 1.667), (1.667, 3.333), (3.333, 5.0)]
    for clip in clips:
        video = read_video(clip.file("mp4"))
        assert len(video.frames) == clip.frames == 20
        assert (video.width, video.height, video.fps) == (clip.width, clip.height, 12)


def test_a_large_picture_is_shrunk_until_it_just_covers_and_keeps_its_shape(make_video: Make, tmp_path: Path):
    path = make_video("a.mp4", (1, 12), size=(320, 640))
    (clip,) = run_local([Fetch(), SplitShots(), CutClips(fps=12, width=100, height=160)], [source(path, tmp_path)])
    info = probe(clip.file("mp4"))
    assert (info.width, info.height, info.codec, info.pixel_format) == (320, 160, "h264", "yuv420p")


def test_a_small_picture_is_not_enlarged(make_video: Make, tmp_path: Path):
    path = make_video("a.mp4", (1, 12))
    (clip,) = run_local([Fetch(), SplitShots(), CutClips(fps=12, width=512, height=512)], [source(path, tmp_path)])
    assert (clip.width, clip.height) == (128, 96)


def test_settings_out_of_range_are_refused_at_construction():
    with pytest.raises(ConfigError, match="fps 0"):
        CutClips(fps=0)
    with pytest.raises(ConfigError, match="threshold 0.5"):
        SplitShots(threshold=0.5)


def test_with_salvage_the_shots_before_the_damage_are_kept(make_video: Make, tmp_path: Path):
    path = make_video("a.mp4", (1, 36), (2, 36), (3, 36))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 4 // 5])
    clip = source(path, tmp_path)
    (refused,) = run_local([SplitShots()], [clip])
    assert (refused.quarantined, refused.rejected) == (True, "truncated")
    kept, damaged = sorted(run_local([SplitShots(salvage=True)], [clip]), key=lambda c: c.start)[:2]
    assert (kept.start, kept.end, kept.rejected) == (0, 3, "")
    shots = run_local([SplitShots(salvage=True)], [clip])
    assert [s.rejected for s in shots if s.rejected] == ["truncated"]
    assert not any(s.quarantined for s in shots)
    assert damaged.start >= 3


def test_scores_say_what_was_seen(make_video: Make, tmp_path: Path):
    (shot,) = run_local([SplitShots()], [source(make_video("a.mp4", (1, 24)), tmp_path)])
    assert shot.scores["damage_lines"] == shot.scores["seconds_missing"] == shot.scores["mended_times"] == 0


def test_a_network_file_and_its_detector_are_named_together():
    with pytest.raises(ConfigError, match="needs its ONNX file"):
        SplitShots(detector="transnetv2")
    with pytest.raises(ConfigError, match="adaptive none"):
        SplitShots(network="transnetv2.onnx")


def test_shots_are_split_by_a_network_where_one_is_named(make_video: Make, tmp_path: Path):
    network = tiny_network(tmp_path / "transnetv2.onnx", [1, 100, 27, 48, 3])
    stage = SplitShots(detector="transnetv2", network=str(network))
    assert stage.weights == (str(network),)
    white = np.full((1, 96, 128, 3), 255, np.uint8)
    path = tmp_path / "flash.mp4"
    dark = np.zeros((30, 96, 128, 3), np.uint8)
    write_video(path, np.concatenate([dark, white, dark]), 12)
    shots = run_local([pickle.loads(pickle.dumps(stage))], [source(path, tmp_path)])
    assert [(s.start, s.end) for s in shots if not s.rejected] == [(0, 2.583), (2.583, 5.083)]
