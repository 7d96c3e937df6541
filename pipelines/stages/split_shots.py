"""Splits a source at its cuts, so that no clip shows two scenes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from dynamictrl.errors import ConfigError
from pipelines.clip import Clip
from pipelines.stage import Stage

if TYPE_CHECKING:
    from scenedetect import FrameTimecode

ANALYSIS_PIXELS = 256 * 144
"""Cuts show in a thumbnail; the detector's time grows with the pixels."""
CLOCK = 1000.0
"""The detector counts frames; giving it milliseconds keeps a variable frame rate's true times."""


@dataclass(frozen=True)
class SplitShots(Stage):
    """Decodes the whole source once and splits it where PySceneDetect's AdaptiveDetector sees a cut.

    The defaults have the best mean score of the detectors that need no weights in PySceneDetect's own comparison.
    Damage anywhere in the source shows here and quarantines it.
    """

    per: ClassVar[Literal["source", "clip"]] = "source"

    threshold: float = 3.5
    """How many times its neighbourhood's mean change a cut's change must be."""
    window: int = 3
    """Frames on either side that make the neighbourhood."""
    least_change: float = 15.0
    """Mean change of hue, saturation and brightness (0 to 255) below which nothing is a cut."""
    shortest: float = 0.6
    """Seconds; cuts nearer to the last one are ignored."""

    def __post_init__(self):
        if self.window < 1 or self.threshold <= 1:
            raise ConfigError(
                f"window is {self.window} (at least 1) and threshold {self.threshold} (above 1)", param="shots"
            )

    def process(self, clip: Clip) -> Iterable[Clip]:
        cuts, end = self._cuts(Path(clip.path))
        bounds = [0.0, *cuts, end]
        for start, stop in zip(bounds, bounds[1:], strict=False):
            yield clip.at(start, stop)

    def _cuts(self, path: Path) -> tuple[list[float], float]:
        """Times of the first frames of new shots, and the end of the last frame, in seconds."""
        from scenedetect import AdaptiveDetector, FrameTimecode

        from dynamictrl.video import iter_frames

        detector = AdaptiveDetector(
            adaptive_threshold=self.threshold,
            window_width=self.window,
            min_content_val=self.least_change,
            min_scene_len=self.shortest,
        )
        found: list[FrameTimecode] = []
        times: list[float] = []
        for time, frame_HWC in iter_frames(path, max_pixels=ANALYSIS_PIXELS):
            times.append(time)
            found += detector.process_frame(FrameTimecode(round(time * CLOCK), fps=CLOCK), frame_HWC[:, :, ::-1])
        # The last frame is shown as long as the mean one.
        step = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.04
        return [cut.frame_num / CLOCK for cut in found], times[-1] + step
