"""Memory of one worker by component, at the moment that needs most of it, and how many blocks' tensors it can keep.

Pure arithmetic: what DeepSpeed 0.19.8 allocates and when (`deepspeed/runtime/zero/stage_1_and_2.py`, `stage3.py`,
`bf16_optimizer.py`), and counts of [tokens, width] tensors that a block keeps (`tensor_counts`).
Three moments are compared: the encoding of a clip, the backward pass block by block (kept tensors shrink while
gradients grow), and the optimizer's step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dynamictrl.errors import ConfigError
from training.config import Recipe
from training.planning import shapes
from training.planning.tensor_counts import tensor_counts

GB = 1e9
GIB = 2**30

CUDA_CONTEXT = 1.0e9
"""Bytes outside torch's allocator: the context, cuDNN, NCCL."""
WORKSPACE = 0.5e9
"""Bytes inside it that no component below names: cuBLAS workspaces, the batch, rotary tables (measured 0.46 GiB)."""
FRAGMENTATION = 0.05
"""Share of what comes and goes in a step that the allocator cannot place tightly."""
REDUCE_BUCKET = 100_000_000
"""Gradient elements that DeepSpeed sends at once; `parallel` sets it."""
GROUP_ELEMENTS = 500_000_000
"""Parameters in a group of the optimizer's, which its step works on one after the other; `parallel` makes them."""
LIVE_PARAMETERS = 1_000_000_000
"""Parameters that ZeRO-3 holds gathered at once; its default."""
ENCODE_BYTES_PER_PIXEL = {"frame": 6_200, "clip": 26_900}
"""The VAE's working memory by pixels of a picture; measured untiled at 768x1360: 6.4 and 26.6 GiB with its weights."""

HOST_BYTES = {"cuda": 4e9, "cpu": 1e9}
"""A worker process's own host memory: libraries, and pinned batches beside a GPU."""


@dataclass(frozen=True)
class Kept:
    """Of how many blocks the backward pass finds what; the `whole` blocks are the first, then `attention`'s."""

    whole: int
    """All that the backward pass needs."""
    attention: int
    """The block's inputs and its attention's output."""
    inputs: int
    """The block's inputs alone."""


@dataclass(frozen=True)
class Memory:
    """Of one worker at its fullest moment; sizes are decimal GB, as GPU vendors count."""

    moment: str
    """`encoding`, `backward pass` or `optimizer step`."""
    device_gb: dict[str, float]
    """By component, at that moment."""
    host_gb: dict[str, float]
    """Host memory by component."""
    kept: Kept

    @property
    def total_gb(self) -> float:
        """Of the device."""
        return sum(self.device_gb.values())

    @property
    def allocated_gib(self) -> float:
        """What `torch.cuda.max_memory_allocated` will say."""
        outside = self.device_gb.get("context", 0.0) + self.device_gb["fragmentation"]
        return (self.total_gb - outside) * GB / GIB


@dataclass(frozen=True)
class _Job:
    """A recipe on so many workers, with what its memory follows from."""

    recipe: Recipe
    config: Mapping[str, Any]
    tokens: int
    workers: int
    precomputed: bool

    @property
    def weight(self) -> int:
        return 2 if self.recipe.workers.precision == "bf16" else 4

    @cached_property
    def parameters(self) -> int:
        return shapes.transformer_parameters(self.config, self.recipe.model.pose_control) + self._pose_encoder

    @cached_property
    def trained(self) -> int:
        return shapes.learnt(self.recipe, self.config)

    @property
    def groups(self) -> int:
        """Of the optimizer's parameters; ZeRO-3 cuts up what it holds by itself."""
        return max(1, self.trained // GROUP_ELEMENTS)

    @cached_property
    def frozen(self) -> int:
        return self.parameters if self.recipe.lora.lora_rank else 0

    @property
    def _pose_encoder(self) -> int:
        if self.recipe.model.pose_encoding != "expert":
            return 0
        return shapes.pose_encoder_parameters(self.config["out_channels"])

    @cached_property
    def stream(self) -> float:
        """Bytes of one [tokens, width] tensor on one worker."""
        return self.tokens * shapes.width(self.config) * self.weight / self.recipe.speed.sequence_parallel

    @property
    def blocks(self) -> int:
        return self.config["num_layers"]

    @property
    def accumulates(self) -> bool:
        return self.recipe.accumulation_of(self.workers) > 1


def kept_blocks(
    recipe: Recipe,
    config: Mapping[str, Any],
    tokens: int,
    workers: int,
    gpu_memory_gib: float,
    *,
    precomputed: bool = False,
) -> Kept:
    """How many blocks keep what for the backward pass, by `speed.recompute` and the memory of a GPU.

    `tokens` are those of the largest micro-batch, text included, before workers share them. `precomputed` says that no
    clip is encoded on the device. `auto` first keeps attention outputs, which cost least for the time they save, then
    whole blocks, and leaves `memory_reserve_gib` free. Raises ConfigError where not even the inputs fit.
    """
    job = _Job(recipe, config, tokens, workers, precomputed)
    fixed = {"all": Kept(0, 0, job.blocks), "attention": Kept(0, job.blocks, 0), "none": Kept(job.blocks, 0, 0)}
    fixed["cheap"] = fixed["none"]
    if recipe.speed.recompute != "auto":
        return fixed[recipe.speed.recompute]
    limit = (gpu_memory_gib - recipe.speed.memory_reserve_gib) * GIB / GB

    def fits(kept: Kept) -> bool:
        return _at_fullest(job, kept).total_gb <= limit

    choices = [Kept(0, n, job.blocks - n) for n in range(job.blocks + 1)]
    choices += [Kept(n, job.blocks - n, 0) for n in range(1, job.blocks + 1)]
    if not fits(choices[0]):
        needed = _at_fullest(job, choices[0])
        raise ConfigError(
            f"a worker needs {needed.total_gb * GB / GIB:.1f} GiB in its {needed.moment} even if every block is "
            f"computed twice, and its GPU has {gpu_memory_gib:.1f} GiB of which {recipe.speed.memory_reserve_gib:g} "
            "stay free (--memory-reserve-gib); `python -m training plan RECIPE` shows what would fit",
            code="does_not_fit",
            param="recompute",
        )
    low, high = 0, len(choices) - 1
    while low < high:  # more kept is never less memory
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(choices[middle]) else (low, middle - 1)
    return choices[low]


def memory(
    recipe: Recipe,
    config: Mapping[str, Any],
    tokens: int,
    workers: int,
    kept: Kept,
    *,
    precomputed: bool = False,
) -> Memory:
    """Of one worker that keeps so much; the arguments are `kept_blocks`'s."""
    return _at_fullest(_Job(recipe, config, tokens, workers, precomputed), kept)


def _at_fullest(job: _Job, kept: Kept) -> Memory:
    standing = _standing(job)
    moments = {
        "encoding": _encoding(job),
        "backward pass": _backward(job, kept),
        "optimizer step": _step(job),
    }
    moment = max(moments, key=lambda name: sum(moments[name].values()))
    passing, on_gpu = moments[moment], job.recipe.workers.device == "cuda"
    parts = standing | {
        **passing,
        "workspace": WORKSPACE if on_gpu else 0,
        "context": CUDA_CONTEXT if on_gpu else 0,
        "fragmentation": FRAGMENTATION * sum(passing.values()),
    }
    return Memory(moment, {name: size / GB for name, size in parts.items() if size}, _host(job), kept)


def _standing(job: _Job) -> dict[str, float]:
    """Bytes that are there all the time."""
    workers, trained = job.recipe.workers, job.trained
    gathered = min(LIVE_PARAMETERS, job.parameters) * job.weight if workers.zero_stage == 3 and job.workers > 1 else 0
    weights = (job.frozen + trained) * job.weight
    return {
        "weights": weights / (job.workers if workers.zero_stage == 3 else 1),
        "gathered weights": gathered,
        "optimizer states": 0 if workers.offload_optimizer else 12 * trained / job.workers,
        "moving average": _average(job) if not workers.offload_optimizer else 0,
        "frozen encoders": _encoders(job),
    }


def _average(job: _Job) -> float:
    """Bytes of the moving average, which lies where the master weights lie."""
    return 4 * job.trained / job.workers if job.recipe.optimization.ema_decay else 0


def _encoders(job: _Job) -> float:
    """Bytes of the VAE and the text encoder, where they are on the device."""
    if job.config["text_embed_dim"] != 4096:
        return 0  # a mini's
    needs_vae = job.recipe.clips.image_noise or not job.precomputed
    text = 0 if job.precomputed else shapes.T5_XXL_ENCODER
    return (text + (shapes.COGVIDEOX_VAE if needs_vae else 0)) * job.weight


def _encoding(job: _Job) -> dict[str, float]:
    """While a clip goes through the VAE, between two backward passes."""
    return {"gradients": _gradients(job, 0.0), "encoding": _encoder_activations(job)}


def _encoder_activations(job: _Job) -> float:
    """Bytes that the VAE needs to encode what is not there yet: clips, or the noisy reference alone."""
    clips = job.recipe.clips
    whole, one = not job.precomputed, clips.image_noise or not job.precomputed
    per_pixel = ENCODE_BYTES_PER_PIXEL["clip"] if whole else ENCODE_BYTES_PER_PIXEL["frame"] if one else 0
    if job.config["text_embed_dim"] != 4096:
        per_pixel /= 16  # a mini's VAE
    pixels = max(size.height * size.width for size in shapes.sizes(job.recipe))
    return pixels * per_pixel * job.weight / 2


def sums_in_float32(recipe: Recipe) -> bool:
    """Whether gradients are added up in float32 beside weights in bfloat16."""
    return recipe.workers.precision == "bf16"


def _gradients(job: _Job, done: float) -> float:
    """Bytes of gradients once this share of the blocks has its own; 0.0 is before the backward pass."""
    trained, workers, stage = job.trained, job.workers, job.recipe.workers.zero_stage
    summed = sums_in_float32(job.recipe)
    width = 4 if summed else job.weight
    if stage == 3:
        return 0 if job.recipe.workers.offload_optimizer else width * trained / workers  # allocated at the start
    if stage == 1 and summed and not job.recipe.workers.offload_optimizer:
        # DeepSpeed's bf16 optimizer: on every worker all gradients, and all their float32 sums, all the time.
        return 6 * trained
    own = width * trained / workers
    if not summed and job.recipe.workers.offload_optimizer:
        return 0
    if job.accumulates:  # all from the first micro-batch on; without a sum of its own, the last one's beside
        return own if summed else 2 * own
    if not done:
        return 0
    # A float32 sum is made group by group; the buffer for gradients in the weights' own precision whole.
    return own * math.ceil(done * job.groups) / job.groups if summed else own


def _step(job: _Job) -> dict[str, float]:
    """During the optimizer's step: gradients, and one group's in float32 where they were not."""
    workers = job.recipe.workers
    own = job.trained / job.workers / job.groups
    converts = not sums_in_float32(job.recipe) and not workers.offload_optimizer
    per_element = 4 + (job.weight if job.weight != 4 else 0)
    return {"gradients": _gradients(job, 1.0), "gradients in float32": own * per_element if converts else 0}


def _backward(job: _Job, kept: Kept) -> dict[str, float]:
    """At the block of the backward pass that finds the device fullest."""
    counts = tensor_counts(job.recipe)
    per_block = (
        [counts["whole"]] * kept.whole + [counts["attention"]] * kept.attention + [counts["inputs"]] * kept.inputs
    )
    transient = _buckets(job) + job.trained / job.blocks * job.weight
    best: tuple[float, float] = (0.0, 0.0)
    held = float(sum(per_block))
    for done, own in enumerate(reversed(per_block), start=1):
        live = held - own + max(counts["live"], own)
        gradients = _gradients(job, done / job.blocks)
        best = max(best, (live * job.stream, gradients), key=sum)
        held -= own
    return {
        "gradients": best[1],
        "gradient buckets": transient,
        "activations": best[0],
        "pose encoder": _pose_encoder_activations(job),
        "encoding": _encoder_activations(job) if _reads_ahead(job) else 0,
    }


def _reads_ahead(job: _Job) -> bool:
    """Whether the next micro-batch is made on the device while this one computes."""
    return job.recipe.workers.device == "cuda" and job.recipe.clips.batches_ahead > 0


def _buckets(job: _Job) -> float:
    """Bytes in which gradients are gathered to be sent, two of them so that one fills while the other goes."""
    workers = job.recipe.workers
    if workers.device == "cpu":
        return 0  # reserved by the system only as far as they are written
    if workers.zero_stage == 3:
        return REDUCE_BUCKET * job.weight
    if workers.zero_stage == 1 and sums_in_float32(job.recipe) and not workers.offload_optimizer:
        return REDUCE_BUCKET * 4 if job.workers > 1 else 0
    return (2 if job.workers > 1 else 1) * REDUCE_BUCKET * job.weight


def _pose_encoder_activations(job: _Job) -> float:
    """Bytes that an expert pose encoder keeps: each layer's output before and after its activation."""
    if job.recipe.model.pose_encoding != "expert":
        return 0
    shown = max(size.num_frames * size.height * size.width for size in shapes.sizes(job.recipe))
    pixels = shown * job.recipe.optimization.micro_batch_size
    return 2 * pixels * (32 / 4 + 64 / 16 + 128 / 64) * job.weight


def _host(job: _Job) -> dict[str, float]:
    """Host memory of one worker, GB."""
    workers = job.recipe.workers
    # Master weights, two moments and gradients in float32, and the weights on their way back to the device.
    states = (16 + job.weight) * job.trained / job.workers if workers.offload_optimizer else 0
    loading = job.parameters * job.weight + _encoders_on_disk(job)
    return {
        "optimizer states": states / GB,
        "moving average": (_average(job) if workers.offload_optimizer else 0) / GB,
        "encoding cache": job.recipe.clips.cache_gib * GIB / GB,
        "models in loading": loading / GB,
        "process": HOST_BYTES[workers.device] / GB,
    }


def _encoders_on_disk(job: _Job) -> float:
    is_real = job.config["text_embed_dim"] == 4096
    return (shapes.T5_XXL_ENCODER + shapes.COGVIDEOX_VAE) * job.weight if is_real else 0
