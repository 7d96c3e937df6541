"""Makes a step fast without changing what it computes: what is recomputed, compiled, and which attention runs.

`prepare` is called once, before DeepSpeed takes the transformer. All it does it does in place: the transformer's class,
parameters and state-dict keys stay what they were, for checkpoints, adapters and exports.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from dynamictrl.acceleration import attention_kernels
from dynamictrl.acceleration.attention_kernels import Choice
from dynamictrl.acceleration.compilation import compile_blocks
from dynamictrl.recomputation import Recompute
from training.config import Recipe
from training.engine import float8, sequence_groups
from training.engine.parallel import Place
from training.planning import memory, shapes
from training.planning.memory import Kept
from training.planning.tensor_counts import is_compiled

logger = logging.getLogger(__name__)


def prepare(transformer: nn.Module, recipe: Recipe, place: Place, *, precomputed: bool = False) -> None:
    """Applies the recipe's `speed`; `precomputed` says that no clip is encoded on the device.

    Raises ConfigError where the device's memory cannot hold the run even with all blocks computed twice, and where
    float8 is asked of what cannot do it.
    """
    config: Mapping[str, Any] = transformer.config  # pyright: ignore[reportAssignmentType]
    if recipe.speed.deterministic:
        make_deterministic()
    sequence_groups.share(transformer, place, recipe.workers.stall_minutes)
    _choose_attention(transformer, recipe, place)
    whole = "none" if recipe.speed.recompute == "none" or place.device.type != "cuda" else "cheap"
    set_recomputation(transformer, kept(recipe, config, place, precomputed=precomputed), whole)
    if recipe.speed.float8:
        float8.convert(transformer, place.device)
    if compiles(recipe):
        compile_blocks(transformer)


def make_deterministic() -> None:
    """The same bits from the same inputs on the same GPUs, for a few percent of speed.

    cuBLAS gets a fixed workspace, cuDNN's and torch's kernels that add in no fixed order are passed over. Attention's
    backward pass too has deterministic kernels (FlashAttention and cuDNN take slower ones); where there is none torch
    warns and goes on, as a run must not stop for it.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first CUDA matmul is done
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    # Memory that nobody reads before it is written needs no filling.
    torch.utils.deterministic.fill_uninitialized_memory = False


def _choose_attention(transformer: nn.Module, recipe: Recipe, place: Place) -> None:
    kernel = recipe.speed.attention_kernel
    config: Mapping[str, Any] = transformer.config  # pyright: ignore[reportAssignmentType]
    if place.device.type != "cuda" or kernel == "default":
        return
    heads = -(-config["num_attention_heads"] // recipe.speed.sequence_parallel)  # a rank has all tokens of some heads
    micro = recipe.optimization.micro_batch_size
    shape = (micro, heads, tokens(recipe, config) // micro, config["attention_head_dim"])
    tried = ("cudnn", "flash", "efficient") if kernel == "auto" else (kernel,)
    best = _of_first_worker(attention_kernels.choose(shape, place.device, _dtype(recipe), tried), place)
    if best is None and kernel != "auto":
        best = Choice(kernel, heads_first=False)  # not to be timed at this size, as `math` is not, but asked for
    if best is None:
        return
    attention_kernels.use(transformer, best)


def _of_first_worker(choice: Choice | None, place: Place) -> Choice | None:
    """One choice for all workers: timings differ, and ranks that compute otherwise would train another model."""
    if place.size == 1:
        return choice
    shared = [choice]
    torch.distributed.broadcast_object_list(shared, src=0, device=place.device)
    return shared[0]


def _dtype(recipe: Recipe) -> torch.dtype:
    return torch.bfloat16 if recipe.workers.precision == "bf16" else torch.float32


def tokens(recipe: Recipe, config: Mapping[str, Any]) -> int:
    """Of the largest micro-batch, text included, before workers share a clip."""
    clip = shapes.video_tokens(recipe, config) + config["max_text_seq_length"]
    return recipe.optimization.micro_batch_size * clip


def kept(recipe: Recipe, config: Mapping[str, Any], place: Place, *, precomputed: bool = False) -> Kept:
    """How many blocks keep what for the backward pass; on the CPU `auto` keeps all."""
    blocks = config["num_layers"]
    if place.device.type != "cuda":
        forced = {"all": Kept(0, 0, blocks), "attention": Kept(0, blocks, 0)}
        return forced.get(recipe.speed.recompute, Kept(blocks, 0, 0))
    gib = torch.cuda.get_device_properties(place.device).total_memory / 2**30
    found = memory.kept_blocks(recipe, config, tokens(recipe, config), place.size, gib, precomputed=precomputed)
    logger.info(
        "of %d blocks the backward pass finds all of %d, the attention of %d, the inputs alone of %d",
        blocks,
        found.whole,
        found.attention,
        found.inputs,
    )
    return found


def set_recomputation(transformer: nn.Module, kept: Kept, whole: Recompute = "none") -> None:
    """Tells each block what its backward pass computes anew: `whole` of the first, then `attention`, then `all`."""
    counts: dict[Recompute, int] = {whole: kept.whole, "attention": kept.attention, "all": kept.inputs}
    plans = [plan for plan, count in counts.items() for _ in range(count)]
    for block, plan in zip(_blocks(transformer), plans, strict=True):
        block.recompute = plan


def _blocks(transformer: nn.Module) -> list[Any]:
    return list(transformer.transformer_blocks)  # pyright: ignore[reportArgumentType]


def compiles(recipe: Recipe) -> bool:
    """Whether blocks are compiled: on CUDA, and not under ZeRO-3, whose hooks gather each layer's weights in Python."""
    if is_compiled(recipe):
        return True
    if recipe.speed.compile_blocks and recipe.workers.device == "cuda":
        logger.warning(
            "blocks are not compiled with zero_stage 3: its hooks would break every graph at every layer and the gain "
            "is gone. A step takes about a fifth longer than with zero_stage 2, where that fits (`python -m training "
            "plan RECIPE --zero-stage 2`)"
        )
    return False
