"""One clip on several devices: each holds some of its tokens, and in attention all tokens of some heads (Ulysses).

DeepSpeed-Ulysses (arXiv 2309.14509) for joint attention over text and video. Text and video (and pose) tokens are cut
into one run each per rank, both as evenly as they go, so norms, feed-forwards and projections are never done twice and
no rank's share of a gradient is counted twice. Attention has no mask and no order, so the joint sequence may come
together rank by rank: nothing is padded. One exchange turns queries, keys and values from tokens to heads, one brings
the answer back; heads that do not divide go unevenly (30 over 4 ranks: 8, 8, 7, 7).

Every rank has the whole clip before the blocks, and `gather` gives each the whole prediction, hence the whole loss.
What a rank finds behind its own tokens is scaled by the group's size there, so the mean of the gradients over *all*
ranks of a job is the mean over its samples, whatever part of them share clips.

Exchanges are functional collectives: Dynamo traces them, and recomputed blocks repeat them in the same order on every
rank. They must be reached by all ranks of the group: a forward pass of one rank alone would wait for ever.

Shape suffixes: B batch, N heads, S video tokens, L text tokens, T any tokens, K head width, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.attention import Attention
from torch import Tensor, nn

from dynamictrl.errors import ConfigError
from dynamictrl.joint_attention import JointAttention, Rotary, attention

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Streams = tuple[Tensor, Tensor, Tensor | None, Rotary | None]
"""Video [B, S, D], text [B, L, D], pose [B, S, D] and the video tokens' rotary table, each half [S, K]."""


def share_tokens(model: nn.Module, group: ProcessGroup, heads: int) -> SharedClip:
    """Has every attention of a model go over the group's tokens, and returns what cuts and gathers them."""
    clip = SharedClip(group, heads)
    for module in model.modules():
        if isinstance(module, Attention):
            shared: Any = SharedCrossAttention(clip) if module.is_cross_attention else SharedJointAttention(clip)
            module.set_processor(shared)
    return clip


def shares(count: int, ways: int) -> tuple[int, ...]:
    """`count` things among so many, evenly but for one; the first get more."""
    return tuple(count // ways + (rank < count % ways) for rank in range(ways))


class WholeClip:
    """A clip that one device holds: nothing is cut and nothing is gathered."""

    def split(self, streams: Streams) -> Streams:
        """What of the tokens is this rank's."""
        return streams

    def gather(self, patches_BSD: Tensor) -> Tensor:
        """All video tokens' predictions, from this rank's."""
        return patches_BSD

    def agree(self, sums: Tensor) -> Tensor:
        """Sums over all tokens, from those over this rank's."""
        return sums


class SharedClip(WholeClip):
    """One rank's view of a clip that a group shares. `split` tells it of the running pass's counts of tokens."""

    def __init__(self, group: ProcessGroup, heads: int):
        """Raises ConfigError where some rank would be left without a head."""
        # The name, not the group: models are copied and pickled, groups cannot be.
        self._name, self._rank, self._size = group.group_name, group.rank(), group.size()
        if self._size > heads:
            raise ConfigError(
                f"{self._size} ranks cannot share a clip of a model with {heads} attention heads; choose a "
                f"sequence_parallel of at most {heads}",
                code="setting_conflict",
                param="sequence_parallel",
            )
        self._heads = shares(heads, self._size)
        self._video: tuple[int, ...] = ()
        self._joint: tuple[int, ...] = ()

    def split(self, streams: Streams) -> Streams:
        video_BSD, text_BLD, pose_BSD, rotary = streams
        self._video = shares(video_BSD.shape[1], self._size)
        # Text's longer runs go to the ranks with the shorter runs of video.
        text = shares(text_BLD.shape[1], self._size)[::-1]
        self._joint = tuple(map(sum, zip(self._video, text, strict=True)))
        if rotary is not None:
            rotary = (self._mine(rotary[0], self._video, 0), self._mine(rotary[1], self._video, 0))
        if pose_BSD is not None:
            pose_BSD = self._mine(pose_BSD, self._video, 1)
        return self._mine(video_BSD, self._video, 1), self._mine(text_BLD, text, 1), pose_BSD, rotary

    def _mine(self, x: Tensor, counts: Sequence[int], dim: int) -> Tensor:
        # A copy: a view would keep the whole alive through the backward pass.
        return x.split(list(counts), dim)[self._rank].clone()

    def gather(self, patches_BSD: Tensor) -> Tensor:
        return _Gather.apply(patches_BSD, self._video, self._rank, self._name)  # pyright: ignore[reportReturnType]

    def agree(self, sums: Tensor) -> Tensor:
        under_way = torch.ops._c10d_functional.all_reduce(sums, "sum", self._name)
        return torch.ops._c10d_functional.wait_tensor(under_way)

    def attend(
        self,
        q_BTNK: Tensor,
        k_BTNK: Tensor,
        v_BTNK: Tensor,
        *,
        with_text: bool,
        heads_first: bool = False,
        kernel: str = "torch",
    ) -> Tensor:
        """Attention of this rank's tokens among everybody's, [B, T, D]; queries and keys are of the same tokens.

        `heads_first` and `kernel` as `JointAttention`'s.
        """
        counts = self._joint if with_text else self._video
        q, k, v = self.to_heads(q_BTNK, k_BTNK, v_BTNK, counts)
        if heads_first:
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        return self.to_tokens(attention(q, k, v, kernel), counts)

    def to_heads(self, q_BTNK: Tensor, k_BTNK: Tensor, v_BTNK: Tensor, counts: tuple[int, ...]) -> tuple[Tensor, ...]:
        """From some tokens of all heads to all tokens of some heads, [B, N, T, K], in one exchange.

        `counts` are the ranks' tokens, the own are given. Tokens come first on the way, so what arrives needs no copy.
        """
        batch, tokens, _, width = q_BTNK.shape
        row = 3 * batch * width
        sent = [tokens * row * heads for heads in self._heads]
        mine = self._heads[self._rank]
        by_rank = (x.transpose(0, 1).split(list(self._heads), dim=2) for x in (q_BTNK, k_BTNK, v_BTNK))
        packed = torch.cat([torch.stack(parts, dim=1).flatten() for parts in zip(*by_rank, strict=True)])
        whole = _exchange(packed, sent, [t * row * mine for t in counts], self._name)
        # Queries, keys and values lie in one token's row, heads within them.
        return tuple(x.permute(1, 2, 0, 3) for x in whole.view(sum(counts), 3, batch, mine, width).unbind(1))

    def to_tokens(self, attended_BNTK: Tensor, counts: tuple[int, ...]) -> Tensor:
        """The way back: [B, T, D] of this rank's tokens."""
        batch, heads, _, width = attended_BNTK.shape
        tokens = counts[self._rank]
        sent = [t * batch * heads * width for t in counts]
        received = [tokens * batch * n * width for n in self._heads]
        packed = attended_BNTK.permute(2, 0, 1, 3).reshape(-1)
        parts = _exchange(packed, sent, received, self._name).split(received)
        mine = torch.cat([x.view(tokens, batch, n, width) for x, n in zip(parts, self._heads, strict=True)], dim=2)
        return mine.flatten(2).transpose(0, 1)


class SharedJointAttention(JointAttention):
    """Attention processor: joint attention over text and video that a group shares."""

    def __init__(self, clip: SharedClip):
        self._clip = clip

    def attend(self, q_BTNK: Tensor, k_BTNK: Tensor, v_BTNK: Tensor) -> Tensor:
        return self._clip.attend(
            q_BTNK, k_BTNK, v_BTNK, with_text=True, heads_first=self.heads_first, kernel=self.kernel
        )


class SharedCrossAttention:
    """Attention processor: video tokens that a group shares ask the pose tokens it shares in the same way."""

    def __init__(self, clip: SharedClip):
        self._clip = clip

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        assert attention_mask is None, "shared attention sees every token"
        layers: Any = attn
        made = (layers.to_q(hidden_states), layers.to_k(encoder_hidden_states), layers.to_v(encoder_hidden_states))
        q, k, v = (x.unflatten(-1, (attn.heads, -1)) for x in made)
        linear, dropout = layers.to_out
        return dropout(linear(self._clip.attend(layers.norm_q(q), layers.norm_k(k), v, with_text=False)))


def _exchange(flat: Tensor, sent: list[int], received: list[int], group: str) -> Tensor:
    """`sent[r]` elements go to rank r, `received[r]` come from it."""
    return _Exchange.apply(flat, sent, received, group)  # pyright: ignore[reportReturnType]


def _all_to_all(flat: Tensor, sent: list[int], received: list[int], group: str) -> Tensor:
    under_way = torch.ops._c10d_functional.all_to_all_single(flat, received, sent, group)
    return torch.ops._c10d_functional.wait_tensor(under_way)


class _Exchange(torch.autograd.Function):
    """All to all; its gradient goes the way back."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, sent: list[int], received: list[int], group: str) -> Tensor:  # noqa: ANN401
        ctx.way = sent, received, group
        return _all_to_all(flat, sent, received, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # noqa: ANN401  # pyright: ignore[reportIncompatibleMethodOverride]
        sent, received, group = ctx.way
        return _all_to_all(grad.contiguous(), received, sent, group), None, None, None


class _Gather(torch.autograd.Function):
    """Everybody's tokens [B, S, D]; the gradient is the own tokens', times the group's size (see above)."""

    @staticmethod
    def forward(ctx: Any, mine_BSD: Tensor, counts: tuple[int, ...], rank: int, group: str) -> Tensor:  # noqa: ANN401
        ctx.counts, ctx.rank = counts, rank
        batch, _, width = mine_BSD.shape
        # The same collective as everywhere, as gathering knows no uneven shares on every backend.
        flat = mine_BSD.reshape(1, -1).expand(len(counts), -1).reshape(-1)
        received = [batch * count * width for count in counts]
        parts = _all_to_all(flat, [mine_BSD.numel()] * len(counts), received, group).split(received)
        return torch.cat([x.view(batch, t, width) for x, t in zip(parts, counts, strict=True)], dim=1)

    @staticmethod
    def backward(ctx: Any, grad_BSD: Tensor) -> tuple[Tensor, None, None, None]:  # noqa: ANN401  # pyright: ignore[reportIncompatibleMethodOverride]
        mine = grad_BSD.split(list(ctx.counts), dim=1)[ctx.rank]
        return mine * len(ctx.counts), None, None, None
