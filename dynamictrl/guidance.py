"""Classifier-free guidance, on one device or two: the branch without the prompt, the branch with it, and their blend.

Shape suffixes: B batch, F latent frames, C channels, H W latent size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dynamictrl.errors import ConfigError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class BothBranches:
    """Both branches as one batch, on one device."""

    group: ProcessGroup | None = None
    """Ranks that compute a branch each, if they do."""

    def predict(
        self,
        transformer: nn.Module,
        joined_BFCHW: Tensor,
        pose_BFCHW: Tensor,
        told: dict[str, Any],
        scale: float | None,
    ) -> Tensor:
        """v in float32; guided unless `scale` is None. `told` is what else the transformer takes, its
        `encoder_hidden_states` both branches' (the one without the prompt first), its `timestep` a single one."""
        if scale is None:
            return predict_v(transformer, joined_BFCHW, pose_BFCHW, told)
        # The poses stay one branch's: the model shares what depends on them alone.
        v_without, v_with = predict_v(transformer, torch.cat([joined_BFCHW] * 2), pose_BFCHW, told).chunk(2)
        return v_without + scale * (v_with - v_without)


class SharedBranches(BothBranches):
    """One branch on each of two devices, which exchange what they predict: one latent a step.

    Both ranks must call with the same inputs, and both get the blend; without guidance both compute the whole clip.
    """

    def __init__(self, group: ProcessGroup):
        """ConfigError unless the group has two ranks; its first computes the branch without the prompt."""
        if group.size() != 2:
            raise ConfigError(
                f"guidance has two branches and the group {group.size()} ranks; share them between two",
                code="setting_conflict",
                param="parallel",
            )
        self.group, self._branch = group, group.rank()

    def predict(
        self,
        transformer: nn.Module,
        joined_BFCHW: Tensor,
        pose_BFCHW: Tensor,
        told: dict[str, Any],
        scale: float | None,
    ) -> Tensor:
        if scale is None:
            return predict_v(transformer, joined_BFCHW, pose_BFCHW, told)
        told = {**told, "encoder_hidden_states": told["encoder_hidden_states"].chunk(2)[self._branch]}
        mine = predict_v(transformer, joined_BFCHW, pose_BFCHW, told).contiguous()
        both = [torch.empty_like(mine), torch.empty_like(mine)]
        dist.all_gather(both, mine, group=self.group)
        return both[0] + scale * (both[1] - both[0])


def predict_v(transformer: nn.Module, joined_BFCHW: Tensor, pose_BFCHW: Tensor, told: dict[str, Any]) -> Tensor:
    """One pass of the transformer, in float32."""
    told = {**told, "timestep": told["timestep"].expand(len(joined_BFCHW))}
    return transformer(hidden_states=joined_BFCHW, control_hidden_states=pose_BFCHW, **told)[0].float()
