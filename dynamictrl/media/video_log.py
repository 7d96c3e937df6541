"""What FFmpeg's log says of one file while it is read, and which of it tells of damage."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import av.logging

KEPT_COMPLAINTS = 20
"""Lines of the log that are kept of one file; a hostile one writes millions."""

BENIGN = (
    ("co located POCs unavailable", "a B-frame at the start of a recording looks for a picture before it (seen)"),
    ("mmco: unref short failure", "a picture was to be forgotten that an edit or a late start has left out already"),
    ("number of reference frames", "an encoder that keeps one reference more than it declared; all of them decode"),
    ("non monotonically increasing dts", "decode times; it is the times of showing that are judged here"),
)
"""(Part of a line of the log, why it is no damage). Short, because every entry is a blind spot."""

BENIGN_AT_THE_START = (
    ("non-existing PPS", "H.264 broadcast joined in the middle of a group of pictures (seen)"),
    ("non-existing SPS", "the same"),
    ("no frame!", "the same (seen)"),
    ("PPS id out of range", "the same of HEVC (seen)"),
    ("Error constructing the frame RPS", "the same: pictures that lead the first key frame and are not shown (seen)"),
    ("Could not find ref with POC", "the same"),
    ("Invalid frame dimensions 0x0", "the same of MPEG-2 (seen)"),
)
"""As `BENIGN`, as long as no picture has come: nothing that is shown can be hurt."""

_TELLING = re.compile(
    r"concealing \d+ DC|corrupt|truncat|partial file|ended prematurely|cannot be decoded", re.IGNORECASE
)
"""Lines below the rank of an error that tell of damage all the same; concealment is reported as mere information."""


class DecoderLog:
    """What tells of damage in one file: what this thread hears of FFmpeg's log while it listens."""

    _lock: ClassVar[threading.Lock] = threading.Lock()
    _listeners: ClassVar[int] = 0
    _level_before: ClassVar[int | None] = None

    def __init__(self):
        self.count = 0
        """Lines that tell of damage, all of them."""
        self.lines: list[str] = []
        """The first of them."""

    @contextmanager
    def listening(self, *, started: bool) -> Iterator[None]:
        """`started`: a picture has come already."""
        self._turn_up()
        try:
            with av.logging.Capture() as heard:
                try:
                    yield
                finally:
                    self._keep(heard, BENIGN if started else BENIGN + BENIGN_AT_THE_START)
        finally:
            self._turn_down()

    def _keep(self, heard: list[tuple[int, str, str]], benign: tuple[tuple[str, str], ...]) -> None:
        for level, part, text in heard:
            if _tells_of_damage(level, text) and not any(known in text for known, _ in benign):
                self.complain(part, text.strip())

    def complain(self, part: str, text: str) -> None:
        """Puts a line on record."""
        self.count += 1
        if len(self.lines) < KEPT_COMPLAINTS:
            self.lines.append(f"{part}: {text}")

    @classmethod
    def _turn_up(cls) -> None:
        """The level is the whole process's: the first listener raises it, the last one puts it back."""
        with cls._lock:
            if cls._listeners == 0:
                cls._level_before = av.logging.get_level()
                av.logging.set_level(av.logging.INFO)
                # Otherwise a line that the file before ended with is taken for said.
                av.logging.set_skip_repeated(False)
            cls._listeners += 1

    @classmethod
    def _turn_down(cls) -> None:
        with cls._lock:
            cls._listeners -= 1
            if cls._listeners == 0:
                av.logging.set_level(cls._level_before)
                av.logging.set_skip_repeated(True)


def _tells_of_damage(level: int, text: str) -> bool:
    return level <= av.logging.ERROR or _TELLING.search(text) is not None
