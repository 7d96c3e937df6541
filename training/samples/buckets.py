"""What the sizes of a run cost, and whether its base can render them. Pure arithmetic on the base's config.

d is the transformer's width, S the number of tokens with the caption's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynamictrl import geometry
from dynamictrl.errors import ConfigError
from dynamictrl.samples.buckets import Bucket
from training.config import Recipe

VAE_PIXELS = 8
"""Pixels of a latent pixel's side."""


def check_sizes(recipe: Recipe, config: Mapping[str, Any]) -> None:
    """Refuses sizes that the base cannot render, and buckets that do not divide the batch.

    `config` is the base's transformer config. Raises InputError or ConfigError naming what would be legal.
    """
    clips, batch = recipe.clips, recipe.optimization
    for bucket in clips.sizes:
        geometry.check_num_frames(bucket.num_frames)
        geometry.check_size(bucket.height, bucket.width, VAE_PIXELS * config["patch_size"])
        _check_positions(bucket, config)
    row = clips.samples_in_a_row(batch.batch_size)
    if len(clips.buckets) > 1 and (batch.batch_size % row or row % batch.micro_batch_size):
        raise ConfigError(
            f"bucket_samples {row} must divide batch_size {batch.batch_size} and be a multiple of micro_batch_size "
            f"{batch.micro_batch_size}; 0 takes the whole batch",
            code="setting_conflict",
            param="bucket_samples",
        )


def _check_positions(bucket: Bucket, config: Mapping[str, Any]) -> None:
    """A base with learned positions has one size, its table's."""
    if not config.get("use_learned_positional_embeddings"):
        return
    height, width = config["sample_height"] * VAE_PIXELS, config["sample_width"] * VAE_PIXELS
    if (bucket.height, bucket.width) != (height, width):
        raise ConfigError(
            f"this base has learned positions for {width}x{height} pixels (width x height) alone and cannot render "
            f"{bucket.width}x{bucket.height}; train at --height {height} --width {width}, or choose another --base",
            code="bad_size",
            param="buckets",
        )


def video_tokens(bucket: Bucket, config: Mapping[str, Any]) -> int:
    """Tokens of a clip in this size, its caption's not counted."""
    cell, patch_t = VAE_PIXELS * config["patch_size"], config["patch_size_t"] or 1
    frames = -(-geometry.latent_frames(bucket.num_frames) // patch_t)
    return frames * (bucket.height // cell) * (bucket.width // cell)


def block_flop(bucket: Bucket, config: Mapping[str, Any]) -> float:
    """FLOP of one block's forward pass for one clip: 24 d^2 S + 4 S^2 d."""
    tokens = video_tokens(bucket, config) + config["max_text_seq_length"]
    width = config["num_attention_heads"] * config["attention_head_dim"]
    return 24.0 * width**2 * tokens + 4.0 * tokens**2 * width


def largest(recipe: Recipe, config: Mapping[str, Any]) -> Bucket:
    """The size with most tokens: what memory must hold."""
    return max(recipe.clips.sizes, key=lambda bucket: video_tokens(bucket, config))
