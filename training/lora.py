"""A LoRA run's settings, and what a base must bring for one. Nothing heavy is imported here."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dynamictrl.errors import ConfigError

if TYPE_CHECKING:
    from training.settings.model import Model

LoraPart = Literal["attention", "feed_forward", "pose_control"]


@dataclass(frozen=True, kw_only=True)
class Lora:
    """A low-rank adapter that learns in place of the transformer's own weights."""

    lora_rank: int = 0
    """Rank of the adapter; 0 trains all weights and has none."""
    lora_alpha: float = 0.0
    """The adapter's update is scaled by lora_alpha / lora_rank; 0 takes the rank."""
    lora_dropout: float = 0.0
    """Share of the adapter's inputs that is dropped in training."""
    lora_parts: tuple[LoraPart, ...] = ("attention", "feed_forward")
    """Linear layers that get an adapter; pose_control is the pose's own."""
    lora_whole_pose: bool = False
    """The pose's own weights learn as well, whole: needed where they are fresh. Then no adapter file is exported."""

    def __post_init__(self):
        if self.lora_rank < 0 or self.lora_alpha < 0:
            raise ConfigError(
                f"lora_rank is {self.lora_rank} and lora_alpha {self.lora_alpha:g}; both must be 0 or more",
                code="setting_range",
                param="lora_rank",
            )
        if not 0 <= self.lora_dropout < 1:
            raise ConfigError(
                f"lora_dropout is {self.lora_dropout}; it must lie in [0, 1)",
                code="setting_range",
                param="lora_dropout",
            )
        if not self.lora_parts:
            raise ConfigError("lora_parts is empty; name attention, feed_forward or pose_control", param="lora_parts")

    @property
    def lora_scale(self) -> float:
        """What the adapter's update is multiplied by."""
        return self.lora_alpha / self.lora_rank if self.lora_alpha else 1.0


def check_base(lora: Lora, model: Model, config: Mapping[str, Any]) -> None:
    """Refuses a LoRA run that could not learn: ConfigError without PEFT, and where a fresh pose control would stay so.

    `config` is that of the base's transformer.
    """
    if not lora.lora_rank:
        return
    if importlib.util.find_spec("peft") is None:
        raise ConfigError("a LoRA run needs the package peft: install dynamictrl[training]", code="peft_missing")
    released = config.get("_class_name") == "DynamiCtrlTransformerModel" or Path(model.base).name == "DynamiCtrl"
    found = config.get("pose_control") or ("padaln" if released else "none")
    is_fresh = model.fresh_pose or found != model.pose_control
    if is_fresh and model.learn_pose and model.pose_control != "direct_addition" and not lora.lora_whole_pose:
        raise ConfigError(
            f"the pose control {model.pose_control!r} starts anew on {model.base} (which has {found!r}), and a LoRA "
            "alone would leave it untrained; set --lora-whole-pose True, or start from a DynamiCtrl model",
            code="setting_conflict",
            param="lora_whole_pose",
        )
