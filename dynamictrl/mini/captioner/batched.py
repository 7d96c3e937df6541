"""Qwen2-VL over many clips of one size at once: the same function of the same weights as the class's forward.

The class's forward computes positions on the host for each clip and runs its vision tower frame by frame; a GPU would
wait for Python most of the time. Here all that the size determines is computed once. A test holds the two equal.

Shape suffixes: B clips, T pairs of frames, P patches of a pair, X values of a patch, L text-model tokens, D width,
A answer tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Qwen2VLForConditionalGeneration

Weights = Mapping[str, Tensor]


def _part(weights: Weights, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on [*, heads, length, head width]; `cos` and `sin` [length, head width]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def _heads(x_BLD: Tensor, heads: int) -> Tensor:
    return x_BLD.unflatten(-1, (heads, -1)).transpose(1, 2)


def vision_block(x_NPD: Tensor, w: dict[str, Tensor], cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    """One block of the vision tower; every pair of frames attends to itself alone."""
    width = x_NPD.shape[-1]
    y = F.layer_norm(x_NPD, (width,), w["norm1.weight"], w["norm1.bias"], 1e-6)
    qkv = F.linear(y, w["attn.qkv.weight"], w["attn.qkv.bias"]).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    y = F.scaled_dot_product_attention(_rotate(q, cos, sin), _rotate(k, cos, sin), v).transpose(1, 2).flatten(2)
    x_NPD = x_NPD + F.linear(y, w["attn.proj.weight"], w["attn.proj.bias"])
    y = F.layer_norm(x_NPD, (width,), w["norm2.weight"], w["norm2.bias"], 1e-6)
    y = F.linear(y, w["mlp.fc1.weight"], w["mlp.fc1.bias"])
    return x_NPD + F.linear(y * torch.sigmoid(1.702 * y), w["mlp.fc2.weight"], w["mlp.fc2.bias"])


def text_layer(
    x_BLD: Tensor, w: dict[str, Tensor], cos: Tensor, sin: Tensor, heads: int, pairs: int, epsilon: float
) -> Tensor:
    """One layer of the language model, each token attending to what came before it; `pairs` are key-value heads."""
    width = x_BLD.shape[-1]
    y = F.rms_norm(x_BLD, (width,), w["input_layernorm.weight"], epsilon)
    q = _heads(F.linear(y, w["self_attn.q_proj.weight"], w["self_attn.q_proj.bias"]), heads)
    k = _heads(F.linear(y, w["self_attn.k_proj.weight"], w["self_attn.k_proj.bias"]), pairs)
    v = _heads(F.linear(y, w["self_attn.v_proj.weight"], w["self_attn.v_proj.bias"]), pairs)
    q, k = _rotate(q, cos, sin), _rotate(k, cos, sin).repeat_interleave(heads // pairs, dim=1)
    v = v.repeat_interleave(heads // pairs, dim=1)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    x_BLD = x_BLD + F.linear(y, w["self_attn.o_proj.weight"])
    y = F.rms_norm(x_BLD, (width,), w["post_attention_layernorm.weight"], epsilon)
    y = F.silu(F.linear(y, w["mlp.gate_proj.weight"])) * F.linear(y, w["mlp.up_proj.weight"])
    return x_BLD + F.linear(y, w["mlp.down_proj.weight"])


class BatchedCaptioner:
    """A captioner's forward for clips of one grid (pairs of frames, rows and columns of patches) and one question."""

    def __init__(
        self,
        model: Qwen2VLForConditionalGeneration,
        question: list[int],
        grid: tuple[int, int, int],
        *,
        longest_answer: int,
        compiled: bool = False,
    ):
        """`question` holds the ids before the answer with one video placeholder per token of the grid."""
        config: Any = model.config
        self.vision, self.text = config.vision_config, config.text_config
        device = next(model.parameters()).device
        self.question_L = torch.tensor(question, device=device)
        self.video_start = question.index(config.video_token_id)
        self.video_tokens = question.count(config.video_token_id)
        self.grid = grid
        merge = self.vision.spatial_merge_size
        assert self.video_tokens == grid[0] * grid[1] * grid[2] // merge**2, (self.video_tokens, grid)
        self.vision_rotary = tuple(x.to(device) for x in _vision_rotary(grid, self.vision))
        positions_3L = self._text_positions(len(question) + longest_answer)
        self.text_rotary = tuple(x.to(device) for x in _text_rotary(positions_3L, self.text))
        # Blocks of one kind share one compiled function; the rest is a handful of calls.
        self._vision_block: Any = torch.compile(vision_block, dynamic=False) if compiled else vision_block
        self._text_layer: Any = torch.compile(text_layer, dynamic=False) if compiled else text_layer

    def _text_positions(self, length: int) -> Tensor:
        """[3, L]: time, row and column; words count on from the larger side of the picture."""
        merge = self.vision.spatial_merge_size
        pairs, rows, columns = self.grid[0], self.grid[1] // merge, self.grid[2] // merge
        axes = torch.meshgrid(torch.arange(pairs), torch.arange(rows), torch.arange(columns), indexing="ij")
        video_3L = torch.stack(axes).flatten(1) + self.video_start
        before = torch.arange(self.video_start).expand(3, -1)
        rest = length - self.video_start - self.video_tokens
        after = torch.arange(rest).expand(3, -1) + self.video_start + max(rows, columns)
        return torch.cat([before, video_3L, after], dim=1)

    def see(self, weights: Weights, patches_BTPX: Tensor) -> Tensor:
        """A batch of clips as tokens [B, T * P / merge ** 2, D]; patches come in the order of `frames.patches`."""
        return self.merge(weights, self.look(weights, patches_BTPX))

    def look(self, weights: Weights, patches_BTPX: Tensor) -> Tensor:
        """What the vision tower makes of each patch: [B * T, P, D]."""
        w = _part(weights, "model.visual.")
        cos, sin = (x.to(patches_BTPX.dtype) for x in self.vision_rotary)
        x_NPD = F.linear(patches_BTPX.flatten(0, 1), w["patch_embed.proj.weight"].flatten(1))
        for index in range(self.vision.depth):
            x_NPD = self._vision_block(x_NPD, _part(w, f"blocks.{index}."), cos, sin, self.vision.num_heads)
        return x_NPD

    def merge(self, weights: Weights, x_NPD: Tensor) -> Tensor:
        """Merge x merge patches to a token of the text model each: [B, T * P / merge ** 2, D]."""
        w = _part(weights, "model.visual.")
        x_NPD = F.layer_norm(x_NPD, x_NPD.shape[-1:], w["merger.ln_q.weight"], w["merger.ln_q.bias"], 1e-6)
        x = x_NPD.reshape(-1, self.video_tokens, x_NPD.shape[-1] * self.vision.spatial_merge_size**2)
        x = F.gelu(F.linear(x, w["merger.mlp.0.weight"], w["merger.mlp.0.bias"]))
        return F.linear(x, w["merger.mlp.2.weight"], w["merger.mlp.2.bias"])

    def say(self, weights: Weights, video_BLD: Tensor, answer_BA: Tensor) -> Tensor:
        """Logits [B, 1 + A, V] of each answer token given those before it, and of what comes after the last."""
        w = _part(weights, "model.language_model.")
        config, embeddings = self.text, w["embed_tokens.weight"]
        question_LD = F.embedding(self.question_L, embeddings).expand(len(video_BLD), -1, -1)
        end = self.video_start + self.video_tokens
        # A product instead of a look-up: its gradient needs no sorting, which a CUDA graph may not be able to hold.
        chosen_BAV = answer_BA[..., None] == torch.arange(len(embeddings), device=answer_BA.device)
        answer_BAD = chosen_BAV.to(embeddings.dtype) @ embeddings
        parts = [question_LD[:, : self.video_start], video_BLD, question_LD[:, end:], answer_BAD]
        x_BLD = torch.cat(parts, dim=1)
        cos, sin = (x[: x_BLD.shape[1]].to(x_BLD.dtype) for x in self.text_rotary)
        heads, pairs, epsilon = config.num_attention_heads, config.num_key_value_heads, config.rms_norm_eps
        for index in range(config.num_hidden_layers):
            x_BLD = self._text_layer(x_BLD, _part(w, f"layers.{index}."), cos, sin, heads, pairs, epsilon)
        x_BAD = F.rms_norm(x_BLD[:, len(self.question_L) - 1 :], x_BLD.shape[-1:], w["norm.weight"], epsilon)
        return F.linear(x_BAD, weights.get("lm_head.weight", embeddings))

    @torch.no_grad()
    def answer(self, weights: Weights, patches_BTPX: Tensor, length: int, end: int) -> Tensor:
        """Greedy answers [B, length], padded with `end`, which ends them. Without a cache: for a GPU, in batches."""
        video_BLD = self.see(weights, patches_BTPX)
        batch = len(video_BLD)
        said_BA = torch.full((batch, length), end, device=video_BLD.device)
        running_B = torch.ones(batch, dtype=torch.bool, device=video_BLD.device)
        for place in range(length):
            logits_BAV = self.say(weights, video_BLD, said_BA[:, : length - 1])
            said_BA[:, place] = torch.where(running_B, logits_BAV[:, place].argmax(dim=-1), end)
            running_B &= said_BA[:, place] != end
            if not running_B.any():
                break
        return said_BA


def _vision_rotary(grid: tuple[int, int, int], config: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    """Cosines and sines [P, head width] of a pair of frames; patches come in blocks of merge x merge."""
    merge, (_, rows, columns) = config.spatial_merge_size, grid
    head = config.embed_dim // config.num_heads
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    blocks = (rows // merge, merge, columns // merge, merge)
    places = [x.reshape(blocks).transpose(1, 2).flatten() for x in (row, column)]
    rate = 10000.0 ** -(torch.arange(0, head // 2, 2, dtype=torch.float32) / (head // 2))
    angle = torch.cat([place[:, None].float() * rate for place in places], dim=-1)
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos(), angle.sin()


def _text_rotary(positions_3L: Tensor, config: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    """Cosines and sines [L, head width]; parts of the width turn with time, row or column (Qwen2-VL's M-RoPE)."""
    head = config.hidden_size // config.num_attention_heads
    settings = config.rope_parameters
    rate = settings["rope_theta"] ** -(torch.arange(0, head, 2, dtype=torch.float32) / head)
    parts = (positions_3L[:, :, None].float() * rate).split(settings["mrope_section"], dim=-1)
    angle = torch.cat([part[index % 3] for index, part in enumerate(parts)], dim=-1)
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos(), angle.sin()
