"""The stages that see a whole source: fetch, probe, size, shots, duration, cut."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from dynamictrl.errors import ConfigError
from dynamictrl.video import probe, read_video
from pipelines.clip import Clip
from pipelines.stage import run_local
from pipelines.stages.cut_clips import CutClips
from pipelines.stages.fetch import Fetch
from pipelines.stages.keep_size import KeepSize
from pipelines.stages.probe import Probe
from pipelines.stages.split_shots import SplitShots

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
