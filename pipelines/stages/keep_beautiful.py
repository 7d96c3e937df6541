"""Refuses clips that an aesthetic model finds ugly, where one is named."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal

from dynamictrl.errors import ConfigError
from pipelines.clip import Clip
from pipelines.limits import LimitStage, Rule
from pipelines.stage import check_weights, resource

if TYPE_CHECKING:
    from dynamictrl.quality.picture_models import AestheticScorer


@dataclass(frozen=True)
class KeepBeautiful(LimitStage):
    """Refuses clips by an aesthetic predictor in LAION's manner: `low_aesthetics`. Off until `model` names one.

    Score `aesthetics`: mean over a few frames of what a head on a CLIP embedding says (see
    `dynamictrl.quality.picture_models.AestheticScorer`). Such heads were fitted to votes on photographs and art, mostly
    by one kind of people; they know nothing of motion and like saturated, posed pictures. Default: 4 is the limit
    commonly set for LAION's heads on video; it was not calibrated here, as no such weights ship with the project.
    """

    reads: ClassVar[tuple[str, ...] | None] = ("mp4",)
    seconds_per_frame: ClassVar[float] = 0.001

    model: str = ""
    """Local folder or hub id of a CLIP model; empty = off."""
    head: str = ""
    """Safetensors file of linear layers made for that model, or a folder or hub id that holds one."""
    ugliest: float = 4.0
    """Lowest score that is kept, in the head's own units (about 1 to 10)."""
    frames: int = 4
    """Frames looked at, spread over the clip."""
    device: Literal["cuda", "cpu"] = "cuda"
    """Where the model runs."""
    gpu_share: float = resource(0.1)
    """Share of one GPU that a worker takes, where `device` is cuda."""

    def __post_init__(self):
        if self.model and not self.head:
            raise ConfigError(
                f"model is {self.model!r}, but no head is named; an embedding has no beauty", param="head"
            )
        if self.frames < 1:
            raise ConfigError(f"frames is {self.frames}; it must be at least 1", param="frames")

    @property
    def active(self) -> bool:
        return bool(self.model)

    @property
    def weights(self) -> tuple[str, ...]:
        return (self.model, self.head) if self.model else ()

    @property
    def num_gpus(self) -> float:
        return self.gpu_share if self.device == "cuda" else 0.0

    @property
    def rules(self) -> tuple[Rule, ...]:
        return (Rule("aesthetics", "low_aesthetics", "by the aesthetic model", least=self.ugliest),)

    @cached_property
    def scorer(self) -> AestheticScorer:
        from dynamictrl.quality.picture_models import AestheticScorer

        return AestheticScorer(self.model, self.head, self.device)

    def check(self) -> None:
        if self.model:
            check_weights(self.model, ["config.json", "*.safetensors"])

    def setup(self) -> None:
        _ = self.scorer

    def measure(self, clip: Clip) -> Clip:
        from dynamictrl.media.video import read_video
        from dynamictrl.quality.picture_models import spread_frames

        score = self.scorer(spread_frames(read_video(clip.file("mp4")).frames, self.frames)).mean()
        return clip.with_scores(aesthetics=round(float(score), 4)).with_models(aesthetics=f"{self.model} {self.head}")
