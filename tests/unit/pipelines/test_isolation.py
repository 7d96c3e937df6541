"""A source that hangs, crashes or eats memory is charged to itself alone."""

import ctypes
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import pytest

from dynamictrl.errors import ConfigError
from pipelines.clip import Clip
from pipelines.stage import Stage
from pipelines.work import isolation
from pipelines.work.isolation import Child


@dataclass(frozen=True)
class Misbehaves(Stage):
    """Does to its process what the source's name says."""

    per: ClassVar[Literal["source", "clip"]] = "source"

    def process(self, clip: Clip) -> Iterable[Clip]:  # noqa: C901 (one case a mischief)
        match clip.source:
            case "hangs":
                time.sleep(60)
            case "crashes":
                os._exit(139)
            case "asks for too much memory":
                bytearray(1 << 40)
            case "fills memory":
                kept = [bytearray(b"x" * (16 << 20)) for _ in range(64)]
                time.sleep(30 + len(kept))
            case "spins":
                while True:
                    pass
            case "segfaults":
                ctypes.string_at(0)
            case "floods":
                while True:
                    os.write(2, b"error while decoding\n" * 4096)
            case "answers too much":
                clip = replace(clip, message="x" * (1 << 22))
            case "prints":
                print("a library's chatter", flush=True)  # noqa: T201
            case "settings":
                raise ConfigError("no such device")
        yield replace(clip, caption=f"read by {os.getpid()}")


Captured = pytest.CaptureFixture[str]


@contextmanager
def stopping(child: Child) -> Iterator[Child]:
    try:
        yield child
    finally:
        child.stop()


@pytest.fixture
def child() -> Iterator[Child]:
    child = Child([Misbehaves()], time_limit=20, memory_gib=2)
    yield child
    child.stop()


def test_one_child_reads_many_sources_and_is_not_this_process(child: Child):
    first, second = (child.apply([Clip(source=name)]).clips[0] for name in ("a", "b"))
    assert first.caption == second.caption
    assert first.caption != f"read by {os.getpid()}"


def test_a_crash_is_quarantined_after_a_second_try_and_the_next_source_is_read(child: Child):
    (clip,) = child.apply([Clip(source="crashes")]).clips
    assert (clip.quarantined, clip.rejected, clip.stage) == (True, "crashed", "misbehaves")
    assert "139" in clip.message
    assert child.apply([Clip(source="fine")]).clips[0].caption


def test_a_segfault_is_charged_to_its_source_by_name(child: Child):
    (clip,) = child.apply([Clip(source="segfaults")]).clips
    assert (clip.quarantined, clip.rejected) == (True, "crashed")
    assert "SIGSEGV" in clip.message


def test_asking_for_too_much_memory_is_quarantined_and_costs_no_process(child: Child):
    before = child.apply([Clip(source="a")]).clips[0].caption
    (clip,) = child.apply([Clip(source="asks for too much memory")]).clips
    assert clip.rejected == "out_of_memory"
    assert "2 GiB (--memory-gib raises it)" in clip.message
    assert child.apply([Clip(source="b")]).clips[0].caption == before


def test_memory_that_is_really_filled_is_noticed_though_the_address_space_would_allow_it():
    with stopping(Child([Misbehaves()], time_limit=20, memory_gib=0.25)) as child:
        (clip,) = child.apply([Clip(source="fills memory")]).clips
        assert (clip.quarantined, clip.rejected) == (True, "out_of_memory")
        assert "at most 0.25 (--memory-gib raises it)" in clip.message
        assert child.apply([Clip(source="fine")]).clips[0].caption


def test_processor_time_is_limited_for_each_source_by_itself():
    with stopping(Child([Misbehaves()], time_limit=60, memory_gib=0, cpu_limit=1)) as child:
        (clip,) = child.apply([Clip(source="spins")]).clips
        assert (clip.quarantined, clip.rejected) == (True, "cpu_limit")
        assert "1 s of processor time (--cpu-limit raises it)" in clip.message
        assert child.apply([Clip(source="fine")]).clips[0].caption


def test_a_flood_of_text_is_cut_off_and_charged_to_its_source(monkeypatch: pytest.MonkeyPatch, capfd: Captured):
    monkeypatch.setattr(isolation, "MOST_TEXT", 1 << 20)
    with stopping(Child([Misbehaves()], time_limit=20, memory_gib=0)) as child:
        assert child.apply([Clip(source="floods")]).clips[0].rejected == "output_flood"
        assert child.apply([Clip(source="fine")]).clips[0].caption
    assert 0 < len(capfd.readouterr().err) <= isolation.PASSED_ON + 4096


def test_an_answer_too_long_to_keep_is_charged_to_its_source(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(isolation, "LONGEST_ANSWER", 1 << 20)
    with stopping(Child([Misbehaves()], time_limit=20, memory_gib=0)) as child:
        assert child.apply([Clip(source="answers too much")]).clips[0].rejected == "output_flood"


@pytest.mark.parametrize("stages", [1, 100_000])  # the many do not fit into the pipe: they are still being written
def test_a_child_that_cannot_start_is_no_sources_fault(stages: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ConfigError, match="cannot start"):
        Child([Misbehaves()] * stages, time_limit=20, memory_gib=0).apply([Clip(source="a")])


def test_chatter_on_stdout_does_not_disturb_the_answers(child: Child):
    assert child.apply([Clip(source="prints")]).clips[0].caption


def test_wrong_settings_are_raised_here(child: Child):
    with pytest.raises(ConfigError, match="no such device"):
        child.apply([Clip(source="settings")])


def test_a_hang_is_killed_at_the_time_limit_and_quarantined():
    with stopping(Child([Misbehaves()], time_limit=2, memory_gib=0)) as child:
        began = time.monotonic()
        (clip,) = child.apply([Clip(source="hangs")]).clips
        assert (clip.rejected, clip.quarantined) == ("time_limit", True)
        assert "2 s (--time-limit raises it)" in clip.message
        assert time.monotonic() - began < 15
        assert child.apply([Clip(source="fine")]).clips[0].caption
