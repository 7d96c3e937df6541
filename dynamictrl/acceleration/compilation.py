"""Blocks compiled one by one: a graph a kind of block and a shape of clip, instead of one of the whole model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

GRAPHS = 128
"""Compiled graphs that the blocks may share: a few kinds of block for each shape of clip."""


def compile_blocks(transformer: nn.Module, backend: str = "inductor") -> None:
    """Compiles each block where it stands, its checkpoint inside it, so that the compiler sees what is to be kept.

    Blocks of one kind share a graph: their weights are inputs of it. `backend` is torch.compile's.
    """
    dynamo: Any = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, GRAPHS)
    dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, 2 * GRAPHS)
    blocks: Any = transformer.transformer_blocks
    for block in blocks:
        block.compile(dynamic=False, backend=backend)
