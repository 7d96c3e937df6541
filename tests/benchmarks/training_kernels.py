"""Where a training step's time goes on the device, by kind of kernel: what `training_speed --profile` prints."""

from __future__ import annotations

import re
import sys
import time
from typing import Any

KINDS: dict[str, str] = {
    "compiled elementwise": r"^triton_(?!tem)",  # their names tell what they were fused from, attention too
    "attention": r"cudnn.*sdpa|sdpa|flash|fmha|attention|mha|^_attend",
    "GEMM": r"gemm|cutlass.*(_tn|_nt|_nn)|nvjet|cublas|sm90_xmma|wgmma|matmul|addmm",
    "communication": r"nccl",
    "optimizer": r"adam|FusedAdam|multi_tensor|foreach",
    "copies": r"memcpy|memset|copy|CatArray",
    "sums and norms": r"reduce_kernel|norm",
    "other elementwise": r"elementwise|vectorized",
}
"""Kernel groups of the profile, by their names; the first that matches counts."""


def kernel_times(trainer: Any, device: str, number: int) -> dict[str, Any]:
    """Milliseconds of two steps of a Trainer by group of kernels, and the longest kernels."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CUDA] if device == "cuda" else [ProfilerActivity.CPU]
    started = time.perf_counter()
    with profile(activities=activities) as profiler:
        for extra in range(2):
            trainer.step(number + extra)
        if device == "cuda":
            torch.cuda.synchronize()
    wall = 1e3 * (time.perf_counter() - started)
    kernels = []
    for event in profiler.key_averages():
        spent = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
        if spent > 0:
            kernels.append((event.key, spent / 1e3, event.count))
    kernels.sort(key=lambda kernel: -kernel[1])
    groups = dict.fromkeys([*KINDS, "other"], 0.0)
    for name, spent, _ in kernels:
        groups[group_of(name)] += spent
    return {"wall_ms": wall, "groups_ms": groups, "longest": kernels[:45]}


def group_of(name: str) -> str:
    """Which of KINDS a kernel is, or `other`."""
    return next((kind for kind, words in KINDS.items() if re.search(words, name, re.IGNORECASE)), "other")


def print_kernel_times(found: dict[str, Any]) -> None:
    """As a table of one step."""
    total = sum(found["groups_ms"].values())
    print(f"  two steps under the profiler: {found['wall_ms']:.0f} ms, kernels {total:.0f} ms; of one step:")
    for name, spent in sorted(found["groups_ms"].items(), key=lambda entry: -entry[1]):
        print(f"    {name:<22}{spent / 2:>9.1f} ms {100 * spent / max(total, 1e-9):>6.1f} %")
    for name, spent, count in found["longest"]:
        print(f"      {spent / 2:>8.2f} ms {count / 2:>7.1f} x  {name[:150]}")
    sys.stdout.flush()
