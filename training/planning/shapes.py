"""A model's shape: parameters, tokens and FLOPs, from its config alone.

Pure arithmetic; nothing is loaded. d is the model's width, S the number of tokens, L of blocks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynamictrl.errors import CheckpointError, ConfigError
from training.config import Recipe

_COGVIDEOX: dict[str, Any] = {
    "attention_head_dim": 64, "time_embed_dim": 512, "ofs_embed_dim": None, "text_embed_dim": 4096, "in_channels": 32,
    "out_channels": 16, "patch_size": 2, "patch_size_t": None, "max_text_seq_length": 226, "attention_bias": True,
}  # fmt: skip

KNOWN_BASES: dict[str, dict[str, Any]] = {
    "CogVideoX-2b": _COGVIDEOX | {"num_layers": 30, "num_attention_heads": 30},
    "CogVideoX-5b": _COGVIDEOX | {"num_layers": 42, "num_attention_heads": 48},
    "CogVideoX-5b-I2V": _COGVIDEOX
    | {
        "num_layers": 42, "num_attention_heads": 48,
        "use_learned_positional_embeddings": True, "sample_height": 60, "sample_width": 90,
    },
    "CogVideoX1.5-5B-I2V": _COGVIDEOX
    | {"num_layers": 42, "num_attention_heads": 48, "patch_size_t": 2, "ofs_embed_dim": 512},
    "DynamiCtrl": _COGVIDEOX | {"num_layers": 42, "num_attention_heads": 48, "patch_size_t": 2, "ofs_embed_dim": 512},
}  # fmt: skip
"""Transformer configs of the published bases, by the last part of their hub ids, widened to a reference image."""

COGVIDEOX_VAE = 215_583_907
"""Parameters of the CogVideoX VAE."""
T5_XXL_ENCODER = 4_762_310_656
"""Parameters of the T5-v1.1-XXL encoder."""


@dataclass(frozen=True)
class Size:
    """Of a clip as it is shown."""

    num_frames: int
    height: int
    """Pixels."""
    width: int
    """Pixels."""

    def __str__(self):
        return f"{self.num_frames}x{self.height}x{self.width}"


def base_config(base: str) -> dict[str, Any]:
    """The transformer's config of a base: a published one's from the table, a folder's from its config.json."""
    from dynamictrl import weights

    folder = Path(base).expanduser()
    is_hub_id = base.count("/") == 1 and not base.startswith((".", "/", "~", "mini/")) and not folder.is_dir()
    if is_hub_id and folder.name in KNOWN_BASES:
        return KNOWN_BASES[folder.name]
    if is_hub_id:
        raise ConfigError(
            f"the base {base!r} is no local folder, and its shape is not known; known are {', '.join(KNOWN_BASES)}",
            param="base",
        )
    path = weights.resolve(base) / "transformer" / "config.json"
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as problem:
        raise CheckpointError(f"{path} cannot be read as a transformer's config: {problem}") from problem
    return _COGVIDEOX | config


def check_shape(height: int, width: int, num_frames: int) -> None:
    """Refuses sizes and frame counts that no base can render; InputError names the nearest legal."""
    from dynamictrl import geometry

    geometry.check_size(height, width)
    geometry.check_num_frames(num_frames)


def latent_frames(num_frames: int, config: Mapping[str, Any]) -> int:
    """Latent frames that are denoised: the VAE's, filled up to whole patches in time."""
    from dynamictrl import geometry

    count, patch = geometry.latent_frames(num_frames), config["patch_size_t"] or 1
    return -(-count // patch) * patch


def sizes(recipe: Recipe) -> list[Size]:
    """The sizes a recipe's clips are shown in, the one with most tokens first."""
    named = [Size(one.num_frames, one.height, one.width) for one in recipe.clips.sizes]
    return sorted(named, key=lambda size: size.num_frames * size.height * size.width, reverse=True)


def video_tokens(recipe: Recipe, config: Mapping[str, Any]) -> int:
    """Tokens of the recipe's largest clip, without its caption's."""
    return max(clip_tokens(size, config) for size in sizes(recipe))


def clip_tokens(size: Size, config: Mapping[str, Any]) -> int:
    """Tokens of one clip, without its caption's."""
    cell = 8 * config["patch_size"]
    frames = latent_frames(size.num_frames, config) // (config["patch_size_t"] or 1)
    return frames * (size.height // cell) * (size.width // cell)


def tokens(size: Size, config: Mapping[str, Any]) -> int:
    """Tokens of one clip and its caption."""
    return clip_tokens(size, config) + config["max_text_seq_length"]


def _linear(inputs: int, outputs: int, bias: bool = True) -> int:
    return inputs * outputs + (outputs if bias else 0)


def width(config: Mapping[str, Any]) -> int:
    return config["num_attention_heads"] * config["attention_head_dim"]


def _attention(config: Mapping[str, Any], bias: bool) -> int:
    d = width(config)
    # Queries and keys are normalised per head: two weights and two biases of a head's width.
    return 3 * _linear(d, d, bias) + _linear(d, d) + 4 * config["attention_head_dim"]


def control_parameters(config: Mapping[str, Any], pose_control: str) -> int:
    """Parameters that a pose control adds to the base (the reference image's channels not counted)."""
    d, blocks = width(config), config["num_layers"]
    if pose_control in ("padaln", "padaln_residual"):
        return blocks * (_linear(config["time_embed_dim"], 3 * d) + 2 * d)
    if pose_control == "cross_attention":
        return blocks * _attention(config, True)
    if pose_control == "unified_tokens":
        return config["out_channels"] * config["patch_size"] ** 2 * (config["patch_size_t"] or 1) * d
    return 0


def transformer_parameters(config: Mapping[str, Any], pose_control: str) -> int:
    """Parameters of the whole transformer with a reference image's channels and a pose control."""
    d, e, ofs = width(config), config["time_embed_dim"], config["ofs_embed_dim"]
    cell = config["patch_size"] ** 2 * (config["patch_size_t"] or 1)
    norm_zero = _linear(e, 6 * d) + 2 * d
    block = 2 * norm_zero + _attention(config, config["attention_bias"]) + _linear(d, 4 * d) + _linear(4 * d, d)
    return (
        _linear(2 * config["out_channels"] * cell, d)
        + _linear(config["text_embed_dim"], d)
        + _linear(d, e) + _linear(e, e)
        + (2 * _linear(ofs, ofs) if ofs else 0)
        + config["num_layers"] * block
        + 2 * d + _linear(e, 2 * d) + 2 * d
        + _linear(d, cell * config["out_channels"])
        + control_parameters(config, pose_control)
    )  # fmt: skip


def forward_flop(config: Mapping[str, Any], pose_control: str, video_tokens: int, text_tokens: int) -> float:
    """FLOP of one sample's forward pass: L (24 d^2 S + 4 S^2 d), and what cross-attention adds."""
    return sum(forward_parts(config, pose_control, video_tokens, text_tokens))


def forward_parts(
    config: Mapping[str, Any], pose_control: str, video_tokens: int, text_tokens: int
) -> tuple[float, float]:
    """FLOP of one sample's forward pass in linear layers and in attention."""
    d, blocks, count = width(config), config["num_layers"], video_tokens + text_tokens
    linear, attention = blocks * 24 * d**2 * count, blocks * 4 * count**2 * d
    if pose_control == "cross_attention":
        linear += blocks * 8 * d**2 * video_tokens
        attention += blocks * 4 * video_tokens**2 * d
    return float(linear), float(attention)


def trained_parameters(recipe: Recipe, config: Mapping[str, Any], parameters: int) -> int:
    """How many of a transformer's `parameters` learn, or of a LoRA's on it."""
    d, lora = width(config), recipe.lora
    if not lora.lora_rank:
        return parameters
    sides = {"attention": 4 * 2 * d, "feed_forward": 2 * 5 * d, "pose_control": 0}
    if recipe.model.pose_control.startswith("padaln"):
        sides["pose_control"] = config["time_embed_dim"] + 3 * d
    elif recipe.model.pose_control == "cross_attention":
        sides["pose_control"] = 4 * 2 * d
    pose = control_parameters(config, recipe.model.pose_control) if lora.lora_whole_pose else 0
    return config["num_layers"] * lora.lora_rank * sum(sides[part] for part in set(lora.lora_parts)) + pose


def learnt(recipe: Recipe, config: Mapping[str, Any]) -> int:
    """Parameters that learn, an expert pose encoder's among them."""
    whole = transformer_parameters(config, recipe.model.pose_control)
    expert = recipe.model.pose_encoding == "expert"
    return trained_parameters(recipe, config, whole) + (
        pose_encoder_parameters(config["out_channels"]) if expert else 0
    )


def pose_encoder_parameters(latent_channels: int) -> int:
    """Of the expert pose encoder in its default widths."""
    halvings = sum(16 * before * after + after for before, after in ((3, 32), (32, 64), (64, 128)))
    return halvings + (4 * 128 * 128 + 128) + (9 * 128 * latent_channels + latent_channels)
