"""Refuses a run that cannot fit where it is to train, before a cluster or GPU is touched; decides what it left open."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

from dynamictrl.errors import ConfigError
from training.checkpoints import on_disk
from training.config import Recipe, Run
from training.planning import fitting
from training.planning.memory import GB
from training.planning.plan import checkpoint_bytes, model_bytes, plan
from training.planning.shapes import base_config
from training.planning.timing import Machine
from training.run_folder import RunFolder
from training.settings.hardware import Hardware

logger = logging.getLogger(__name__)

CPU_STAGE = 2
"""ZeRO stage of a run on CPUs that leaves it open."""
HOST_SHARE = 0.9
"""Of a machine's memory that a run may count on."""


def settled(run: Run, *, precomputed: bool) -> Run:
    """The run with its ZeRO stage: the one its checkpoints have, else the fastest that fits into the GPUs there are.

    Raises ConfigError where that needs a GPU's memory and nobody says how much there is.
    """
    recipe = run.recipe
    if recipe.workers.zero_stage:
        return run
    written = on_disk.newest(RunFolder(run.out).checkpoints)
    if written is not None:
        return replace(run, recipe=_with_stage(recipe, written.zero_stage))
    if recipe.workers.device == "cpu":
        return replace(run, recipe=_with_stage(recipe, CPU_STAGE))
    memory_gib = gpu_memory_gib(recipe)
    if memory_gib is None:
        raise ConfigError(
            "zero_stage 0 takes what fits, and the workers' GPUs are not this machine's: say with --gpu-memory-gib how "
            "much memory one has, or name a --zero-stage",
            code="gpu_unknown",
            param="gpu_memory_gib",
        )
    chosen = fitting.with_stage(
        recipe, base_config(recipe.model.base), _workers(recipe), memory_gib, Machine(precomputed=precomputed)
    )
    logger.info("zero_stage %d is the fastest that fits into %.0f GiB", chosen.workers.zero_stage, memory_gib)
    return replace(run, recipe=chosen)


def admit(run: Run, *, precomputed: bool) -> None:
    """Raises ConfigError where the GPUs, this machine's memory or the run folder's disk cannot hold the run."""
    config = base_config(run.recipe.model.base)
    check_disk(run.recipe, config, run.out, _free_bytes(run.out))
    if run.recipe.workers.offload_optimizer and trains_here(run.recipe):
        check_host(run.recipe, config, host_bytes())
    if run.recipe.workers.device == "cpu":
        return
    memory_gib = gpu_memory_gib(run.recipe)
    if memory_gib is None:
        logger.info(
            "the workers' GPUs are not this machine's: --gpu-memory-gib would have it checked that the run fits"
        )
        return
    check_device(run.recipe, memory_gib, precomputed=precomputed)


def trains_here(recipe: Recipe) -> bool:
    """Whether the workers are this machine's: no cluster is named, or none is used."""
    return not os.environ.get("RAY_ADDRESS") or recipe.workers.num_workers == 0


def gpu_memory_gib(recipe: Recipe) -> float | None:
    """Of the smallest GPU that may become a worker's; None where that cannot be known here."""
    if recipe.workers.gpu_memory_gib:
        return recipe.workers.gpu_memory_gib
    return min(local_gpus_gib(), default=None) if trains_here(recipe) else None


def local_gpus_gib() -> list[float]:
    """This machine's GPUs, GiB each, as the driver's own tool tells; asking CUDA would take memory of each."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
        return [float(line) / 1024 for line in told.split()]
    except (OSError, ValueError, subprocess.SubprocessError):
        return []


def host_bytes() -> int:
    """This machine's memory, or what a container may use of it."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(whole, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):
        return whole


def check_device(recipe: Recipe, memory_gib: float, *, precomputed: bool) -> None:
    """Refuses what a GPU of so much memory cannot hold; the message names settings that would fit."""
    told = plan(recipe, Hardware(precomputed=precomputed), gpu_memory_gib=memory_gib)
    if not told.fits:
        raise ConfigError(told.refusal(), code="does_not_fit", param="zero_stage")
    fewest = recipe.workers.min_workers
    if fewest and not plan(recipe, Hardware(precomputed=precomputed), gpus=fewest, gpu_memory_gib=memory_gib).fits:
        logger.warning("the run fits on %d workers and not on min_workers %d", recipe.workers.num_workers, fewest)


def check_host(recipe: Recipe, config: Mapping[str, Any], available: int) -> None:
    """Refuses offloaded states that this machine's memory cannot hold beside its workers."""
    held = fitting.hold(recipe, config, _workers(recipe), 1e6, Machine()).host_gb
    workers = int(os.environ.get("LOCAL_WORLD_SIZE", _workers(recipe)))  # torchrun's on this machine, of several
    needed = workers * (held["optimizer states"] + held["moving average"] + held["process"])
    if needed * GB > HOST_SHARE * available:
        raise ConfigError(
            f"offload_optimizer puts {needed:.0f} GB of optimizer states and workers into this machine's memory of "
            f"{available / GB:.0f} GB; use more GPUs without it, a --lora-rank, or a machine with more memory",
            code="does_not_fit",
            param="offload_optimizer",
        )
    if (needed + workers * held["encoding cache"]) * GB > HOST_SHARE * available:
        logger.warning(
            "the workers' caches may grow to %.0f GB each and this machine has %.0f GB; lower --cache-gib",
            held["encoding cache"],
            available / GB,
        )


def check_disk(recipe: Recipe, config: Mapping[str, Any], folder: Path, free: int) -> None:
    """Refuses a disk that cannot hold two checkpoints or the model; warns where not all that are kept will fit.

    `free` are bytes; what `folder` already holds of checkpoints counts as free, as new ones take their place.
    """
    one, model = checkpoint_bytes(recipe, config), model_bytes(recipe, config)
    room = free + sum(
        path.stat().st_size for path in RunFolder(folder).checkpoints.glob("step-*/**/*") if path.is_file()
    )
    if room < max(2 * one, one + model):
        raise ConfigError(
            f"{folder} has {room / GB:.1f} GB free, and this run needs {2 * one / GB:.1f} GB for a checkpoint and the "
            f"one before it, or {(one + model) / GB:.1f} with the model; free some, or choose an --out elsewhere",
            code="disk_full",
            param="out",
        )
    kept = recipe.checkpoints.keep_checkpoints + 1
    if room < kept * one + model:
        logger.warning(
            "%s has %.1f GB free; %d checkpoints and the model take %.1f GB: lower --keep-checkpoints",
            folder,
            room / GB,
            kept,
            (kept * one + model) / GB,
        )


def _free_bytes(folder: Path) -> int:
    """Of the disk that a folder is on, or will be."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def _workers(recipe: Recipe) -> int:
    return max(recipe.workers.num_workers, 1)


def _with_stage(recipe: Recipe, stage: int) -> Recipe:
    return replace(recipe, workers=replace(recipe.workers, zero_stage=cast("Literal[1, 2, 3]", stage)))
