"""Copies and leaks are refused over the whole data set, whatever order clips come in."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dynamictrl.errors import ConfigError, InputError
from dynamictrl.media.video import crop_to_even, encode_video
from dynamictrl.media.video_hash import hash_video
from dynamictrl.mini.marionettes import MarionetteScene
from pipelines import job
from pipelines.clip import Clip
from pipelines.commands.fingerprint import FingerprintVideos
from pipelines.datasets.verify import verify
from pipelines.files import storage
from pipelines.held_out import HeldOut, read_held_out, write_held_out
from pipelines.pipeline import Pipeline
from pipelines.stage import run_local
from pipelines.stages.cut_clips import CutClips
from pipelines.stages.drop_duplicates import DropDuplicates
from pipelines.stages.drop_leaks import DropLeaks
from pipelines.stages.fetch import Fetch
from pipelines.stages.find_videos import FindVideos
from pipelines.stages.fingerprint import Fingerprint
from pipelines.stages.probe import Probe
from pipelines.stages.split_shots import SplitShots
from pipelines.stages.write_shards import WriteShards
from tests.unit.pipelines.conftest import StandStill

FPS = 12.0


@cache
def take(seed: int) -> NDArray[np.uint8]:
    action = ("squat", "turn", "wave", "kick", "bow")[seed % 5]
    scene = MarionetteScene(seed, seed + 50, seed, persons=1, action=action, close_up=False)
    return scene.render(48, 128, 96, FPS, supersampling=1).frames


@cache
def video_bytes(seed: int, how: str = "") -> bytes:
    frames = take(seed)
    if how == "mirrored":
        frames = frames[:, :, ::-1]
    if how == "cropped":
        frames = frames[:, 6:-6, 5:-5]
    return encode_video(crop_to_even(np.ascontiguousarray(frames)), FPS, crf=30 if how else 20)


def clip(seed: int, how: str = "", work: str = "", **fields: object) -> Clip:
    """A fingerprinted clip of a source of its own."""
    width = 86 if how == "cropped" else 96
    made = Clip(
        source=f"/videos/{seed}{how}.mp4",
        source_sha256=(f"{seed:02x}{how.encode().hex()}" + "0" * 64)[:64],
        work=work,
        width=width,
        height=128,
        fps=FPS,
        frames=48,
        video_hash=hash_video(video_bytes(seed, how)).to_text(),
        scores={"sharpness": 30.0},
    )
    return replace(made, **fields).at(0.0, 4.0)  # type: ignore[arg-type]


def outcome(clips: Sequence[Clip]) -> dict[str, tuple[str, str]]:
    decided = list(DropDuplicates().decide(clips))
    assert [c.key for c in decided] == [c.key for c in clips]
    return {c.source: (c.rejected, c.message) for c in decided}


def test_a_clip_is_fingerprinted_on_its_row_from_its_mp4_or_its_source(cut_clip: Callable[..., Clip], tmp_path: Path):
    (from_clip,) = run_local([Fingerprint()], [cut_clip(take(1))])
    (tmp_path / "v.mp4").write_bytes(from_clip.file("mp4").read_bytes())
    (from_source,) = run_local([Fingerprint()], [Clip(path=str(tmp_path / "v.mp4"))])
    assert from_clip.video_hash == from_source.video_hash != ""
    assert from_clip.rejected == ""


def test_the_best_of_each_group_stays_whatever_the_order():
    clips = [clip(n, how) for n in (1, 2, 3) for how in ("", "mirrored", "cropped")]
    clips.append(replace(clip(4), rejected="blurred"))
    first = outcome(clips)
    assert {source for source, (reason, _) in first.items() if not reason} == {f"/videos/{n}.mp4" for n in (1, 2, 3)}
    assert sum(reason == "near_duplicate" for reason, _ in first.values()) == 6
    for seed in range(6):
        shuffled = random.Random(seed).sample(clips, len(clips))
        assert outcome(shuffled) == first


def test_more_pixels_then_length_then_sharpness_then_the_first_key_decide():
    small, mirrored = clip(1), clip(1, "mirrored")
    assert outcome([small, replace(mirrored, width=192)])[small.source][0] == "near_duplicate"
    assert outcome([replace(small, width=192), mirrored])[mirrored.source][0] == "near_duplicate"
    sharp = replace(mirrored, scores={"sharpness": 99.0})
    assert outcome([small, sharp])[small.source][0] == "near_duplicate"
    keys = sorted([small, mirrored], key=lambda c: c.key)
    assert outcome([small, mirrored])[keys[1].source][0] == "near_duplicate"


def test_the_refusal_names_its_keeper_and_how_alike_they_are():
    keeper, copy = replace(clip(1), width=192), clip(1, "mirrored")
    refused = {c.source: c for c in DropDuplicates().decide([copy, keeper])}[copy.source]
    assert f"of {keeper.key} ({keeper.source}), mirrored; similarity" in refused.message
    assert 0.83 <= refused.scores["duplicate_similarity"] <= 1


def test_the_same_bytes_under_two_names_are_one_source():
    one, other = clip(1), replace(clip(1), source="/videos/z.mp4")
    decided = {c.source: c for c in DropDuplicates().decide([other, one])}
    assert (decided[one.source].rejected, decided["/videos/z.mp4"].rejected) == ("", "duplicate_source")
    assert decided["/videos/z.mp4"].message == f"the same bytes as {one.source}"


def test_two_takes_of_one_dancer_in_one_room_both_stay():
    scenes = [
        MarionetteScene(7, motion, 7, persons=1, action=a, close_up=False) for motion, a in ((1, "squat"), (2, "wave"))
    ]
    clips = []
    for number, scene in enumerate(scenes):
        frames = scene.render(48, 128, 96, FPS, supersampling=1).frames
        clips.append(replace(clip(number), video_hash=hash_video(encode_video(frames, FPS)).to_text()))
    assert [c.rejected for c in DropDuplicates().decide(clips)] == ["", ""]


def test_clips_without_a_fingerprint_pass():
    assert outcome([Clip(source="a"), Clip(source="b", quarantined=True, rejected="empty_file")]) == {
        "a": ("", ""),
        "b": ("empty_file", ""),
    }
    assert list(DropDuplicates().decide([])) == []


@pytest.mark.parametrize("stage", [DropDuplicates, DropLeaks])
def test_likeness_out_of_its_range_is_refused(stage: type[DropDuplicates | DropLeaks]):
    with pytest.raises(ConfigError, match=r"similarity is 0\.2 \(0\.5 to 1\)"):
        stage(similarity=0.2)


@pytest.fixture
def tests_folder(tmp_path: Path) -> Path:
    """Two held-out videos."""
    folder = tmp_path / "held"
    folder.mkdir()
    for seed in (1, 2):
        (folder / f"test{seed}.mp4").write_bytes(video_bytes(seed))
    return folder


def test_a_copy_of_a_held_out_video_is_refused_by_its_name(tests_folder: Path, tmp_path: Path):
    stage = DropLeaks(held_out=(str(tests_folder),))
    stage.check()
    clips = [clip(n, how, work=str(tmp_path / "work")) for n, how in ((1, "mirrored"), (2, "cropped"), (3, ""))]
    decided = list(stage.decide(clips))
    assert [c.rejected for c in decided] == ["held_out", "held_out", ""]
    assert f"{tests_folder / 'test1.mp4'}, similarity" in decided[0].message
    assert decided[0].scores["held_out_similarity"] >= 0.8
    assert [c.rejected for c in stage.decide(clips[::-1])] == ["", "held_out", "held_out"]


def test_what_was_hashed_is_found_again_by_its_content(tests_folder: Path, tmp_path: Path):
    read_held_out([str(tests_folder)], tmp_path / "cache")
    for path in (tmp_path / "cache").iterdir():
        path.write_text(json.dumps({**json.loads(path.read_text()), "video_hash": "from the cache"}))
    (tests_folder / "test1.mp4").rename(tests_folder / "renamed.mp4")
    found = read_held_out([str(tests_folder)], tmp_path / "cache")
    assert [(Path(v.name).name, v.video_hash) for v in found] == [
        ("renamed.mp4", "from the cache"), ("test2.mp4", "from the cache")
    ]  # fmt: skip


def test_the_same_bytes_as_a_held_out_video_are_refused_without_a_hash(tmp_path: Path):
    write_held_out(tmp_path / "list.jsonl", [HeldOut("unseen 7", "ab" * 32, "")])
    leak = Clip(source="x", source_sha256="ab" * 32, work=str(tmp_path))
    (decided,) = DropLeaks(held_out=(str(tmp_path / "list.jsonl"),)).decide([leak])
    assert (decided.rejected, decided.message) == (
        "held_out", "shows what is held out: unseen 7, similarity 1.00"
    )  # fmt: skip


@pytest.mark.parametrize("name", ["list.jsonl", "list.parquet"])
def test_a_list_of_hashes_keeps_videos_out_without_them(name: str, tests_folder: Path, tmp_path: Path):
    assert FingerprintVideos(videos=(str(tests_folder),), out=tmp_path / name).run() == 0
    for path in tests_folder.iterdir():
        path.unlink()
    (decided,) = DropLeaks(held_out=(str(tmp_path / name),)).decide([clip(1, "mirrored", work=str(tmp_path))])
    assert decided.rejected == "held_out"
    assert [Path(video.name).name for video in read_held_out([str(tmp_path / name)])] == ["test1.mp4", "test2.mp4"]


def test_a_held_out_video_is_hashed_in_a_process_of_its_own(tests_folder: Path):
    (video,) = read_held_out([str(tests_folder / "test1.mp4")])
    assert video.video_hash == hash_video(video_bytes(1)).to_text()


def test_a_held_out_video_that_cannot_be_read_stops_the_check(tmp_path: Path):
    (tmp_path / "bad.mp4").write_bytes(b"<html>")
    with pytest.raises(InputError, match=r"bad\.mp4 cannot be read \(not_media"):
        read_held_out([str(tmp_path / "bad.mp4")])


@pytest.mark.parametrize(
    ("row", "message"),
    [({"name": "x"}, "neither sha256 nor video_hash"), ({"video_hash": "zzz"}, "no video hash of version 1")],
)
def test_a_malformed_list_is_refused(row: dict[str, str], message: str, tmp_path: Path):
    (tmp_path / "list.jsonl").write_text(json.dumps(row))
    with pytest.raises(InputError, match=message):
        read_held_out([str(tmp_path / "list.jsonl")])


def test_a_held_out_name_that_is_nothing_is_refused_before_any_work(tmp_path: Path):
    with pytest.raises(ConfigError, match="does not exist; give files or folders"):
        DropLeaks(held_out=(str(tmp_path / "nowhere"),)).check()
    assert not DropLeaks().active


def test_a_list_of_another_kind_is_not_written(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"must end in \.jsonl or \.parquet"):
        FingerprintVideos(videos=("x",), out=tmp_path / "list.csv")


@dataclass(frozen=True, kw_only=True)
class Guarded(Pipeline):
    """A whole pipeline without weights that looks for copies and leaks before anything costly."""

    find: FindVideos = field(default_factory=FindVideos)
    fetch: Fetch = field(default_factory=Fetch)
    probe: Probe = field(default_factory=Probe)
    shots: SplitShots = field(default_factory=SplitShots)
    cut: CutClips = field(default_factory=lambda: CutClips(longest=8, fps=FPS, width=96, height=128))
    fingerprint: Fingerprint = field(default_factory=Fingerprint)
    leaks: DropLeaks = field(default_factory=DropLeaks)
    duplicates: DropDuplicates = field(default_factory=DropDuplicates)
    person: StandStill = field(default_factory=StandStill)
    shards: WriteShards = field(default_factory=lambda: WriteShards(size=1.0))


def test_copies_and_leaks_leave_a_run_before_anything_costly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, seed, how in (("a", 0, ""), ("b", 0, "mirrored"), ("c", 1, ""), ("d", 2, "")):
        storage.write_bytes(tmp_path / "videos" / f"{name}.mp4", video_bytes(seed, how))
    storage.write_bytes(tmp_path / "held out" / "test.mp4", video_bytes(2))
    seen: list[str] = []
    stand = StandStill.process

    def noted(stage: StandStill, clip: Clip) -> object:
        seen.append(Path(clip.source).stem)
        return stand(stage, clip)

    monkeypatch.setattr(StandStill, "process", noted)
    pipeline = Guarded(
        videos=(str(tmp_path / "videos"),), out=str(tmp_path / "set"), local=True, time_limit=0.0,
        leaks=DropLeaks(held_out=(str(tmp_path / "held out"),)),
    )  # fmt: skip
    counts = job.run("guarded", pipeline).description["counts"]
    assert counts["rejected"] == {"held_out": 1, "near_duplicate": 1}
    assert len(seen) == counts["kept"] == 2
    assert "c" in seen
    assert verify(tmp_path / "set") == []
    assert not job.run("guarded", pipeline).changed
    # Another held-out list is another data set; nothing is posed again for it.
    counts = job.run("guarded", replace(pipeline, leaks=DropLeaks())).description["counts"]
    assert counts["rejected"] == {"near_duplicate": 1}
    assert sorted(seen)[-2:] == ["c", "d"]
    assert len(seen) == 3
