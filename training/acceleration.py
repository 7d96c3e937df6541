"""Makes a step fast without changing what it computes: what is recomputed, compiled, and which attention runs."""

from __future__ import annotations

import logging

from torch import nn

from training.config import Recipe
from training.parallel import Place

logger = logging.getLogger(__name__)


def prepare(transformer: nn.Module, recipe: Recipe, place: Place) -> None:
    """Called once, before DeepSpeed takes the transformer."""
    if recipe.speed.recompute != "none":
        transformer.enable_gradient_checkpointing()  # pyright: ignore[reportCallIssue]
