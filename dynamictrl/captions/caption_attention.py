"""Qwen2-VL's two attentions as a batch of clips needs them: the same sums in fewer and larger kernels.

transformers 5 calls the vision tower's attention once a frame and waits for the GPU three times a layer; decoding with
a mask it copies every key and value once per query head. Both leave a GPU idle or busy with copying.

Shape suffixes: N tokens or patches, B batch, G groups of heads, H heads, D channels of a head, L cached tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

NAME = "grouped_sdpa"
"""Under which the text model's attention is known to transformers."""


class FrameAttention:
    """The vision tower's attention, within each frame, over runs of frames of one size."""

    def __init__(self, model: Any):  # noqa: ANN401 - transformers' models are untyped where it matters
        """Takes the place of the attention in `model.model.visual` while there are `runs`."""
        self.runs: Sequence[tuple[int, int]] = ()
        """(frames, patches of each) of what the tower is about to see, in order; empty = the class attends itself."""
        for block in model.model.visual.blocks:
            block.attn.forward = MethodType(self._bound(), block.attn)

    def _bound(self) -> Callable[..., Tensor]:
        def forward(
            module: Any,  # noqa: ANN401
            hidden_states: Tensor,
            *given: object,
            position_embeddings: tuple[Tensor, Tensor],
            **known: object,
        ) -> Tensor:
            if self.runs:
                return self._attend(module, hidden_states, position_embeddings)
            own = type(module).forward
            return own(module, hidden_states, *given, position_embeddings=position_embeddings, **known)

        return forward

    def _attend(self, module: Any, hidden_ND: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:  # noqa: ANN401
        from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision

        count = len(hidden_ND)
        query, key, value = module.qkv(hidden_ND).reshape(count, 3, module.num_heads, -1).unbind(1)
        query, key = apply_rotary_pos_emb_vision(query, key, *rotation)
        assert sum(frames * patches for frames, patches in self.runs) == count, "the runs are of another batch"
        seen, start = [], 0
        for frames, patches in self.runs:
            span = slice(start, start + frames * patches)
            framed = [x[span].unflatten(0, (frames, patches)).transpose(1, 2) for x in (query, key, value)]
            attended = F.scaled_dot_product_attention(framed[0], framed[1], framed[2], scale=module.scaling)
            seen.append(attended.transpose(1, 2).reshape(frames * patches, -1))
            start = span.stop
        return module.proj(seen[0] if len(seen) == 1 else torch.cat(seen))


def frame_runs(grids: list[tuple[int, int, int]]) -> list[tuple[int, int]]:
    """(frames, patches of each) from (steps in time, rows, columns) of each clip, neighbours of one size as one run."""
    runs: list[tuple[int, int]] = []
    for steps, rows, columns in grids:
        if runs and runs[-1][1] == rows * columns:
            runs[-1] = (runs[-1][0] + steps, rows * columns)
        else:
            runs.append((steps, rows * columns))
    return runs


def group_heads(model: Any) -> None:  # noqa: ANN401
    """Lets a text model that shares keys among heads decode without copying them; all else stays as it is."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, _grouped_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.model.language_model.config._attn_implementation = NAME


def _grouped_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,  # noqa: ANN401
) -> tuple[Tensor, None]:
    """transformers' interface: [B, H, N, D] and the mask -> [B, N, H, D]."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    batch, heads, queries, channels = query.shape
    if queries > 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    # One token's heads that share a key stand in for as many tokens: nothing but the mask tells them apart.
    grouped_BGHD = query.reshape(batch, key.shape[1], heads // key.shape[1], channels)
    attended = F.scaled_dot_product_attention(grouped_BGHD, key, value, attn_mask=attention_mask, scale=scaling)
    return attended.reshape(batch, 1, heads, channels), None
