"""Linear layers that multiply in 8 bits, by torchao: faster where the GPU has such units, and less exact."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dynamictrl.errors import ConfigError

PARTS = (".attn1.", ".ff.")
"""Whose linear layers are converted; modulations, embeddings and the head stay as they are."""


def convert(transformer: nn.Module, device: torch.device) -> None:
    """Converts the blocks' attention and feed-forward layers in place, with a scale for every row.

    Weights stay what they were and where they were; inputs, weights and gradients are rounded for each product.
    Raises ConfigError where torchao or a GPU with 8-bit units is missing.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        raise ConfigError(
            "float8 needs a GPU with 8-bit units (Ada, Hopper or later); leave float8 off",
            code="float8_unsupported",
            param="float8",
        )
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training  # pyright: ignore[reportMissingImports]
    except ImportError as problem:
        raise ConfigError(
            f"float8 needs the package torchao ({problem}); install it beside torch, or leave float8 off",
            code="torchao_missing",
            param="float8",
        ) from problem
    rows: Any = Float8LinearConfig.from_recipe_name("rowwise")
    convert_to_float8_training(transformer, config=rows, module_filter_fn=is_converted)


def is_converted(module: nn.Module, name: str) -> bool:
    """Whether a layer takes part: a plain linear layer of a block, with sides that 8-bit kernels take."""
    if type(module) is not nn.Linear or not any(part in f".{name}." for part in PARTS):
        return False
    return module.in_features % 16 == 0 and module.out_features % 16 == 0
