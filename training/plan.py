"""What a run takes, before anything is started: parameters, tokens, FLOPs, memory by component, seconds per step.

Pure arithmetic on the base's config; nothing is loaded. d is the model's width, S the number of tokens, L of blocks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynamictrl.errors import CheckpointError, ConfigError
from training.config import Recipe

GB = 1e9
GIB = 2**30

_COGVIDEOX: dict[str, Any] = {
    "attention_head_dim": 64, "time_embed_dim": 512, "ofs_embed_dim": None, "text_embed_dim": 4096, "in_channels": 32,
    "out_channels": 16, "patch_size": 2, "patch_size_t": None, "max_text_seq_length": 226, "attention_bias": True,
}  # fmt: skip

KNOWN_BASES: dict[str, dict[str, Any]] = {
    "CogVideoX-2b": _COGVIDEOX | {"num_layers": 30, "num_attention_heads": 30},
    "CogVideoX-5b": _COGVIDEOX | {"num_layers": 42, "num_attention_heads": 48},
    "CogVideoX-5b-I2V": _COGVIDEOX | {"num_layers": 42, "num_attention_heads": 48},
    "CogVideoX1.5-5B-I2V": _COGVIDEOX
    | {"num_layers": 42, "num_attention_heads": 48, "patch_size_t": 2, "ofs_embed_dim": 512},
    "DynamiCtrl": _COGVIDEOX | {"num_layers": 42, "num_attention_heads": 48, "patch_size_t": 2, "ofs_embed_dim": 512},
}
"""Transformer configs of the published bases, by the last part of their hub ids, widened to a reference image."""

COGVIDEOX_VAE = 215_583_907
"""Parameters of the CogVideoX VAE."""
T5_XXL_ENCODER = 4_762_310_656
"""Parameters of the T5-v1.1-XXL encoder."""

ACTIVATION_COPIES = 34
"""[tokens, width] tensors that one block keeps for its backward pass (fused attention, no recomputation)."""
RUNTIME_GB = 1.5
"""CUDA context, communication buffers and workspaces."""


@dataclass(frozen=True)
class Plan:
    """The answer of `plan`; sizes are decimal GB per GPU, as GPU vendors count."""

    base: str
    gpus: int
    gpu_memory_gib: float
    parameters: int
    pose_parameters: int
    trained: int
    """Parameters that learn: all, or a LoRA's."""
    latent_frames: int
    tokens: int
    forward_tflop: float
    """TFLOP of one sample's forward pass."""
    memory_gb: dict[str, float]
    seconds_per_step: float
    """At the expected share of the peak, by the slowest of the GPUs alone: data and communication hidden."""
    steps: int
    checkpoint_gb: float

    @property
    def total_gb(self) -> float:
        """Peak per GPU."""
        return sum(self.memory_gb.values())

    @property
    def fits(self) -> bool:
        """Whether the peak stays within the memory of a GPU."""
        return self.total_gb * GB <= self.gpu_memory_gib * GIB

    def refusal(self) -> str:
        """Why it does not fit, and the way out."""
        return (
            f"this needs {self.total_gb * GB / GIB:.1f} GiB per GPU and a GPU has {self.gpu_memory_gib:.1f} GiB; use "
            "more GPUs, a higher --zero-stage, --recompute all, or fewer frames or pixels"
        )

    def text(self) -> str:
        """The plan for people."""
        limit = self.gpu_memory_gib * GIB / GB
        lines = [
            f"base                  {self.base}",
            f"parameters            {self.parameters:,} (pose control {self.pose_parameters:,})",
            f"of which learn        {self.trained:,}",
            f"latent frames         {self.latent_frames}",
            f"tokens                {self.tokens:,}",
            f"forward pass          {self.forward_tflop:,.2f} TFLOP a sample",
            f"training step         {3 * self.forward_tflop:,.2f} TFLOP a sample (recomputation not counted)",
            f"memory per GPU        {self.total_gb:,.1f} GB of {limit:,.1f}; {self.gpus} GPU(s)",
            *(f"  {name:<20}{size:,.2f} GB" for name, size in self.memory_gb.items()),
            f"seconds per step      {self.seconds_per_step:,.2f}",
            f"hours                 {self.seconds_per_step * self.steps / 3600:,.1f} for {self.steps:,} steps",
            f"checkpoint            {self.checkpoint_gb:,.1f} GB",
        ]
        return "\n".join(lines)


def plan(
    recipe: Recipe,
    *,
    gpus: int = 0,
    gpu_memory_gib: float = 139.0,
    peak_tflops: float = 989.4,
    expected_mfu: float = 0.38,
) -> Plan:
    """Estimates a run; `gpus` 0 takes the recipe's workers.

    Raises ConfigError for a base whose shape is not known here, InputError for a size the base cannot render.
    """
    config = base_config(recipe.model.base)
    check_shape(recipe.clips.height, recipe.clips.width, recipe.clips.num_frames)
    gpus = gpus or max(recipe.workers.num_workers, 1)
    per_pass = gpus * recipe.optimization.micro_batch_size
    if recipe.optimization.batch_size % per_pass:
        raise ConfigError(
            f"batch_size {recipe.optimization.batch_size} does not divide over {gpus} GPUs x micro_batch_size "
            f"{recipe.optimization.micro_batch_size}; choose a multiple of {per_pass}",
            param="batch_size",
        )
    control = control_parameters(config, recipe.model.pose_control)
    parameters = transformer_parameters(config, recipe.model.pose_control)
    trained = trained_parameters(recipe, config, parameters)
    frames, tokens = latent_frames(recipe.clips.num_frames, config), video_tokens(recipe, config)
    forward = forward_flop(config, recipe.model.pose_control, tokens, config["max_text_seq_length"]) / 1e12
    samples = recipe.optimization.batch_size // gpus
    return Plan(
        base=recipe.model.base,
        gpus=gpus,
        gpu_memory_gib=gpu_memory_gib,
        parameters=parameters,
        pose_parameters=control,
        trained=trained,
        latent_frames=frames,
        tokens=tokens + config["max_text_seq_length"],
        forward_tflop=forward,
        memory_gb=memory(recipe, config, parameters, trained, tokens + config["max_text_seq_length"], gpus),
        seconds_per_step=3 * forward * samples / (peak_tflops * expected_mfu),
        steps=recipe.optimization.steps,
        checkpoint_gb=trained * (14 if recipe.workers.precision == "bf16" else 16) / GB,
    )


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


def video_tokens(recipe: Recipe, config: Mapping[str, Any]) -> int:
    """Tokens of one clip, without its caption's."""
    cell = 8 * config["patch_size"]
    frames = latent_frames(recipe.clips.num_frames, config) // (config["patch_size_t"] or 1)
    return frames * (recipe.clips.height // cell) * (recipe.clips.width // cell)


def _linear(inputs: int, outputs: int, bias: bool = True) -> int:
    return inputs * outputs + (outputs if bias else 0)


def _width(config: Mapping[str, Any]) -> int:
    return config["num_attention_heads"] * config["attention_head_dim"]


def _attention(config: Mapping[str, Any], bias: bool) -> int:
    d = _width(config)
    # Queries and keys are normalised per head: two weights and two biases of a head's width.
    return 3 * _linear(d, d, bias) + _linear(d, d) + 4 * config["attention_head_dim"]


def control_parameters(config: Mapping[str, Any], pose_control: str) -> int:
    """Parameters that a pose control adds to the base (the reference image's channels not counted)."""
    d, blocks = _width(config), config["num_layers"]
    if pose_control in ("padaln", "padaln_residual"):
        return blocks * (_linear(config["time_embed_dim"], 3 * d) + 2 * d)
    if pose_control == "cross_attention":
        return blocks * _attention(config, True)
    if pose_control == "unified_tokens":
        return config["out_channels"] * config["patch_size"] ** 2 * (config["patch_size_t"] or 1) * d
    return 0


def transformer_parameters(config: Mapping[str, Any], pose_control: str) -> int:
    """Parameters of the whole transformer with a reference image's channels and a pose control."""
    d, e, ofs = _width(config), config["time_embed_dim"], config["ofs_embed_dim"]
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
    d, blocks, tokens = _width(config), config["num_layers"], video_tokens + text_tokens
    flop = blocks * (24 * d**2 * tokens + 4 * tokens**2 * d)
    if pose_control == "cross_attention":
        flop += blocks * (8 * d**2 * video_tokens + 4 * video_tokens**2 * d)
    return float(flop)


def trained_parameters(recipe: Recipe, config: Mapping[str, Any], parameters: int) -> int:
    """How many of a transformer's `parameters` learn, or of a LoRA's on it."""
    d, lora = _width(config), recipe.lora
    if not lora.lora_rank:
        return parameters
    sides = {"attention": 4 * 2 * d, "feed_forward": 2 * 5 * d, "pose_control": 0}
    if recipe.model.pose_control.startswith("padaln"):
        sides["pose_control"] = config["time_embed_dim"] + 3 * d
    elif recipe.model.pose_control == "cross_attention":
        sides["pose_control"] = 4 * 2 * d
    pose = control_parameters(config, recipe.model.pose_control) if lora.lora_whole_pose else 0
    return config["num_layers"] * lora.lora_rank * sum(sides[part] for part in set(lora.lora_parts)) + pose


def memory(
    recipe: Recipe, config: Mapping[str, Any], parameters: int, trained: int, tokens: int, gpus: int
) -> dict[str, float]:
    """Decimal GB per GPU by component."""
    stage, weight = recipe.workers.zero_stage, 2 if recipe.workers.precision == "bf16" else 4
    shards = {name: gpus if stage >= least else 1 for name, least in (("weights", 3), ("gradients", 2), ("states", 1))}
    d, blocks = _width(config), config["num_layers"]
    carried = 2 if recipe.model.pose_control in ("padaln", "padaln_residual", "cross_attention") else 1
    stream = tokens * d * weight * recipe.optimization.micro_batch_size
    kept = blocks * carried * stream + ACTIVATION_COPIES * stream
    if recipe.speed.recompute == "none":
        kept = blocks * (ACTIVATION_COPIES + carried - 1) * stream
    frozen = (COGVIDEOX_VAE + T5_XXL_ENCODER) * weight if config["text_embed_dim"] == 4096 else 0
    expert = {"pose encoder": pose_encoder_memory(recipe, config, weight) / GB}
    return {
        "weights": parameters * weight / shards["weights"] / GB,
        "gradients": trained * weight / shards["gradients"] / GB,
        "optimizer": trained * 12 / shards["states"] / GB,
        "activations": kept / GB,
        "frozen encoders": frozen / GB,
        **(expert if recipe.model.pose_encoding == "expert" else {}),
        "runtime": RUNTIME_GB,
    }


def pose_encoder_parameters(latent_channels: int) -> int:
    """Of the expert pose encoder in its default widths."""
    halvings = sum(16 * before * after + after for before, after in ((3, 32), (32, 64), (64, 128)))
    return halvings + (4 * 128 * 128 + 128) + (9 * 128 * latent_channels + latent_channels)


def pose_encoder_memory(recipe: Recipe, config: Mapping[str, Any], weight: int) -> float:
    """Bytes: weights, gradients and optimizer states, and what its layers keep for the backward pass."""
    clips = recipe.clips
    pixels = clips.num_frames * clips.height * clips.width * recipe.optimization.micro_batch_size
    # Each layer's output is kept before and after its activation.
    kept = 2 * pixels * (32 / 4 + 64 / 16 + 128 / 64)
    return pose_encoder_parameters(config["out_channels"]) * (2 * weight + 12) + kept * weight
