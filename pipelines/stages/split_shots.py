"""Decodes a source whole, once: refuses what is damaged, and splits the rest at its cuts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from dynamictrl.errors import ConfigError
from pipelines.clip import Clip
from pipelines.stage import Stage

if TYPE_CHECKING:
    from dynamictrl.media.shots import ShotDetector, TransNet
    from dynamictrl.media.video_damage import Condition, Span

ANALYSIS_PIXELS = 256 * 144
"""Cuts show in a thumbnail; the detector's time grows with the pixels."""


@dataclass(frozen=True)
class SplitShots(Stage):
    """Decodes the whole source once, looks for damage on the way, and splits it where a new shot begins.

    Quarantines the source: `decode_error` (the decoder gave up), `truncated` (it ends before the length it states),
    `damaged_stream` (all frames come, and FFmpeg's log tells of damage), `bad_timestamps`. Refuses a stretch of it and
    keeps what lies around: `timestamp_gap`, `frozen`; with `salvage`, what follows the first damage under the damage's
    own code.
    """

    per: ClassVar[Literal["source", "clip"]] = "source"
    version: ClassVar[int] = 2

    detector: Literal["adaptive", "transnetv2"] = "adaptive"
    """adaptive: PySceneDetect's with a second opinion, needs no weights, sees hard cuts and fades through black.
    transnetv2: a network, sees dissolves too."""
    network: str = ""
    """TransNetV2's ONNX file (input [1, 100, 27, 48, 3]); wanted by the detector transnetv2 alone."""
    chance: float = 0.5
    """Of transnetv2: probability from which on a frame belongs to a transition."""
    threshold: float = 2.0
    """Of adaptive: how many times its neighbourhood's mean change a cut's change must be."""
    window: int = 3
    """Of adaptive: frames on either side that make the neighbourhood."""
    least_change: float = 6.0
    """Of adaptive: mean change of hue, saturation and brightness (0 to 255) below which nothing is a cut."""
    same_shot: float = 0.4
    """Of adaptive: correlation of the texture before and after, from which on a change of colours is no cut but a
    flash or other light; above 1 nothing is."""
    shortest: float = 0.6
    """Seconds; shots that would be shorter are not split off."""
    most_missing: float = 0.03
    """Share of the stated length, and at least half a second, that may be missing."""
    most_complaints: int = 0
    """Lines of FFmpeg's log that tell of damage, which a source may have."""
    most_mended: float = 0.5
    """Share of the frames whose time may be missing or run back, so that one is made up."""
    longest_gap: float = 2.0
    """Seconds that one frame may stand; longer ones are cut out."""
    longest_freeze: float = 3.0
    """Seconds in which no pixel of the thumbnail changes; longer ones are cut out."""
    salvage: bool = False
    """Keep the shots that lie wholly before the first damage instead of quarantining the source."""

    def __post_init__(self):
        if self.window < 1 or self.threshold <= 1:
            raise ConfigError(
                f"window is {self.window} (at least 1) and threshold {self.threshold} (above 1)", param="shots"
            )
        if min(self.longest_gap, self.longest_freeze) <= 0.5 or self.most_complaints < 0:
            raise ConfigError(
                f"longest_gap is {self.longest_gap} s, longest_freeze {self.longest_freeze} s (above 0.5 each) and "
                f"most_complaints {self.most_complaints} (at least 0)",
                param="shots",
            )
        if (self.detector == "transnetv2") != bool(self.network):
            raise ConfigError(
                f"detector is {self.detector} and network {self.network or 'not named'}; transnetv2 needs its ONNX "
                f"file, adaptive none",
                param="shots.network",
            )

    @property
    def weights(self) -> tuple[str, ...]:
        return (self.network,) if self.network else ()

    def check(self) -> None:
        if self.network:
            self._network  # noqa: B018 (opens it, and raises where it is no such network)

    def setup(self) -> None:
        # A second of imports that the first source's limit should not pay for.
        import scenedetect  # noqa: F401

        import dynamictrl.media.video_damage  # noqa: F401

        self.check()

    @cached_property
    def _network(self) -> TransNet:
        from dynamictrl.media.shots import TransNet

        return TransNet(Path(self.network).expanduser())

    def __getstate__(self) -> dict[str, object]:
        # A session belongs to its process.
        return {name: value for name, value in self.__dict__.items() if name != "_network"}

    def process(self, clip: Clip) -> Iterable[Clip]:
        from dynamictrl.media.video_damage import Inspection

        detector = self._detector()
        with Inspection(Path(clip.path), max_pixels=ANALYSIS_PIXELS) as inspection:
            for time, frame_HWC in inspection.pictures():
                detector.add(time, frame_HWC)
            condition = inspection.condition()
        clip = _measured(clip, condition)
        code, message = self._verdict(condition)
        shots = detector.shots(condition.end)
        if code and not (self.salvage and shots[0].end <= condition.damaged_from and shots[0].end < condition.end):
            yield clip.quarantine(code, message)
            return
        if code:
            shots = [shot for shot in shots if shot.end <= condition.damaged_from]
            yield clip.at(shots[-1].end, condition.end).reject(code, message)
        yield from self._cut_out(clip, shots, condition)

    def _detector(self) -> ShotDetector:
        from dynamictrl.media.shots import AdaptiveShots, TransNetShots

        if self.detector == "transnetv2":
            return TransNetShots(self._network, threshold=self.chance, shortest=self.shortest)
        return AdaptiveShots(
            threshold=self.threshold,
            window=self.window,
            least_change=self.least_change,
            shortest=self.shortest,
            same_shot=self.same_shot,
        )

    def _verdict(self, seen: Condition) -> tuple[str, str]:
        """Reason code and sentence of what is wrong with the whole source; empty where nothing is."""
        stated = max(seen.stated, seen.file_stated)
        if seen.missing > max(0.5, self.most_missing * stated):
            return "truncated", f"ends {seen.missing:.2f} s before the {stated:.2f} s that it states" + _first(seen)
        if seen.error:
            return "decode_error", seen.error
        if len(seen.complaints) > self.most_complaints:
            return "damaged_stream", f"all frames come, from {seen.damaged_from:.2f} s on not as filmed" + _first(seen)
        if seen.mended > self.most_mended * seen.frames:
            return "bad_timestamps", f"{seen.mended} of {seen.frames} frames have no time of their own"
        return "", ""

    def _cut_out(self, clip: Clip, shots: list[Span], seen: Condition) -> Iterator[Clip]:
        """The shots without the stretches in which nothing moves, and those stretches with their reasons."""
        from dynamictrl.media.video_damage import Span

        gaps = [gap for gap in seen.gaps if gap.seconds > self.longest_gap]
        stills = [s for s in seen.stills if s.seconds > self.longest_freeze and not any(_meet(s, gap) for gap in gaps)]
        holes = [(gap, "timestamp_gap", "one frame stands for {:.1f} s") for gap in gaps]
        holes += [(still, "frozen", "the picture stands still for {:.1f} s") for still in stills]
        # The first frame of either is a sound one.
        holes = [(Span(hole.start + seen.step, hole.end), *words) for hole, *words in holes]
        last = shots[-1].end
        for hole, code, message in sorted(holes, key=lambda hole: hole[0].start):
            if hole.start < last:
                yield clip.at(hole.start, min(hole.end, last)).reject(code, message.format(hole.seconds))
        for shot in _without(shots, [hole for hole, *_ in holes]):
            yield clip.at(shot.start, shot.end)


def _measured(clip: Clip, seen: Condition) -> Clip:
    return clip.with_scores(
        damage_lines=len(seen.complaints),
        seconds_missing=seen.missing,
        mended_times=seen.mended,
        longest_gap=seen.gaps[0].seconds if seen.gaps else 0.0,
        longest_freeze=seen.stills[0].seconds if seen.stills else 0.0,
    )


def _first(seen: Condition) -> str:
    return f" (FFmpeg: {seen.complaints[0]})" if seen.complaints else ""


def _meet(one: Span, other: Span) -> bool:
    return one.start < other.end and other.start < one.end


def _without(shots: Iterable[Span], holes: Iterable[Span]) -> list[Span]:
    """What is left of the shots."""
    from dynamictrl.media.video_damage import Span

    left = list(shots)
    for hole in holes:
        pieces = [
            (Span(shot.start, hole.start), Span(hole.end, shot.end)) if _meet(shot, hole) else (shot,) for shot in left
        ]
        left = [piece for both in pieces for piece in both if piece.seconds > 0]
    return left
