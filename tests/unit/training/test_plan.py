"""The plan's arithmetic against real models, published counts, and what cannot fit."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from dynamictrl.errors import ConfigError, InputError
from training.planning.memory import Kept, memory
from training.planning.plan import plan
from training.planning.shapes import KNOWN_BASES, base_config, control_parameters, forward_flop, transformer_parameters
from training.recipes import dynamictrl_2b, dynamictrl_5b, mini


@pytest.mark.parametrize(
    "pose_control", ["padaln", "padaln_residual", "cross_attention", "unified_tokens", "direct_addition"]
)
@pytest.mark.parametrize("base", ["1.0", "1.5"])
def test_the_parameter_count_is_the_real_models(base: str, pose_control: str):
    from dynamictrl.mini.tiny import tiny_transformer

    model = tiny_transformer(base, pose_control)  # pyright: ignore[reportArgumentType]

    assert transformer_parameters(model.config, pose_control) == sum(p.numel() for p in model.parameters())


def test_an_expert_pose_encoder_is_counted():
    from dynamictrl.pose_encoder import PoseEncoder
    from training.planning.shapes import pose_encoder_parameters

    assert pose_encoder_parameters(16) == sum(p.numel() for p in PoseEncoder().parameters())
    shared = dynamictrl_5b()
    expert = replace(shared, model=replace(shared.model, pose_encoding="expert"))
    # 37 frames of 768x1360 in bf16, three layers: about two gigabytes.
    assert plan(expert).memory_gb["pose encoder"] == pytest.approx(2 * 37 * 768 * 1360 * 14 * 2 / 1e9, rel=0.02)
    assert "pose encoder" not in plan(shared).memory_gb


def test_the_published_models_have_their_published_sizes():
    five = plan(dynamictrl_5b())
    two = plan(dynamictrl_2b())

    assert (five.parameters, five.pose_parameters, five.tokens) == (5_770_420_864, 198_825_984, 20_626)
    assert (two.parameters, two.pose_parameters, two.tokens) == (1_782_668_352, 88_761_600, 17_776)
    assert five.forward_tflop == pytest.approx(416, rel=0.01)
    assert two.forward_tflop == pytest.approx(120, rel=0.01)


def test_zero_stages_divide_the_states_over_the_gpus():
    recipe, held = dynamictrl_5b(), {}
    config = base_config(recipe.model.base)
    for stage in (1, 2, 3):
        staged = replace(recipe, workers=replace(recipe.workers, zero_stage=stage))
        held[stage] = memory(staged, config, tokens=0, workers=4, kept=Kept(0, 0, 42), precomputed=True).device_gb

    # 40.4, 31.7 and 23.1 GB in all where gradients take 2 bytes (training.md, section 2); here they are summed in
    # float32, and on stage 1 DeepSpeed keeps both on every GPU.
    fixed = {stage: parts["weights"] + parts["optimizer states"] for stage, parts in held.items()}
    assert fixed == pytest.approx({1: 40.4 - 11.5, 2: 31.7 - 2.9, 3: 23.1 - 2.9}, abs=0.1)
    assert [held[stage]["gradients"] for stage in (1, 2, 3)] == pytest.approx([34.6, 5.8, 5.8], abs=0.1)


def test_what_cannot_fit_is_refused_with_settings_that_would():
    result = plan(dynamictrl_5b(), gpus=1, gpu_memory_gib=80)

    assert not result.fits
    assert "80.0 GiB" in result.refusal()
    assert "--zero-stage 2 --offload-optimizer True" in result.refusal()


def test_where_no_setting_fits_more_or_larger_gpus_are_named():
    refusal = plan(dynamictrl_5b(), gpus=1, gpu_memory_gib=24).refusal()

    assert "GPUs with --zero-stage 3" in refusal
    assert "(h100)" in refusal or "(h20)" in refusal or "(a100)" in refusal


def test_more_gpus_than_the_batch_shares_are_named_with_a_batch_that_they_do():
    five = dynamictrl_5b()
    alone = replace(
        five,
        optimization=replace(five.optimization, batch_size=1),
        workers=replace(five.workers, num_workers=1),
    )
    refusal = plan(alone, gpu_memory_gib=24).refusal()

    assert re.search(r"(\d+) GPUs with .* --batch-size \1;", refusal)
    assert "--batch-size" not in plan(five, gpus=1, gpu_memory_gib=24).refusal()


def test_cross_attention_costs_more_than_a_norm():
    config = KNOWN_BASES["CogVideoX-5b"]

    assert control_parameters(config, "cross_attention") > 5 * control_parameters(config, "padaln")
    assert forward_flop(config, "cross_attention", 1000, 226) > forward_flop(config, "padaln", 1000, 226)


def test_a_folder_is_planned_from_its_own_config(tiny_model: Path):
    recipe = mini()
    result = plan(replace(recipe, model=replace(recipe.model, base=str(tiny_model))))
    config = json.loads((tiny_model / "transformer" / "config.json").read_text())

    assert result.parameters == transformer_parameters(config, "padaln")
    assert result.fits


def test_an_unknown_base_is_refused_with_those_known():
    with pytest.raises(ConfigError, match="CogVideoX-2b"):
        base_config("somebody/else")


def test_an_illegal_size_is_refused_with_the_nearest_legal_one():
    recipe = dynamictrl_5b()
    with pytest.raises(InputError, match="768x992"):
        plan(replace(recipe, clips=replace(recipe.clips, height=1000)))
