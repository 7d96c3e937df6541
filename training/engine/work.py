"""What a step computes, and what a device could: the two sides of model FLOP utilisation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from training.planning.memory import Kept
from training.planning.shapes import forward_flop

if TYPE_CHECKING:
    from training.samples.batches import Batch

PEAK_TFLOPS = {"H200": 989.4, "H100": 989.4, "H20": 148.0, "A100": 312.0, "B200": 2250.0, "L40S": 362.0}
"""Dense bf16 peak by a part of the device's name, TFLOP/s; model FLOP utilisation is only told of these."""


def kept_of(transformer: nn.Module) -> Kept:
    """What the transformer's blocks leave for the backward pass, as `acceleration.prepare` has told each of them."""
    plans = Counter(
        getattr(block, "recompute", "all") for block in transformer.get_submodule("transformer_blocks").children()
    )
    return Kept(plans["none"] + plans["cheap"], plans["attention"], plans["all"])


@dataclass(frozen=True)
class Work:
    """What a micro-batch of one worker computes."""

    tokens: int
    model_tflop: float
    """Forward pass and gradients."""
    hardware_tflop: float
    """The same and what is computed twice."""

    @classmethod
    def of(cls, config: Mapping[str, Any], batch: Batch, kept: Kept, *, adapter: bool = False) -> Work:
        """Of one micro-batch; with an `adapter` (LoRA) alone learning, no linear layer's weights get a gradient."""
        samples, frames, _, height, width = batch.noise.shape
        patch, patch_t = config["patch_size"], config["patch_size_t"] or 1
        video, text = frames // patch_t * (height // patch) * (width // patch), batch.prompt.shape[1]
        blocks, forward = config["num_layers"], forward_flop(config, config["pose_control"], video, text) / 1e12
        attention = _attention_tflop(config, video, text)
        model = 3 * forward - (forward - attention if adapter else 0.0)
        again = (kept.inputs * forward + kept.attention * (forward - attention)) / blocks
        return cls(samples * (video + text), samples * model, samples * (model + again))


def _attention_tflop(config: Mapping[str, Any], video: int, text: int) -> float:
    """Of one sample's forward pass: queries times keys, and weights times values."""
    width = config["num_attention_heads"] * config["attention_head_dim"]
    pairs = (video + text) ** 2 + (video**2 if config["pose_control"] == "cross_attention" else 0)
    return config["num_layers"] * 4 * pairs * width / 1e12


def peak_tflops(device_name: str) -> float | None:
    """Dense bf16 peak of a device, TFLOP/s, where it is known."""
    return next((value for name, value in PEAK_TFLOPS.items() if name in device_name), None)
