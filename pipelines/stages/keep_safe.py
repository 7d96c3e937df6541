"""Refuses clips that a classifier finds not safe for work, where one is named."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal

from dynamictrl.errors import ConfigError
from pipelines.clip import Clip
from pipelines.limits import LimitStage, Rule
from pipelines.stage import check_weights, resource

if TYPE_CHECKING:
    from dynamictrl.quality.picture_models import PictureClassifier


@dataclass(frozen=True)
class KeepSafe(LimitStage):
    """Refuses clips by an image classifier of transformers: `unsafe`. Off until `model` names one.

    Score `unsafe`: probability of the labels named, added up, of the worst of a few frames. It sees single pictures
    only, and what its makers called unsafe; dancers in sports clothes are known false alarms of such models. It is no
    substitute for a licence, for consent, or for looking. Default: even odds; not calibrated here, as no such weights
    ship with the project.
    """

    reads: ClassVar[tuple[str, ...] | None] = ("mp4",)
    seconds_per_frame: ClassVar[float] = 0.001

    model: str = ""
    """Local folder or hub id of an image classifier; empty = off."""
    labels: tuple[str, ...] = ("nsfw",)
    """Names of the model's labels that mean unsafe."""
    most_unsafe: float = 0.5
    """Probability, 0 to 1."""
    frames: int = 8
    """Frames looked at, spread over the clip."""
    device: Literal["cuda", "cpu"] = "cuda"
    """Where the model runs."""
    gpu_share: float = resource(0.1)
    """Share of one GPU that a worker takes, where `device` is cuda."""

    def __post_init__(self):
        if self.frames < 1 or not self.labels:
            raise ConfigError(f"frames is {self.frames}, labels {self.labels}; at least one of each", param="keep_safe")

    @property
    def active(self) -> bool:
        return bool(self.model)

    @property
    def weights(self) -> tuple[str, ...]:
        return (self.model,) if self.model else ()

    @property
    def num_gpus(self) -> float:
        return self.gpu_share if self.device == "cuda" else 0.0

    @property
    def rules(self) -> tuple[Rule, ...]:
        words = f"likely to be {' or '.join(self.labels)}"
        return (Rule("unsafe", "unsafe", words, most=self.most_unsafe, share=True),)

    @cached_property
    def classifier(self) -> PictureClassifier:
        from dynamictrl.quality.picture_models import PictureClassifier

        return PictureClassifier(self.model, self.labels, self.device)

    def check(self) -> None:
        if self.model:
            check_weights(self.model, ["config.json", "*.safetensors"])

    def setup(self) -> None:
        _ = self.classifier

    def measure(self, clip: Clip) -> Clip:
        from dynamictrl.media.video import read_video
        from dynamictrl.quality.picture_models import spread_frames

        worst = self.classifier(spread_frames(read_video(clip.file("mp4")).frames, self.frames)).max()
        return clip.with_scores(unsafe=round(float(worst), 4)).with_models(safety=self.model)
