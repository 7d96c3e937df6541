"""What is fine-tuned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dynamictrl.errors import ConfigError

PoseControl = Literal["padaln", "padaln_residual", "cross_attention", "unified_tokens", "direct_addition"]
PoseEncoding = Literal["shared_vae", "expert"]


@dataclass(frozen=True, kw_only=True)
class Model:
    """What is fine-tuned."""

    base: str = "zai-org/CogVideoX1.5-5B-I2V"
    """Weights to start from: a DynamiCtrl or a plain CogVideoX folder, its hub id, or `mini/base`."""
    pose_control: PoseControl = "padaln"
    """How the pose enters the transformer (Table 4 of the paper)."""
    pose_encoding: PoseEncoding = "shared_vae"
    """What makes pose latents: the VAE, or an expert encoder that learns beside the transformer (Table 5)."""
    learn_pose: bool = True
    """Off: the pose is neither seen nor learnt (first stage of the Non-text baseline, Table 4)."""
    fresh_pose: bool = False
    """Starts the pose control anew although the base has one (second stage of the Non-text baseline)."""
    silent_pose: bool = False
    """Fresh pose control starts at zero, so that step 0 is the base; off: at torch's defaults, as published."""

    def __post_init__(self):
        silenceable = self.pose_control.startswith("padaln") and self.pose_encoding == "shared_vae"
        if not self.learn_pose and not silenceable:
            raise ConfigError(
                f"learn_pose False is for padaln with the shared VAE, whose pose can be silenced; pose_control is "
                f"{self.pose_control}, pose_encoding {self.pose_encoding}",
                code="setting_conflict",
                param="learn_pose",
            )
        if self.silent_pose and self.pose_control == "direct_addition":
            raise ConfigError(
                "direct_addition has no weights of its own that could start silent; leave silent_pose off",
                code="setting_conflict",
                param="silent_pose",
            )
