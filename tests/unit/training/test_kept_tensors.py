"""How many [tokens, width] tensors a block really keeps for its backward pass, against what memory counts with."""

from __future__ import annotations

import pytest
import torch

from dynamictrl.transformer import DynamiCtrlTransformer3DModel
from training.planning import tensor_counts

WIDTH, TOKENS, TEXT = 256, 1024, 32
COMPILED = "aot_eager_decomp_partition"
"""torch.compile's own choice of what is kept, without a compiler."""


@pytest.mark.parametrize(
    ("backend", "policy", "expected"),
    [
        (None, "none", tensor_counts.WHOLE_TENSORS_EAGER),
        (COMPILED, "none", tensor_counts.WHOLE_TENSORS_COMPILED),
        (COMPILED, "cheap", tensor_counts.CHEAP_TENSORS),
        (COMPILED, "attention", tensor_counts.ATTENTION_TENSORS),
    ],
)
def test_a_block_keeps_as_many_tensors_as_memory_counts_with(backend: str | None, policy: str, expected: int):
    assert _kept(backend, policy) == pytest.approx(expected, abs=0.3 + 0.05 * expected)


def _kept(backend: str | None, policy: str) -> float:
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = DynamiCtrlTransformer3DModel(
        num_attention_heads=4, num_layers=1, time_embed_dim=64, text_embed_dim=64, use_rotary_positional_embeddings=True
    )
    block = model.transformer_blocks[0].bfloat16()
    block.recompute = policy  # pyright: ignore[reportArgumentType]
    if backend is not None:
        block.compile(dynamic=False, backend=backend)
    video, text, pose = (torch.randn(1, n, WIDTH).bfloat16().requires_grad_() for n in (TOKENS, TEXT, TOKENS))
    rotary = (torch.randn(TOKENS, 64), torch.randn(TOKENS, 64))
    # Weights are not kept for the pass, and rotary tables, small beside a real width, are shared by all blocks.
    shared = {tensor.untyped_storage().data_ptr() for tensor in (*block.parameters(), *rotary)}
    held: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in shared and tensor.shape[-1] != 64 or tensor.dtype == torch.bfloat16:
            held[storage.data_ptr()] = 0 if storage.data_ptr() in shared else storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        block(video, text, pose, torch.randn(1, 64).bfloat16(), rotary, {})
    return sum(held.values()) / ((TOKENS + TEXT) * WIDTH * 2)
