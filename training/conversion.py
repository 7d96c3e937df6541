"""`python -m training convert`: what is asked for, as a dataclass that loads nothing heavy, and the call."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from training.settings.model import PoseControl

if TYPE_CHECKING:
    from dynamictrl.conversion.base_conversion import Conversion


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Turns a CogVideoX folder into a DynamiCtrl folder, whose pose control is new; or puts a released DynamiCtrl's
    transformer (--transformer) into its base's folder."""

    out: Path
    """The model folder to write; whole or not at all."""
    transformer: str = ""
    """Folder or hub id whose transformer takes the place of the base's, such as gulucaptain/Dynamictrl-Mask_B01."""
    pose_control: PoseControl = "padaln"
    """How the pose enters the transformer."""
    silent_pose: bool = False
    """Fresh pose control starts at zero, so that the model is the base; off: at torch's defaults, as published."""
    fresh_pose: bool = False
    """Starts the pose control anew although the source has one."""
    expert_pose_encoder: bool = False
    """Adds an expert pose encoder of random weights (an ablation of the paper); off: the VAE encodes poses."""
    dtype: Literal["source", "float32", "bfloat16", "float16"] = "source"
    """Type of the transformer's weights; the other parts keep theirs."""
    link: bool = True
    """Hard links of files that stay as they are, where the file system allows; off: copies."""
    seed: int = 42
    """Of the fresh weights."""


def convert(base: str, settings: Convert) -> Conversion:
    """Writes the folder; CheckpointError for what is no base, ConfigError where the place is taken."""
    import torch

    from dynamictrl.conversion import base_conversion

    order = base_conversion.Order(
        base=base,
        transformer=settings.transformer,
        pose_control=settings.pose_control,
        silent_pose=settings.silent_pose,
        fresh_pose=settings.fresh_pose,
        expert_pose_encoder=settings.expert_pose_encoder,
        dtype=None if settings.dtype == "source" else getattr(torch, settings.dtype),
        seed=settings.seed,
    )
    return base_conversion.convert(order, settings.out, link=settings.link)
