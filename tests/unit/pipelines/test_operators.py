"""How stages are bundled into workers, and what a bundle remembers."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest

from dynamictrl.errors import CheckpointError, DatasetError
from pipelines.clip import Clip
from pipelines.files import claim, run_folder, storage
from pipelines.recipes import curate, curate_mini
from pipelines.records import attempts, keys
from pipelines.stage import Stage
from pipelines.stages.caption import Caption
from pipelines.stages.cut_clips import CutClips
from pipelines.stages.fetch import Fetch
from pipelines.stages.probe import Probe
from pipelines.stages.split_shots import SplitShots
from pipelines.work import phases
from pipelines.work.clip_operator import ClipOperator, clip_operators
from pipelines.work.source_operator import SourceOperator


@dataclass(frozen=True)
class Weigh(Stage):
    """Writes a member that says how long the mp4 is."""

    reads: ClassVar[tuple[str, ...] | None] = ("mp4",)
    unit: str = "bytes"

    def process(self, clip: Clip) -> Iterable[Clip]:
        storage.write_bytes(clip.file("weight"), f"{clip.file('mp4').stat().st_size} {self.unit}".encode())
        yield clip.with_file("weight").with_scores(weight=clip.file("mp4").stat().st_size)


@dataclass(frozen=True)
class Say(Stage):
    """Captions, whatever was weighed."""

    reads: ClassVar[tuple[str, ...] | None] = ("mp4",)
    text: str = "a dancer"

    def process(self, clip: Clip) -> Iterable[Clip]:
        yield replace(clip, caption=self.text)


@dataclass(frozen=True)
class KeepLight(Stage):
    """Refuses by the score alone."""

    reads: ClassVar[tuple[str, ...] | None] = ("scores",)
    heaviest: float = 1e9

    def process(self, clip: Clip) -> Iterable[Clip]:
        yield clip if clip.scores["weight"] <= self.heaviest else clip.reject("heavy", "too heavy")


@dataclass(frozen=True)
class Together(Stage):
    """Takes clips at once, and dies of one of them."""

    def process_many(self, clips: Sequence[Clip]) -> Iterable[Clip]:
        return [self._one(clip) for clip in clips]

    def process(self, clip: Clip) -> Iterable[Clip]:
        yield self._one(clip)

    def _one(self, clip: Clip) -> Clip:
        if clip.caption == "bad":
            raise ValueError("it is bad")
        return clip.with_scores(seen=1.0)


@dataclass(frozen=True)
class Overtaken(Stage):
    """While it writes a file, its driver is dead and the next run begins."""

    def process(self, clip: Clip) -> Iterable[Clip]:
        half = clip.file("weight").with_name(".weight.1.tmp")
        half.write_bytes(b"so far")
        with run_folder.claimed(Path(clip.work) / "set", clip.work):
            storage.move_whole(half, clip.file("weight"))
        yield clip.with_file("weight")


def names(operator: ClipOperator) -> list[str]:
    return [stage.name for stage in operator.stages]


def worked(operator: ClipOperator) -> dict[str, int]:
    return {stage: cost.units for stage, cost in operator.meter.stages.items()}


@pytest.fixture
def clip(tmp_path: Path) -> Clip:
    made = Clip(key="k" * 8, source="s", frames=3, end=3, work=str(tmp_path), lineage={"source": "abc"})
    storage.write_bytes(made.file("mp4"), b"pictures")
    return made.with_file("mp4")


def test_models_on_gpus_get_workers_of_their_own_with_the_light_stages_behind_them(tmp_path: Path):
    last = phases.phases_of(curate().all_stages(), tmp_path)[-1]
    heavy = [[s.name for s in o.stages if type(s).setup is not Stage.setup and s.num_gpus] for o in last.operators]
    assert [group for group in heavy if group] == [["estimate_pose"], ["track_masks"], ["caption"]]


def test_on_the_cpu_all_stages_of_a_clip_share_a_worker(tmp_path: Path):
    assert [len(phase.operators) for phase in phases.phases_of(curate_mini().all_stages(), tmp_path)][-1] == 1


def test_what_no_clip_can_decide_alone_ends_a_phase(tmp_path: Path):
    @dataclass(frozen=True)
    class All(Stage):
        per = "dataset"

    found = phases.phases_of([Fetch(), Weigh(), All(), Say()], tmp_path)
    assert [([names(o) for o in p.operators], [s.name for s in p.decisions]) for p in found] == [
        ([["weigh"]], ["all"]),
        ([["say"]], []),
    ]
    assert found[0].on_cpu


def test_speed_does_not_enter_a_key_and_a_version_does():
    assert keys.stage_key(Caption(gpu_share=0.1)) == keys.stage_key(Caption(gpu_share=0.9))
    assert keys.stage_key(Caption(max_new_tokens=1)) != keys.stage_key(Caption(max_new_tokens=2))

    class Newer(Say):
        version = 2

        @property
        def name(self) -> str:
            return "say"

    assert keys.stage_key(Say()) != keys.stage_key(Newer())


def test_local_weights_are_known_by_content_and_hub_ids_by_name(tmp_path: Path):
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        storage.write_bytes(tmp_path / name / "model.onnx", content)
    a, b, c = (keys.weights_identity(str(tmp_path / name)) for name in "abc")
    assert a == b != c
    assert keys.weights_identity("owner/name@rev") == "owner/name@rev"


def test_a_changed_caption_redoes_captions_only(clip: Clip, tmp_path: Path):
    ClipOperator("clips", (Weigh(), Say(), KeepLight()), tmp_path).run_many([clip])
    again = ClipOperator("clips", (Weigh(), Say(text="someone else"), KeepLight()), tmp_path)
    (result,) = again.run_many([clip])
    # The verdict reads scores: it is taken again, from the row alone.
    assert worked(again) == {"say": 1, "keep_light": 1}
    assert (result.caption, result.scores) == ("someone else", {"weight": 8.0})


def test_a_changed_limit_opens_no_file(clip: Clip, tmp_path: Path):
    ClipOperator("clips", (Weigh(), KeepLight()), tmp_path).run_many([clip])
    stricter = ClipOperator("clips", (Weigh(), KeepLight(heaviest=2)), tmp_path)
    (result,) = stricter.run_many([clip])
    assert (result.rejected, worked(stricter)) == ("heavy", {"keep_light": 1})


def test_a_result_is_taken_again_only_while_its_files_are_there(clip: Clip, tmp_path: Path):
    ClipOperator("clips", (Weigh(),), tmp_path).run_many([clip])
    second = ClipOperator("clips", (Weigh(),), tmp_path)
    assert second.run_many([clip])[0].scores == {"weight": 8.0}
    assert worked(second) == {}
    clip.file("weight").unlink()
    third = ClipOperator("clips", (Weigh(),), tmp_path)
    third.run_many([clip])
    assert worked(third) == {"weigh": 1}
    assert clip.file("weight").is_file()


def test_settings_there_and_back_never_leave_another_settings_file(clip: Clip, tmp_path: Path):
    for unit in ("bytes", "stone", "bytes"):
        ClipOperator("clips", (Weigh(unit=unit),), tmp_path).run_many([clip])
        assert clip.file("weight").read_bytes() == f"8 {unit}".encode()


def test_one_bad_clip_of_many_costs_no_other(clip: Clip, tmp_path: Path):
    clips = [replace(clip, key=f"key{i}", files=(), caption="bad" if i == 1 else "good") for i in range(3)]
    results = ClipOperator("clips", (Together(),), tmp_path).run_many(clips)
    assert [r.rejected for r in results] == ["", "stage_error", ""]
    assert [r.key for r in results] == ["key0", "key1", "key2"]


def test_a_clip_whose_process_died_too_often_is_refused_and_goes_alone_before_that(clip: Clip, tmp_path: Path):
    clips = [replace(clip, key=f"key{i}", files=()) for i in range(3)]
    marker = tmp_path / "attempts" / "run" / "key1"
    storage.write_bytes(marker, b"." * attempts.MOST)
    operator = ClipOperator("clips", (Together(),), tmp_path, run_id="run")
    results = operator.run_many(clips)
    assert [r.rejected for r in results] == ["", attempts.CRASHED, ""]
    assert results[1].stage == "together"
    assert not marker.exists()
    # Decided: the next run does not try it again.
    assert ClipOperator("clips", (Together(),), tmp_path, run_id="next").run_many(clips)[1].rejected


def test_a_worker_that_outlives_its_run_records_nothing_that_the_next_run_did_to_it(clip: Clip, tmp_path: Path):
    with run_folder.claimed(tmp_path / "set", tmp_path):
        run_id = claim.holder(tmp_path)
    operator = ClipOperator("clips", (Overtaken(),), tmp_path, run_id=run_id)
    with pytest.raises(DatasetError, match="another run has claimed"):
        operator.run_many([clip])
    assert operator.recall(clip) is None
    assert list((tmp_path / "attempts").rglob("*.*")) == []
    claim.check(tmp_path, claim.holder(tmp_path))
    claim.check(tmp_path, "99-later")  # as where a shared disk still shows the claim before one's own


def test_operators_travel_to_workers_with_their_keys_and_without_what_is_a_process_own(tmp_path: Path):
    operator = SourceOperator("sources", (Fetch(), Probe()), tmp_path, time_limit=5.0)
    folder = operator.folder
    operator.meter.blocks = 3
    twin = pickle.loads(pickle.dumps(operator))
    assert (twin.folder, twin.meter.blocks) == (folder, 0)
    assert "stage_keys" in twin.__dict__


def test_the_plan_of_a_source_is_on_record_and_the_cut_goes_on_from_it(make_video: Callable[..., Path], tmp_path: Path):
    path = make_video("a.mp4", (1, 24), (2, 36))
    unit = Clip(source=str(path), path=str(path), fingerprint="ff00", work=str(tmp_path))
    stages = (Fetch(), Probe(), SplitShots(), CutClips(longest=2.5, fps=12, width=64, height=64))
    planning = SourceOperator("sources", stages, tmp_path, plan_only=True)
    shots = planning.run_many([unit])
    assert len(shots) == 2
    assert not list(tmp_path.glob("clips/*"))
    cutting = SourceOperator("sources", stages, tmp_path)
    clips = cutting.run_many([unit])
    assert set(cutting.meter.stages) == {"cut_clips"}
    # In one go it is the same.
    elsewhere = tmp_path / "elsewhere"
    whole = SourceOperator("sources", stages, elsewhere).run_many([replace(unit, work=str(elsewhere))])
    assert [replace(c, work="") for c in whole] == [replace(c, work="") for c in clips]
    recut = SourceOperator("sources", (*stages[:3], replace(stages[3], crf=30)), tmp_path)
    recut.run_many([unit])
    assert set(recut.meter.stages) == {"cut_clips"}


def test_a_stage_that_cannot_load_its_weights_stops_the_run_with_a_reason(tmp_path: Path):
    class Broken(Stage):
        def setup(self) -> None:
            raise RuntimeError("bad magic number")

    with pytest.raises(CheckpointError, match=r"broken cannot load .*bad magic number"):
        ClipOperator("clips", (Broken(),), tmp_path).setup()


def test_a_killed_process_leaves_its_mark_and_a_finished_one_none(tmp_path: Path):
    with attempts.attempt(tmp_path, "run", ["unit"]):
        assert attempts.made(tmp_path, "run", "unit") == 1
    assert attempts.made(tmp_path, "run", "unit") == 0
    assert os.listdir(tmp_path / "attempts" / "run") == []


def test_clip_operators_of_nothing_are_none(tmp_path: Path):
    assert clip_operators([], tmp_path) == []
