"""Where an engine computes: which device, how much memory it has left, and when that was not enough."""

from __future__ import annotations

import torch

from dynamictrl.errors import ConfigError


def pick(name: str, parallel: int = 1) -> str:
    """ "cpu" or "cuda", for what was asked for; ConfigError for GPUs that are not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device is 'cuda' and torch sees no GPU here; use --device cpu, or a machine with one",
            code="no_gpu",
            param="device",
        )
    if name == "cuda" and torch.cuda.device_count() < parallel:
        raise ConfigError(
            f"parallel is {parallel} and this process sees {torch.cuda.device_count()} GPUs; set gpus_per_engine to "
            f"{parallel}, or lower parallel",
            code="no_gpu",
            param="parallel",
        )
    return name


def model_name(device: str) -> str:
    """What computes there, as a manifest has it."""
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


def free_bytes(device: str) -> int:
    """What this process could still take: free memory, and on a GPU what torch holds without using it."""
    if device == "cuda":
        free, _ = torch.cuda.mem_get_info()
        return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    try:
        with open("/proc/meminfo") as lines:
            facts = dict(line.split(":", 1) for line in lines)
        return int(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return 2**62


def is_out_of_memory(problem: BaseException) -> bool:
    """torch has a class for GPUs alone; the CPU's allocator says it in words."""
    return isinstance(problem, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(problem)
