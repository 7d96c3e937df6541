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
import torch.nn.functional as F
from diffusers.models.attention import Attention
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor, nn

from dynamictrl.errors import ConfigError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Rotary = tuple[Tensor, Tensor]
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

    def attend(self, q_BNTK: Tensor, k_BNTK: Tensor, v_BNTK: Tensor, *, with_text: bool) -> Tensor:
        """Attention of this rank's tokens among everybody's, [B, T, D]; queries and keys are of the same tokens."""
        counts = self._joint if with_text else self._video
        q, k, v = self._to_heads(q_BNTK, k_BNTK, v_BNTK, counts)
        return self._to_tokens(F.scaled_dot_product_attention(q, k, v), counts)

    def _to_heads(
        self, q_BNTK: Tensor, k_BNTK: Tensor, v_BNTK: Tensor, counts: tuple[int, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """From some tokens of all heads to all tokens of some heads, in one exchange."""
        batch, _, _, width = q_BNTK.shape
        heads = self._heads[self._rank]
        row = 3 * batch * width
        packed_N3BTK = torch.stack([x.transpose(0, 1) for x in (q_BNTK, k_BNTK, v_BNTK)], dim=1)
        sent = [n * row * counts[self._rank] for n in self._heads]
        received = [heads * row * t for t in counts]
        parts = _exchange(packed_N3BTK.flatten(), sent, received, self._name).split(received)
        whole_N3BTK = torch.cat([x.view(heads, 3, batch, t, width) for x, t in zip(parts, counts, strict=True)], dim=3)
        q, k, v = whole_N3BTK.transpose(0, 2).unbind(1)
        return q, k, v

    def _to_tokens(self, attended_BNTK: Tensor, counts: tuple[int, ...]) -> Tensor:
        """The way back: [B, T, D] of this rank's tokens."""
        batch, heads, _, width = attended_BNTK.shape
        tokens = counts[self._rank]
        packed_TBNK = attended_BNTK.permute(2, 0, 1, 3).reshape(-1)
        sent = [t * batch * heads * width for t in counts]
        received = [tokens * batch * n * width for n in self._heads]
        parts = _exchange(packed_TBNK, sent, received, self._name).split(received)
        mine_TBNK = torch.cat([x.view(tokens, batch, n, width) for x, n in zip(parts, self._heads, strict=True)], dim=2)
        return mine_TBNK.flatten(2).transpose(0, 1)


class SharedJointAttention:
    """Attention processor: CogVideoX's attention over text and video that a group shares."""

    def __init__(self, clip: SharedClip):
        self._clip = clip

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
    ) -> tuple[Tensor, Tensor]:
        assert attention_mask is None, "shared attention sees every token"
        text_length = encoder_hidden_states.shape[1]
        joined_BTD = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        q, k, v = _queries_keys_values(attn, joined_BTD, joined_BTD)
        if image_rotary_emb is not None:
            q, k = (_turn(x, text_length, image_rotary_emb) for x in (q, k))
        answer_BTD = _out(attn, self._clip.attend(q, k, v, with_text=True))
        return answer_BTD[:, text_length:], answer_BTD[:, :text_length]


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
        q, k, v = _queries_keys_values(attn, hidden_states, encoder_hidden_states)
        return _out(attn, self._clip.attend(q, k, v, with_text=False))


def _queries_keys_values(attn: Attention, asking_BTD: Tensor, answering_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    layers: Any = attn
    made = (layers.to_q(asking_BTD), layers.to_k(answering_BTD), layers.to_v(answering_BTD))
    q, k, v = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in made)
    return layers.norm_q(q), layers.norm_k(k), v


def _turn(x_BNTK: Tensor, text_length: int, rotary: Rotary) -> Tensor:
    turned: Any = apply_rotary_emb(x_BNTK[:, :, text_length:], rotary)
    return torch.cat([x_BNTK[:, :, :text_length], turned], dim=2)


def _out(attn: Attention, answer_BTD: Tensor) -> Tensor:
    linear, dropout = attn.to_out  # pyright: ignore[reportGeneralTypeIssues, reportOptionalIterable]
    return dropout(linear(answer_BTD))


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
