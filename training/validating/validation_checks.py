"""What a run's validation must be, looked at before anything is started."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Collection
from pathlib import Path

from dynamictrl.errors import ConfigError, DatasetError
from training.config import Recipe, Run
from training.planning.shapes import Size, base_config, clip_tokens, forward_flop
from training.validating.validation_sampling import sampled_clips

logger = logging.getLogger(__name__)

CPU_FLOP_PER_SECOND = 1e12
"""What a machine's CPUs sample with at best, in float32; an estimate."""
SHA_IN_KEY = 16
"""Digits at the head of a clip's key that stand for its source, before a dash (as curation names clips)."""


def check(run: Run, trained: Collection[str]) -> None:
    """ConfigError where validation data is missing, no data set, too short, or trained on; where GPUs are lacking.

    `trained` are the keys of the clips that the run trains on.
    Clips of the same source as trained ones are warned of: they measure memory, not skill.
    """
    settings = run.recipe.validation
    if not settings.validate_every:
        return
    data = settings.validation_data
    assert data is not None  # refused at construction
    try:
        _, entries = sampled_clips(run.recipe)
    except DatasetError as problem:
        raise ConfigError(f"validation_data: {problem}", code=problem.code, param="validation_data") from problem
    if len(entries) < settings.validation_clips:
        logger.warning("validation_data has %d clips of the %d wanted", len(entries), settings.validation_clips)
    _check_apart(run, data, {entry.key for entry in entries}, set(trained))
    _check_gpus(run)
    warn_of_cpus(run)


def _check_apart(run: Run, data: Path, keys: set[str], trained: set[str]) -> None:
    shared = sorted(keys & trained)
    if shared or data.resolve() == run.data.resolve():
        raise ConfigError(
            f"validation_data {data} shares clips with the training data {run.data} ({len(shared)}, such as "
            f"{shared[0] if shared else 'all'}); keep other clips for validation",
            code="validation_overlaps",
            param="validation_data",
        )
    sources = {source for key in trained if (source := _source(key))}
    same = sorted(key for key in keys if _source(key) in sources)
    if same:
        logger.warning(
            "%d of %d validation clips are of videos that are trained on (such as %s): they measure what was learnt by "
            "heart; keep whole videos for validation", len(same), len(keys), same[0],
        )  # fmt: skip


def _source(key: str) -> str:
    head, dash, _ = key.partition("-")
    return head if dash and len(head) >= SHA_IN_KEY else ""


def warn_of_cpus(run: Run) -> None:
    """Warns of a base that CPUs do not sample within the patience of the run's end."""
    told = run.recipe.validation
    if told.validation_gpus:
        return
    config, control = base_config(run.recipe.model.base), run.recipe.model.pose_control
    size = Size(*dataclasses.astuple(run.recipe.clips.sizes[0]))
    one = forward_flop(config, control, clip_tokens(size, config), config["max_text_seq_length"])
    passes = told.validation_clips * told.validation_steps * (2 if told.validation_guidance > 1 else 1)
    minutes = one * passes / CPU_FLOP_PER_SECOND / 60
    if minutes > told.validation_wait_minutes:
        logger.warning(
            "a validation on CPUs takes %.0f hours or more here and the run's end waits %.0f minutes for it "
            "(validation_wait_minutes): give --validation-gpus 1, or fewer validation_clips and validation_steps",
            minutes / 60,
            told.validation_wait_minutes,
        )


def workers_here(recipe: Recipe) -> int:
    """How many of this machine's GPUs the workers take: torchrun's on this machine, or one in this very process."""
    if recipe.workers.device != "cuda":
        return 0
    return int(os.environ.get("LOCAL_WORLD_SIZE", max(recipe.workers.num_workers, 1)))


def _check_gpus(run: Run) -> None:
    """On a Ray of our own; on a cluster they may come later."""
    workers, wanted = run.recipe.workers, run.recipe.validation.validation_gpus
    if not wanted or (workers.num_workers and os.environ.get("RAY_ADDRESS")):
        return
    import torch

    taken = workers_here(run.recipe)
    there = torch.cuda.device_count()
    if there < taken + wanted:
        raise ConfigError(
            f"validation_gpus is {wanted:g} beside {taken} workers with one GPU each, and this machine has {there}; "
            "lower --num-workers, or sample on CPUs with --validation-gpus 0",
            code="too_few_gpus",
            param="validation_gpus",
        )
