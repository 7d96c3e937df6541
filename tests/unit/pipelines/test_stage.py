"""What happens to a clip on its way through stages, in a loop."""

import errno
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import pytest

from dynamictrl.errors import CheckpointError, MediaError
from pipelines.clip import Clip
from pipelines.stage import Stage, run_local
from pipelines.stages.keep_duration import KeepDuration


@dataclass(frozen=True)
class Raises(Stage):
    problem: Exception = ValueError("no such joint")

    def process(self, clip: Clip) -> Iterable[Clip]:
        raise self.problem


@dataclass(frozen=True)
class RaisesOnSource(Raises):
    per: ClassVar[Literal["source", "clip"]] = "source"


@dataclass(frozen=True)
class Halves(Stage):
    def process(self, clip: Clip) -> Iterable[Clip]:
        middle = (clip.start + clip.end) / 2
        yield clip.at(clip.start, middle)
        yield clip.at(middle, clip.end)


@dataclass(frozen=True)
class Nothing(Stage):
    def process(self, clip: Clip) -> Iterable[Clip]:
        return iter(())


@dataclass(frozen=True)
class Marks(Stage):
    def process(self, clip: Clip) -> Iterable[Clip]:
        yield replace(clip, caption="seen")


CLIP = Clip(key="a", start=0, end=3)


def test_a_short_clip_is_kept_on_record_with_its_reason():
    (clip,) = run_local([KeepDuration(shortest=5)], [CLIP])
    assert (clip.rejected, clip.stage) == ("too_short", "keep_duration")
    assert "3 s" in clip.message
    assert "5 s" in clip.message


def test_later_stages_pass_a_refused_clip_by():
    (clip,) = run_local([KeepDuration(shortest=5), Marks()], [CLIP])
    assert clip.caption == ""


def test_a_splitter_yields_many_and_each_goes_on():
    clips = run_local([Halves(), Marks()], [CLIP])
    assert [(c.start, c.end, c.caption) for c in clips] == [(0, 1.5, "seen"), (1.5, 3, "seen")]


def test_an_exception_on_one_clip_becomes_its_refusal_and_the_others_go_on():
    clips = run_local([Halves(), Raises()], [CLIP])
    assert [(c.rejected, c.message) for c in clips] == [("stage_error", "ValueError: no such joint")] * 2


def test_an_exception_on_a_source_puts_it_into_quarantine_under_the_errors_own_code():
    (clip,) = run_local([RaisesOnSource(MediaError("half a file", code="truncated"))], [CLIP])
    assert (clip.quarantined, clip.rejected, clip.stage) == (True, "truncated", "raises_on_source")


def test_running_out_of_memory_on_a_clip_is_its_own_reason():
    assert run_local([Raises(MemoryError())], [CLIP])[0].rejected == "out_of_memory"


def test_a_stage_that_yields_nothing_loses_nothing():
    assert run_local([Nothing()], [CLIP])[0].rejected == "nothing_found"


@pytest.mark.parametrize("problem", [CheckpointError("no weights"), OSError(errno.ENOSPC, "disk full")])
def test_what_is_no_clips_fault_stops_the_run(problem: Exception):
    with pytest.raises(type(problem)):
        run_local([Raises(problem)], [CLIP])
