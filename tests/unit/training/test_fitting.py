"""Which settings are offered where, and which of them comes first."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from dynamictrl.errors import ConfigError
from training.__main__ import main
from training.config import Recipe
from training.planning.fitting import Choice, choices, largest_micro_batch, with_stage
from training.planning.memory import GB, GIB, Kept, kept_blocks, memory
from training.planning.plan import plan
from training.planning.shapes import base_config
from training.planning.timing import Machine
from training.recipes import dynamictrl_5b, mini
from training.settings.hardware import Hardware


def _choices(recipe: Recipe, workers: int, gib: float) -> list[Choice]:
    return choices(recipe, base_config(recipe.model.base), workers, gib, Machine())


def test_all_that_is_offered_fits_and_the_fastest_comes_first():
    found = _choices(dynamictrl_5b(), workers=4, gib=139)

    assert all(choice.memory_gb * GB <= 139 * GIB for choice in found)
    assert found[0].seconds <= 1.02 * min(choice.seconds for choice in found)
    assert found[0].flags == "--zero-stage 2 --micro-batch-size 1"  # of equals the recipe's own


def test_small_gpus_are_offered_what_makes_it_fit():
    found = _choices(dynamictrl_5b(), workers=1, gib=80)

    assert found
    assert all(choice.offload_optimizer for choice in found)
    assert not _choices(dynamictrl_5b(), workers=1, gib=16)


def test_what_is_offered_is_what_the_workers_will_take():
    recipe, config = dynamictrl_5b(), base_config(dynamictrl_5b().model.base)

    tokens = largest_micro_batch(recipe, config)
    least = memory(recipe, config, tokens, 8, Kept(0, 0, config["num_layers"]), precomputed=True).total_gb * GB / GIB

    # The workers leave --memory-reserve-gib free and refuse to start without it: 6 GiB here.
    with pytest.raises(ConfigError, match="stay free"):
        kept_blocks(recipe, config, tokens, 8, least + 5, precomputed=True)
    refused = plan(recipe, gpus=8, gpu_memory_gib=least + 5)
    assert not refused.fits
    assert "of which 6 stay free (--memory-reserve-gib)" in refused.refusal()
    assert all(choice.memory_gb * GB <= (least - 1) * GIB for choice in refused.choices)
    kept_blocks(recipe, config, tokens, 8, least + 7, precomputed=True)
    assert plan(recipe, gpus=8, gpu_memory_gib=least + 7).fits


def test_no_more_workers_share_a_clip_than_the_base_has_heads():
    small = mini()
    on_gpus = replace(
        small,
        optimization=replace(small.optimization, batch_size=8, micro_batch_size=1),
        workers=replace(small.workers, device="cuda", num_workers=8),
    )

    assert {choice.sequence_parallel for choice in _choices(on_gpus, workers=8, gib=80)} == {1, 2}  # of 3 heads


def test_a_stage_that_is_left_open_is_the_fastest_that_fits_and_always_the_same():
    recipe = dynamictrl_5b()
    left_open = replace(recipe, workers=replace(recipe.workers, zero_stage=0))
    config = base_config(recipe.model.base)
    stages = {gib: with_stage(left_open, config, 8, gib, Machine()).workers.zero_stage for gib in (139, 40)}

    assert stages == {139: 2, 40: 3}
    assert with_stage(left_open, config, 8, 139, Machine()) == with_stage(left_open, config, 8, 139, Machine())


def test_a_plan_counts_hours_money_and_disk():
    told = plan(dynamictrl_5b(), Hardware(gpus=8, gpu_hour_price=3.0))
    words = told.text()

    assert told.gpu_hours == told.seconds_per_step * 50_000 * 8 / 3600
    assert f"{told.gpu_hours * 3:,.0f} at 3" in words
    assert told.checkpoint_gb == 5_770_420_864 * 14 / 1e9
    assert told.checkpoints_gb > 3 * told.checkpoint_gb
    assert "at" not in plan(dynamictrl_5b()).text().split("GPU-hours")[1].splitlines()[0]


def test_the_plan_is_told_as_json_too(capsys):
    assert main(["plan", "dynamictrl-2b", "--gpus", "4", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)

    assert told["gpus"] == 4
    assert told["fits"] is True
    assert told["choices"][0]["flags"].startswith("--zero-stage")


def test_a_plan_that_cannot_fit_ends_with_code_2_and_the_flags_that_would(capsys):
    assert main(["plan", "dynamictrl-5b", "--gpus", "1", "--gpu", "h100"]) == 2

    assert "--offload-optimizer True" in capsys.readouterr().err


def test_a_run_on_a_cpu_is_told_of_without_seconds():
    words = plan(mini()).text()

    assert "not estimated" in words
    assert "settings that fit" not in words
