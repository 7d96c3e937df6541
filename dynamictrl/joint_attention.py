"""CogVideoX's attention over text and video, laid out so that a compiler has little left to move.

The numbers are those of diffusers' `CogVideoXAttnProcessor2_0`, to the bit in eager mode; what lies where differs:

* Heads stay inside a token's row, [B, T, N, K], until the attention itself: queries and keys are normalised and turned
  where the projections wrote them, and what turns them may write them in whichever order the attention reads best.
* Text tokens are turned by an angle of zero instead of being cut off and written back, so a norm and a rotation are
  one pass over the queries (diffusers' slice assignment is a copy forward and two backward).
* A pair of channels swaps places by one index, not by two strided halves that are stacked again.

Shape suffixes: B batch, N heads, S video tokens, L text tokens, T = L + S tokens, K head width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention import Attention
from torch import Tensor

from dynamictrl.acceleration.float8_linear import together

Rotary = tuple[Tensor, Tensor]
"""Cosines and sines of the video tokens' positions, each [S, K]."""


class JointAttention:
    """Attention processor: text and video tokens attend to each other, video tokens by their positions."""

    heads_first = False
    """Whether the attention gets each head's tokens side by side, [B, N, T, K], instead of each token's heads. The same
    numbers; copies at both ends for a kernel that reads the faster."""

    kernel = "torch"
    """Whose attention runs: `torch`'s, or one of ours by its name (`attention`)."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Video [B, S, D] and text [B, L, D] after attention; `attention_mask` is not known here."""
        assert attention_mask is None, "joint attention sees every token"
        layers: Any = attn
        text_length = encoder_hidden_states.shape[1]
        joined = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        made = together(joined, layers.to_q, layers.to_k, layers.to_v)
        q, k, v = (x.unflatten(-1, (attn.heads, -1)) for x in made)
        if layers.norm_q is not None:
            q, k = layers.norm_q(q), layers.norm_k(k)
        if image_rotary_emb is not None:
            turning = whole_table(image_rotary_emb, text_length)
            q, k = turn(q, turning), turn(k, turning)
        linear, dropout = layers.to_out
        answer = dropout(linear(self.attend(q, k, v)))
        return answer[:, text_length:], answer[:, :text_length]

    def attend(self, q_BTNK: Tensor, k_BTNK: Tensor, v_BTNK: Tensor) -> Tensor:
        """All tokens' attention among themselves, [B, T, N * K]."""
        q, k, v = (x.transpose(1, 2) for x in (q_BTNK, k_BTNK, v_BTNK))
        if self.heads_first:
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        return attention(q, k, v, self.kernel).transpose(1, 2).flatten(2)


def attention(q_BNTK: Tensor, k_BNTK: Tensor, v_BNTK: Tensor, kernel: str) -> Tensor:
    """Softmax attention of all tokens, by torch or by a kernel of ours, which has no backward pass."""
    if kernel == "torch":
        return F.scaled_dot_product_attention(q_BNTK, k_BNTK, v_BNTK)
    return own_attention(q_BNTK, k_BNTK, v_BNTK, kernel)


@torch.library.custom_op("dynamictrl::attention", mutates_args=())
def own_attention(q_BNTK: Tensor, k_BNTK: Tensor, v_BNTK: Tensor, kernel: str) -> Tensor:
    """Our kernel of this name; one operator to the compiler, which looks into none of them."""
    if q_BNTK.device.type != "cuda" or torch.cuda.get_device_capability(q_BNTK.device) < (9, 0):
        raise RuntimeError(f"attention kernel {kernel} needs a Hopper GPU; choose another")
    from dynamictrl.acceleration import triton_attention

    return triton_attention.attend(q_BNTK, k_BNTK, v_BNTK)


@own_attention.register_fake
def _(q_BNTK: Tensor, k_BNTK: Tensor, v_BNTK: Tensor, kernel: str) -> Tensor:
    batch, heads, tokens, width = q_BNTK.shape
    return q_BNTK.new_empty((batch, tokens, heads, width)).transpose(1, 2)


def whole_table(rotary: Rotary, text_length: int) -> Rotary:
    """Cosines and signed sines [T, 1, K]: text tokens stand still, and of each pair the first sine is negative."""
    cosines, sines = rotary
    signed = torch.stack([-sines[:, 0::2], sines[:, 1::2]], dim=-1).flatten(1)
    still = cosines.new_zeros((text_length, cosines.shape[1]))
    return torch.cat([still + 1, cosines])[:, None], torch.cat([still, signed])[:, None]


def turn(x_BTNK: Tensor, turning: Rotary) -> Tensor:
    """Queries or keys [B, T, N, K] turned by `whole_table`'s angles, computed in float32."""
    cosines, signed_sines = turning
    swapped = x_BTNK.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return (x_BTNK.float() * cosines + swapped.float() * signed_sines).to(x_BTNK.dtype)
