"""One process among many: its device, its place, and the DeepSpeed engine around the transformer.

All that knows DeepSpeed is here and in `checkpoints`. On the CPU it runs over gloo.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from dynamictrl.errors import ConfigError
from training.config import Recipe
from training.engine import gradient_norms, gradient_sums
from training.settings.workers import Workers

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

logger = logging.getLogger(__name__)

REDUCE_BUCKET = 100_000_000
"""Gradient elements that DeepSpeed sends at once: 0.2 GB of bfloat16, with a second such buffer while one is under way.
Well above what saturates NVLink, a fifth of DeepSpeed's default, and larger than any layer of a 5B model."""
GROUP_ELEMENTS = 500_000_000
"""Parameters that the optimizer works on at once. DeepSpeed makes the float32 sum of the gradients (2 GB of it) group
by group as the backward pass reaches one, when the activations of as many blocks are gone, and frees it likewise."""


@dataclass(frozen=True)
class Place:
    """Which worker this process is."""

    rank: int
    size: int
    device: torch.device
    sequence_parallel: int = 1
    """Neighbouring ranks that share one clip."""

    @property
    def data_rank(self) -> int:
        """Which share of the samples this worker takes."""
        return self.rank // self.sequence_parallel

    @property
    def data_size(self) -> int:
        """In how many shares the samples go."""
        return self.size // self.sequence_parallel

    @property
    def is_first(self) -> bool:
        """Whether this worker writes what is written once."""
        return self.rank == 0


def join(recipe: Recipe) -> Place:
    """Makes this process a worker: threads, device, process group (of one, where no launcher has made one)."""
    workers = recipe.workers
    if workers.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda and this machine has no CUDA device; use --device cpu", param="device")
    if workers.device == "cpu":
        # Read by DeepSpeed at import; without it a build machine's CUDA toolkit would mislead it.
        os.environ["DS_ACCELERATOR"] = "cpu"
    if workers.threads_per_worker:
        torch.set_num_threads(workers.threads_per_worker)
    if workers.device == "cuda":
        _let_memory_change_shape()
    if not dist.is_initialized():
        _start_group(workers)
    rank, size = dist.get_rank(), dist.get_world_size()
    os.environ.setdefault("LOCAL_RANK", "0")
    device = torch.device("cpu" if workers.device == "cpu" else f"cuda:{os.environ['LOCAL_RANK']}")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return Place(rank, size, device, recipe.speed.sequence_parallel)


def _let_memory_change_shape() -> None:
    """Gradients come as activations of other sizes go: only pages that are mapped anew can serve both."""
    private: Any = torch._C
    older = "_cuda_cudaCachingAllocator_set_allocator_settings"
    settle = getattr(private, "_accelerator_setAllocatorSettings", None) or getattr(private, older)
    settle("expandable_segments:True")


def _start_group(workers: Workers) -> None:
    backend = "gloo" if workers.device == "cpu" else "nccl"
    if "RANK" in os.environ and "MASTER_ADDR" in os.environ:
        dist.init_process_group(backend, timeout=timedelta(minutes=workers.stall_minutes))
        return
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


def deepspeed_config(recipe: Recipe, workers: int) -> dict[str, Any]:
    """The engine's settings for a recipe on so many workers."""
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": recipe.optimization.micro_batch_size,
        "gradient_accumulation_steps": recipe.accumulation_of(workers),
        "gradient_clipping": recipe.optimization.max_grad_norm,
        "zero_optimization": {
            "stage": recipe.workers.zero_stage,
            # Alone there is nobody to talk to; a stream of its own would only split the allocator's memory.
            "overlap_comm": recipe.workers.device == "cuda" and workers > 1,
            "contiguous_gradients": True,
            "reduce_bucket_size": REDUCE_BUCKET,
            # On stage 2 a bucket is all-reduced either way; this way it is summed up from where it lies, uncopied.
            "reduce_scatter": recipe.workers.zero_stage == 3,
        },
        "steps_per_print": 10**9,
    }
    if recipe.workers.offload_optimizer:
        on_gpu = recipe.workers.device == "cuda"
        config["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": on_gpu}
        # DeepSpeed's own AdamW for hosts has to be compiled; torch's fused one runs there as well.
        config["zero_force_ds_cpu_optimizer"] = False
    if recipe.workers.precision == "bf16":
        config |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    return config


def make_engine(transformer: nn.Module, recipe: Recipe, place: Place) -> DeepSpeedEngine:
    """The transformer as a DeepSpeed engine with AdamW over what learns."""
    import deepspeed

    _quiet_deepspeed()
    learns = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    # ZeRO-3 cuts up what it holds by itself.
    groups = [learns] if recipe.workers.zero_stage == 3 else parameter_groups(learns, GROUP_ELEMENTS)
    optimizer = torch.optim.AdamW(
        [{"params": group} for group in groups],
        lr=recipe.optimization.learning_rate,
        betas=recipe.optimization.betas,
        weight_decay=recipe.optimization.weight_decay,
        fused=recipe.workers.device == "cuda",
    )
    engine, *_ = deepspeed.initialize(
        model=transformer, optimizer=optimizer, config=deepspeed_config(recipe, place.size)
    )
    gradient_norms.take_at_once(engine)
    gradient_sums.write_once(engine)
    gradient_sums.forget_left_out(engine)
    return engine


def parameter_groups(parameters: Sequence[nn.Parameter], elements: int) -> list[list[nn.Parameter]]:
    """The parameters in their order, in groups of at least so many elements.

    A rest of fewer goes with the group before: DeepSpeed cannot take up a group again of which some worker has nothing.
    """
    groups: list[list[nn.Parameter]] = [[]]
    held = 0
    for parameter in parameters:
        if held >= elements:
            groups.append([])
            held = 0
        groups[-1].append(parameter)
        held += parameter.numel()
    if held < elements and len(groups) > 1:
        groups[-2:] = [groups[-2] + groups[-1]]
    return groups


def _quiet_deepspeed() -> None:
    import deepspeed.ops
    from deepspeed.utils import logger as deepspeed_logger

    deepspeed_logger.setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*is deprecated. Please use `torch.distributed", category=FutureWarning)
    # On the CPU this operator would be compiled at every first start (minutes); gloo serves as well. A private
    # table of DeepSpeed 0.19, so its absence changes nothing but that time.
    operators = getattr(deepspeed.ops, "__compatible_ops__", {})
    if "deepspeed_shm_comm" in operators:
        operators["deepspeed_shm_comm"] = False


def set_learning_rate(engine: DeepSpeedEngine, value: float) -> None:
    """For the next optimizer step."""
    assert engine.optimizer is not None
    for group in engine.optimizer.param_groups:
        group["lr"] = value


def gather_weights(engine: DeepSpeedEngine) -> dict[str, torch.Tensor] | None:
    """The whole transformer's weights in host memory on the first worker, None on the others; all must call it."""
    import deepspeed

    whole: dict[str, torch.Tensor] = {}
    first = dist.get_rank() == 0
    for name, parameter in engine.module.named_parameters():
        sharded = [parameter] if hasattr(parameter, "ds_id") else []
        with deepspeed.zero.GatheredParameters(sharded, enabled=bool(sharded)):
            if first:
                whole[name] = parameter.detach().cpu().clone()
    for name, buffer in engine.module.named_buffers():
        if first and name in engine.module.state_dict():
            whole[name] = buffer.detach().cpu().clone()
    return whole if first else None


def device_name(device: torch.device) -> str:
    """The GPU's name, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def peak_memory_gib(device: torch.device) -> float:
    """Most memory held so far: the device's, or on the CPU this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
