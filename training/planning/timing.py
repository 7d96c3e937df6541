"""Seconds of a training step by what takes them, from rates that were measured (an H200) or scaled from them.

A roofline in parts, not one expected utilisation: matrix products, attention and memory-bound work each have a rate of
their own, and what is computed twice follows from what blocks keep. Forward attention is 4 S^2 d FLOP a block, its
backward 2.5 times that; S tokens, d width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dynamictrl.errors import ConfigError
from training.config import Recipe
from training.planning import shapes
from training.planning.memory import Kept
from training.planning.tensor_counts import is_compiled


@dataclass(frozen=True)
class Gpu:
    """What a kind of GPU sustains inside a step."""

    name: str
    memory_gib: float
    """Usable."""
    peak_tflops: float
    """Dense bf16, by the datasheet: what MFU counts against."""
    product_tflops: float
    """Matrix products of the blocks' sizes."""
    attention_tflops: dict[str, float]
    """By kernel, forward and backward alike, head width 64."""
    bytes_per_second: float
    """Of memory-bound kernels."""
    link_bytes_per_second: float
    """Between the GPUs of a node, one direction, as collectives reach it."""
    is_measured: bool = False
    """Whether the rates were measured on it; else they are an H200's, scaled by datasheets."""


H200 = Gpu(
    "h200",
    memory_gib=139.0,
    peak_tflops=989.4,
    product_tflops=802.0,  # 677 TFLOP in 844 ms of kernel time, gpu.md 5.1
    attention_tflops={"cudnn": 410.0, "flash": 285.0, "efficient": 110.0, "math": 40.0},  # 163 in 398 ms, 408 in 993
    bytes_per_second=4.1e12,
    link_bytes_per_second=300e9,
    is_measured=True,
)


def _scaled(name: str, memory_gib: float, peak_tflops: float, terabytes: float, link: float) -> Gpu:
    """An H200's rates by the ratios of datasheets; its memory moves 4.8 TB/s by its own."""
    ratio = peak_tflops / H200.peak_tflops
    return Gpu(
        name,
        memory_gib=memory_gib,
        peak_tflops=peak_tflops,
        product_tflops=H200.product_tflops * ratio,
        attention_tflops={kernel: rate * ratio for kernel, rate in H200.attention_tflops.items()},
        bytes_per_second=H200.bytes_per_second * terabytes / 4.8,
        link_bytes_per_second=link,
    )


GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        H200,
        _scaled("h100", 79.0, 989.4, 3.35, 300e9),
        _scaled("a100", 79.0, 312.0, 2.04, 200e9),
        _scaled("h20", 95.0, 148.0, 4.0, 300e9),
        _scaled("b200", 178.0, 2250.0, 8.0, 600e9),
    )
}

# Reads and writes of one [tokens, width] bf16 tensor a block, from the kernel times of gpu.md 5.1 less matrix products
# and attention: eager 909 ms forward and 2726 backward (a forward in it), compiled 695 and 2295.
PASSES_EAGER = (268.0, 359.0)
"""Forward, backward."""
PASSES_COMPILED = (77.0, 165.0)
"""Forward, backward."""
CHEAP_PASSES = 0.5
"""Share of the forward pass's memory-bound work that a whole block's backward pass does again, as not all is kept."""
FLOAT8_SPEEDUP = 1.5
"""Of the blocks' matrix products, quantisation included; an estimate (alone they run 1.6 times as fast)."""
FLOAT32_SLOWDOWN = 8.0
"""Of matrix products and attention in float32, without TF32; an estimate."""
ATTENTION_BACKWARD = 2.5
"""Time of attention's backward pass by its forward's: five products for two."""
OPTIMIZER_SHARE = 0.65
"""Of the memory's rate that the optimizer reaches: 81 GB in 30 ms were measured."""
OPTIMIZER_BYTES = 46
"""A parameter and step: norm and clipping 12, AdamW in float32 28, the weight's copy 6."""
SUMMING_BYTES = 14
"""A parameter and micro-batch: its gradient into a bucket, and onto the float32 sum."""
HOST_OPTIMIZER_BYTES_PER_SECOND = 60e9
"""Of AdamW on offloaded states, all workers of a host together; an estimate for two sockets."""
HOST_LINK_BYTES_PER_SECOND = 40e9
"""Between a GPU and its host; an estimate for PCIe 5."""
NETWORK_BYTES_PER_SECOND = 45e9
"""A GPU's share of the network between nodes: 400 Gbit/s."""
GPUS_PER_NODE = 8
HIDDEN_REDUCTION = 0.8
"""Share of the gradients' way that goes on while the backward pass still computes."""
HIDDEN_GATHERING = 0.7
"""Share of the weights' way under ZeRO-3 that goes on while blocks compute."""
ENCODE_SECONDS_PER_MEGAPIXEL = 0.0626
"""Of the VAE, untiled: 2.42 s for 37 frames of 768x1360."""
ENCODE_FRAME_SECONDS_PER_MEGAPIXEL = 0.091
"""Of one picture: 0.095 s at 768x1360."""


@dataclass(frozen=True)
class Machine:
    """What a step is timed for."""

    gpu: Gpu = field(default_factory=lambda: H200)
    link_bytes_per_second: float = 0.0
    """Between workers; 0 takes the GPU's within a node and the network's beyond."""
    precomputed: bool = True
    """Clips and captions come encoded, as `python -m pipelines encode` leaves them."""

    def link(self, workers: int) -> float:
        """Bytes per second between so many workers."""
        within = workers <= GPUS_PER_NODE
        return self.link_bytes_per_second or (self.gpu.link_bytes_per_second if within else NETWORK_BYTES_PER_SECOND)


def gpu_named(name: str) -> Gpu:
    """A kind of GPU; ConfigError with those known."""
    if name.lower() in GPUS:
        return GPUS[name.lower()]
    raise ConfigError(
        f"--gpu is {name!r}; rates are known of {', '.join(GPUS)}. For another give the nearest and --gpu-memory-gib",
        code="gpu_unknown",
        param="gpu",
    )


@dataclass(frozen=True)
class StepTime:
    """One optimizer step of every worker, and what of it is useful."""

    parts: dict[str, float]
    """Seconds; they add up to the step."""
    model_tflop: float
    """What one worker computes in the step for the model: forward pass and gradients."""
    hardware_tflop: float
    """The same with what is computed twice."""

    @property
    def seconds(self) -> float:
        """The whole step."""
        return sum(self.parts.values())


def step_time(
    recipe: Recipe, config: Mapping[str, Any], size: shapes.Size, workers: int, kept: Kept, machine: Machine
) -> StepTime:
    """Of one optimizer step whose clips all have this size, on so many workers."""
    passes = recipe.accumulation_of(workers)
    parts = _micro_batch(recipe, config, size, kept, machine)
    model, hardware = _tflop(recipe, config, size, kept)
    gradients = _reduction(recipe, config, workers, machine, sum(parts.values()))
    parts = {name: seconds * passes for name, seconds in {**parts, **gradients}.items()}
    parts |= _optimizer(recipe, config, workers, machine)
    parts["encoding"] = passes * recipe.optimization.micro_batch_size * encode_seconds(recipe, size, machine)
    named = {name: seconds for name, seconds in parts.items() if seconds}
    return StepTime(named, model * passes, hardware * passes)


def _forward(recipe: Recipe, config: Mapping[str, Any], size: shapes.Size) -> tuple[float, float]:
    """TFLOP of a micro-batch's forward pass on one of the workers that share it: matrix products, attention."""
    video, text = shapes.clip_tokens(size, config), config["max_text_seq_length"]
    parts = shapes.forward_parts(config, recipe.model.pose_control, video, text)
    mine = recipe.optimization.micro_batch_size / recipe.speed.sequence_parallel
    return parts[0] * mine / 1e12, parts[1] * mine / 1e12


def _again(kept: Kept) -> tuple[float, float]:
    """Share of the forward pass that is computed twice: of products and memory-bound work, of attention."""
    blocks = kept.whole + kept.attention + kept.inputs
    return (blocks - kept.whole) / blocks, kept.inputs / blocks


def _backward_products(recipe: Recipe) -> float:
    """Matrix products of the backward pass for each of the forward's; a LoRA's frozen weights need no gradient."""
    return 1.0 if recipe.lora.lora_rank else 2.0


def _tflop(recipe: Recipe, config: Mapping[str, Any], size: shapes.Size, kept: Kept) -> tuple[float, float]:
    """Of a micro-batch: for the model, and with what is computed twice."""
    (product, attention), again = _forward(recipe, config, size), _again(kept)
    model = product * (1 + _backward_products(recipe)) + attention * 3
    return model, model + product * again[0] + attention * again[1]


def _micro_batch(
    recipe: Recipe, config: Mapping[str, Any], size: shapes.Size, kept: Kept, machine: Machine
) -> dict[str, float]:
    """Seconds of one forward and backward pass on one of the workers that share a clip."""
    gpu, share = machine.gpu, recipe.speed.sequence_parallel
    (product, attention), again = _forward(recipe, config, size), _again(kept)
    kernel = {"auto": "cudnn", "default": "cudnn"}.get(recipe.speed.attention_kernel, recipe.speed.attention_kernel)
    passes = _passes(recipe)
    tokens = shapes.tokens(size, config) * recipe.optimization.micro_batch_size / share
    stream = config["num_layers"] * tokens * shapes.width(config) * 2
    moved = 1 + again[0] + (CHEAP_PASSES * (1 - again[0]) if recipe.speed.recompute != "none" else 0.0)
    rate = gpu.product_tflops * (FLOAT8_SPEEDUP if recipe.speed.float8 else 1.0)
    slow = FLOAT32_SLOWDOWN if recipe.workers.precision == "fp32" else 1.0
    return {
        "matrix products": product * (1 + again[0] + _backward_products(recipe)) / rate * slow,
        "attention": attention * (1 + again[1] + ATTENTION_BACKWARD) / gpu.attention_tflops[kernel] * slow,
        "memory-bound work": stream * (passes[0] * moved + passes[1]) / gpu.bytes_per_second,
        "exchange of tokens": _exchange(stream, share, again[0], machine),
    }


def _passes(recipe: Recipe) -> tuple[float, float]:
    """Forward and backward, with what a second attention or the missing pose stream changes of padaln's."""
    forward, backward = PASSES_COMPILED if is_compiled(recipe) else PASSES_EAGER
    control = recipe.model.pose_control
    if control == "cross_attention":
        return forward * 1.4, backward * 1.4
    return (forward, backward) if control.startswith("padaln") else (forward * 0.9, backward * 0.9)


def _exchange(stream: float, share: int, again: float, machine: Machine) -> float:
    """Queries, keys, values and outputs to the workers that hold their heads; back again in the backward pass."""
    if share == 1:
        return 0.0
    return 4 * stream * (2 + again) * (share - 1) / share / machine.link(share)


def _reduction(
    recipe: Recipe, config: Mapping[str, Any], workers: int, machine: Machine, computing: float
) -> dict[str, float]:
    """Seconds a micro-batch for sending gradients, and weights under ZeRO-3, that computing does not hide."""
    if workers == 1:
        return {}
    trained, weight = shapes.learnt(recipe, config), _weight(recipe)
    others = (workers - 1) / workers
    # DeepSpeed sums each bucket over all workers before it keeps its part: twice a reduce-scatter.
    sent = 2 * trained * weight * others / machine.link(workers)
    parts = {"gradient reduction": max(sent * (1 - HIDDEN_REDUCTION), sent - HIDDEN_REDUCTION * computing)}
    if recipe.workers.zero_stage == 3:
        whole = shapes.transformer_parameters(config, recipe.model.pose_control)
        gathered = 2 * whole * weight * others / machine.link(workers)
        parts["weight gathering"] = max(gathered * (1 - HIDDEN_GATHERING), gathered - HIDDEN_GATHERING * computing)
    return parts


def _optimizer(recipe: Recipe, config: Mapping[str, Any], workers: int, machine: Machine) -> dict[str, float]:
    trained, weight = shapes.learnt(recipe, config), _weight(recipe)
    rate = machine.gpu.bytes_per_second * OPTIMIZER_SHARE
    own = trained / workers
    spread = 0.0
    if workers > 1 and recipe.workers.zero_stage != 3:
        spread = trained * weight * (workers - 1) / workers / machine.link(workers)
    if recipe.workers.offload_optimizer:
        on_host = own * min(workers, GPUS_PER_NODE) * OPTIMIZER_BYTES / HOST_OPTIMIZER_BYTES_PER_SECOND
        return {
            "optimizer": on_host,
            "to the host and back": own * 6 / HOST_LINK_BYTES_PER_SECOND,
            "weight spreading": spread,
        }
    summing = trained * SUMMING_BYTES * recipe.accumulation_of(workers) / machine.gpu.bytes_per_second
    average = own * 14 / rate if recipe.optimization.ema_decay else 0.0
    return {
        "optimizer": own * OPTIMIZER_BYTES / rate,
        "gradient sums": summing,
        "moving average": average,
        "weight spreading": spread,
    }


def _weight(recipe: Recipe) -> int:
    return 2 if recipe.workers.precision == "bf16" else 4


def encode_seconds(recipe: Recipe, size: shapes.Size, machine: Machine) -> float:
    """What the VAE takes for one sample on the training GPU: nothing, the noisy reference, or all of it."""
    picture = size.height * size.width / 1e6
    slower = H200.product_tflops / machine.gpu.product_tflops
    one = picture * ENCODE_FRAME_SECONDS_PER_MEGAPIXEL if recipe.clips.image_noise else 0.0
    if machine.precomputed:
        return one * slower
    clips = 1 if recipe.model.pose_encoding == "expert" else 2
    return (one + clips * picture * size.num_frames * ENCODE_SECONDS_PER_MEGAPIXEL) * slower
