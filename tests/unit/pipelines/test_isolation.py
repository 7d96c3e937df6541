"""A source that hangs, crashes or eats memory is charged to itself alone."""

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import pytest

from dynamictrl.errors import ConfigError
from pipelines.clip import Clip
from pipelines.isolation import Child
from pipelines.stage import Stage


@dataclass(frozen=True)
class Misbehaves(Stage):
    """Does to its process what the source's name says."""

    per: ClassVar[Literal["source", "clip"]] = "source"

    def process(self, clip: Clip) -> Iterable[Clip]:
        match clip.source:
            case "hangs":
                time.sleep(60)
            case "crashes":
                os._exit(139)
            case "eats memory":
                bytearray(1 << 40)
            case "prints":
                print("a library's chatter", flush=True)  # noqa: T201
            case "settings":
                raise ConfigError("no such device")
        yield replace(clip, caption=f"read by {os.getpid()}")


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


def test_running_out_of_memory_is_quarantined(child: Child):
    assert child.apply([Clip(source="eats memory")]).clips[0].rejected == "out_of_memory"


def test_chatter_on_stdout_does_not_disturb_the_answers(child: Child):
    assert child.apply([Clip(source="prints")]).clips[0].caption


def test_wrong_settings_are_raised_here(child: Child):
    with pytest.raises(ConfigError, match="no such device"):
        child.apply([Clip(source="settings")])


def test_a_hang_is_killed_at_the_time_limit_and_quarantined():
    child = Child([Misbehaves()], time_limit=2, memory_gib=0)
    began = time.monotonic()
    (clip,) = child.apply([Clip(source="hangs")]).clips
    assert (clip.rejected, clip.quarantined) == ("time_limit", True)
    assert time.monotonic() - began < 15
    assert child.apply([Clip(source="fine")]).clips[0].caption
    child.stop()
