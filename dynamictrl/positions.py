"""Where each video token sits: rotary positions, the same for training and inference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from torch import Tensor


def rotary_positions(
    config: Mapping[str, Any], latent_frames: int, latent_height: int, latent_width: int, device: torch.device | str
) -> tuple[Tensor, Tensor] | None:
    """Cosines and sines [tokens, head width] for a latent video, or None where the base has no rotary positions.

    `config` is the transformer's; `latent_frames` counts after `latents.pad_front`. A 1.0 base stretches its own grid
    over the picture (centred, aspect kept); a 1.5 base counts plain integers.
    """
    if not config["use_rotary_positional_embeddings"]:
        return None
    p, p_t = config["patch_size"], config["patch_size_t"]
    grid = (latent_height // p, latent_width // p)
    base = (config["sample_height"] // p, config["sample_width"] // p)
    if p_t is None:
        options = {"crops_coords": centred_region(grid, base), "temporal_size": latent_frames}
    else:
        frames, limit = -(-latent_frames // p_t), (max(grid[0], base[0]), max(grid[1], base[1]))
        options = {"crops_coords": None, "temporal_size": frames, "grid_type": "slice", "max_size": limit}
    cosines, sines = get_3d_rotary_pos_embed(
        config["attention_head_dim"], grid_size=grid, device=torch.device(device), **options
    )
    return cosines, sines


def centred_region(grid: tuple[int, int], base: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """The part of the base grid (rows, columns) that a picture of another aspect covers: its first and last corner."""
    rows, columns = grid
    base_rows, base_columns = base
    if rows / columns > base_rows / base_columns:
        height, width = base_rows, round(base_rows / rows * columns)
    else:
        height, width = round(base_columns / columns * rows), base_columns
    top, left = round((base_rows - height) / 2), round((base_columns - width) / 2)
    return (top, left), (top + height, left + width)
