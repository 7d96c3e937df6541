"""How a driving pose enters the video DiT: the structures of the paper's section 3.1, one class each.

A pose can enter at three places: at the input, before a block's attention, after it. `PoseControl` leaves all three
alone; a variant overrides what it changes, so the model calls every place always and has no branch.

Under guidance the video's batch is the poses' batch several times over, at one timestep: a stream that depends on pose
and timestep alone is then computed once and serves every branch (`for_branches`).

Shape suffixes: B batch, F latent frames, C channels, H W latent size, S video tokens, D model width,
                T time-embedding width.
"""

from __future__ import annotations

import difflib

import torch
import torch.nn.functional as F
from diffusers.models.attention import Attention
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor, nn

from dynamictrl.errors import ConfigError


def for_branches(pose: Tensor, video: Tensor) -> Tensor:
    """The poses beside a batch of guidance's branches, each of all clips in order; one clip's is left to broadcast.

    The batch of `video` is a multiple of that of `pose`.
    """
    if len(pose) in (1, len(video)):
        return pose
    return pose.repeat(len(video) // len(pose), *[1] * (pose.ndim - 1))


class PoseControl(nn.Module):
    """One block's share of pose control. Each step leaves its input alone unless a variant says otherwise."""

    def __init__(self, width: int, heads: int, time_width: int, eps: float = 1e-5):
        """`width` is the model's, `time_width` the time embedding's."""
        super().__init__()

    @staticmethod
    def join(video_BFCHW: Tensor, pose_BFCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """What is denoised, and what becomes pose tokens (None: nothing does)."""
        # One patch embedding serves both, so the pose's channels are repeated to the video's (section 3.1).
        return video_BFCHW, pose_BFCHW.repeat(1, 1, video_BFCHW.shape[2] // pose_BFCHW.shape[2], 1, 1)

    @staticmethod
    def at_input(video_BSD: Tensor, pose_BSD: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The tokens that enter the first block, and the pose stream that goes beside them."""
        return video_BSD, pose_BSD

    def before_attention(
        self, video_BSD: Tensor, pose_BSD: Tensor | None, time_BT: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """The normalised video tokens that will attend, and the pose stream of the next block."""
        return video_BSD, pose_BSD

    def after_attention(self, video_BSD: Tensor, pose_BSD: Tensor | None) -> Tensor:
        """The video tokens after the attention's residual."""
        return video_BSD

    @torch.no_grad()
    def silence(self) -> None:
        """Sets the weights so that this block leaves the base model's output as it was."""


class PoseAdaptiveLayerNorm(PoseControl):
    """PadaLN: pose tokens, normalised and modulated by the timestep, are added (equations 2 to 4)."""

    def __init__(self, width: int, heads: int, time_width: int, eps: float = 1e-5):
        super().__init__(width, heads, time_width, eps)
        self.linear = nn.Linear(time_width, 3 * width)
        self.norm = nn.LayerNorm(width, eps=eps)

    def before_attention(
        self, video_BSD: Tensor, pose_BSD: Tensor | None, time_BT: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        assert pose_BSD is not None
        modulated_BSD, gate = self.modulate(pose_BSD, time_BT[: len(pose_BSD)])
        # The modulated pose is passed on, as the released weights expect; equation 4 can be read otherwise.
        return video_BSD + for_branches(modulated_BSD, video_BSD), modulated_BSD * (1 + gate)

    def modulate(self, pose_BSD: Tensor, time_BT: Tensor) -> tuple[Tensor, Tensor]:
        """The rescaled pose of equation 3, and the gate [B, 1, D] of equation 4."""
        shift, scale, gate = self.linear(F.silu(time_BT))[:, None].chunk(3, dim=-1)
        return self.norm(pose_BSD) * (1 + scale) + shift, gate

    @torch.no_grad()
    def silence(self) -> None:
        # The pose stream falls silent with it: blocks after the first see no pose until its first updates.
        for parameter in self.parameters():
            parameter.zero_()


class ResidualPoseAdaptiveLayerNorm(PoseAdaptiveLayerNorm):
    """PadaLN by the paper's figures and words: the gated pose is added to the stream, which keeps what it was.

    With q the pose tokens before a block and p = Norm(q) * (1 + scale) + shift (equation 3), the next block gets
    q + gate * p, where the released code passes (1 + gate) * p on. Keys and shapes are the released ones, the
    weights mean something else. Every block sees the pose even where p starts at zero.
    """

    def before_attention(
        self, video_BSD: Tensor, pose_BSD: Tensor | None, time_BT: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        assert pose_BSD is not None
        modulated_BSD, gate = self.modulate(pose_BSD, time_BT[: len(pose_BSD)])
        return video_BSD + for_branches(modulated_BSD, video_BSD), pose_BSD + gate * modulated_BSD


class PoseCrossAttention(PoseControl):
    """Cross-attention: the video tokens ask, the pose tokens answer, the answer is added (equation 1)."""

    def __init__(self, width: int, heads: int, time_width: int, eps: float = 1e-5):
        super().__init__(width, heads, time_width, eps)
        # Both sides are normalised per head, as in the block's own attention.
        self.attention = Attention(
            query_dim=width,
            cross_attention_dim=width,
            heads=heads,
            dim_head=width // heads,
            qk_norm="layer_norm",
            eps=1e-6,
            bias=True,
            processor=AttnProcessor2_0(),  # pyright: ignore[reportArgumentType]
        )

    def after_attention(self, video_BSD: Tensor, pose_BSD: Tensor | None) -> Tensor:
        assert pose_BSD is not None
        asked = for_branches(pose_BSD, video_BSD).expand(len(video_BSD), -1, -1)
        return video_BSD + self.attention(video_BSD, encoder_hidden_states=asked)

    @torch.no_grad()
    def silence(self) -> None:
        answer = self.attention.to_out
        assert answer is not None
        for parameter in answer.parameters():
            parameter.zero_()


class UnifiedVisionTokens(PoseControl):
    """UVT: the pose is sixteen more channels of the video; nothing happens inside the block."""

    @staticmethod
    def join(video_BFCHW: Tensor, pose_BFCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        pose_BFCHW = for_branches(pose_BFCHW, video_BFCHW).expand(len(video_BFCHW), -1, -1, -1, -1)
        return torch.cat([video_BFCHW, pose_BFCHW], dim=2), None


class DirectAddition(PoseControl):
    """The paper's baseline: pose tokens are added to the video tokens once, at the input."""

    @staticmethod
    def at_input(video_BSD: Tensor, pose_BSD: Tensor | None) -> tuple[Tensor, Tensor | None]:
        assert pose_BSD is not None
        return video_BSD + for_branches(pose_BSD, video_BSD), None


POSE_CONTROLS: dict[str, type[PoseControl]] = {
    "padaln": PoseAdaptiveLayerNorm,
    "padaln_residual": ResidualPoseAdaptiveLayerNorm,
    "cross_attention": PoseCrossAttention,
    "unified_tokens": UnifiedVisionTokens,
    "direct_addition": DirectAddition,
}


def pose_control_class(name: str) -> type[PoseControl]:
    """The structure a config's `pose_control` names; an unknown name is a ConfigError with the choices."""
    if name in POSE_CONTROLS:
        return POSE_CONTROLS[name]
    near = difflib.get_close_matches(str(name), POSE_CONTROLS, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ConfigError(
        f"pose_control is {name!r}; it must be one of {', '.join(POSE_CONTROLS)}.{hint}", param="pose_control"
    )


def input_channels(pose_control: str, latent_channels: int = 16) -> int:
    """The `in_channels` a model of this structure needs: noise and image, and the pose where it is joined to them."""
    joined = issubclass(pose_control_class(pose_control), UnifiedVisionTokens)
    return latent_channels * (3 if joined else 2)
