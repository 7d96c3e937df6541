"""The seconds that are told of a step, against steps that were measured on an H200."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dynamictrl.errors import ConfigError
from training.config import Recipe
from training.planning import shapes
from training.planning.memory import Kept
from training.planning.plan import plan, predicted
from training.planning.shapes import Size
from training.planning.timing import GPUS, Machine, StepTime, gpu_named, step_time
from training.recipes import dynamictrl_5b

FIVE_B, ONE_FIVE = (shapes.KNOWN_BASES[name] for name in ("CogVideoX-5b-I2V", "CogVideoX1.5-5B-I2V"))
SMALL, LARGE = Size(49, 480, 720), Size(37, 1360, 768)
ALL, ATTENTION, NONE = Kept(0, 0, 42), Kept(0, 42, 0), Kept(42, 0, 0)


def _recipe(workers: int = 1, batch_size: int = 1, **speed: object) -> Recipe:
    five = dynamictrl_5b()
    return replace(
        five,
        clips=replace(five.clips, image_noise=False),
        speed=replace(five.speed, **speed),
        optimization=replace(five.optimization, batch_size=batch_size),
        workers=replace(five.workers, num_workers=workers),
    )


def _seconds(recipe: Recipe, config: dict, size: Size, kept: Kept, workers: int = 1) -> StepTime:
    return step_time(recipe, config, size, workers, kept, Machine())


@pytest.mark.parametrize(
    ("config", "size", "batch", "compiled", "measured"),
    [
        (FIVE_B, SMALL, 1, False, 3.663),
        (FIVE_B, SMALL, 1, True, 3.018),
        (FIVE_B, SMALL, 2, False, 7.381),
        (FIVE_B, SMALL, 4, False, 14.783),
        (ONE_FIVE, LARGE, 1, False, 4.564),
    ],
)
def test_steps_take_what_they_were_measured_to_take(
    config: dict, size: Size, batch: int, compiled: bool, measured: float
):
    # gpu.md, section 5.1: every block computed twice, AdamW on bf16 states in 0.030 s.
    recipe = _recipe(batch_size=batch, compile_blocks=compiled)
    recipe = replace(recipe, optimization=replace(recipe.optimization, micro_batch_size=batch))
    parts = _seconds(recipe, config, size, ALL).parts
    computing = sum(seconds for name, seconds in parts.items() if name not in ("optimizer", "gradient sums"))

    assert computing + 0.030 == pytest.approx(measured, rel=0.05)
    # With float32 states it takes longer, within what is allowed of a plan.
    assert sum(parts.values()) == pytest.approx(measured, rel=0.10)


def test_keeping_more_saves_what_the_floors_say():
    whole, attention, inputs = (_seconds(_recipe(), FIVE_B, SMALL, kept).seconds for kept in (NONE, ATTENTION, ALL))

    assert inputs - attention == pytest.approx(0.40, abs=0.05)  # gpu.md: about 0.4 s computed from the profile
    assert 1.99 < whole < attention  # 1.99 s is the floor of cuDNN attention, matrix products and optimizer


def test_the_flash_kernel_is_slower_than_cudnn_by_what_was_measured():
    cudnn, flash = (
        _seconds(_recipe(attention_kernel=kernel), FIVE_B, SMALL, ALL).parts["attention"]
        for kernel in ("cudnn", "flash")
    )

    assert flash / cudnn == pytest.approx(47.7 / 31.0, rel=0.1)


def test_model_flops_are_three_forward_passes_and_what_is_computed_twice_comes_on_top():
    time = _seconds(_recipe(), FIVE_B, SMALL, ALL)

    assert time.model_tflop == pytest.approx(997, rel=0.01)
    assert time.hardware_tflop == pytest.approx(997 * 4 / 3, rel=0.01)


def test_eight_gpus_share_a_batch_with_little_loss():
    alone = _seconds(_recipe(), FIVE_B, SMALL, ATTENTION).seconds
    together = _seconds(_recipe(workers=8, batch_size=8), FIVE_B, SMALL, ATTENTION, workers=8).seconds

    assert 0.93 < alone / together < 1.05


def test_workers_that_share_a_clip_take_longer_than_their_share():
    alone = _seconds(_recipe(), ONE_FIVE, LARGE, ATTENTION).seconds
    recipe = _recipe(workers=4, sequence_parallel=4)
    shared = _seconds(recipe, ONE_FIVE, LARGE, ATTENTION, workers=4)

    assert alone / 4 < shared.seconds < alone / 2
    assert shared.parts["exchange of tokens"] > 0


def test_clips_that_are_encoded_while_training_cost_what_the_vae_was_measured_to_take():
    online = step_time(_recipe(), FIVE_B, SMALL, 1, ALL, Machine(precomputed=False)).parts["encoding"]

    assert online == pytest.approx(2 * 1.06, rel=0.02)


def test_other_gpus_are_scaled_and_say_so():
    recipe = _recipe()
    steps = {name: step_time(recipe, FIVE_B, SMALL, 1, ALL, Machine(gpu)).seconds for name, gpu in GPUS.items()}

    assert steps["b200"] < steps["h200"] < steps["h100"] < steps["a100"] < steps["h20"]
    assert [name for name, gpu in GPUS.items() if gpu.is_measured] == ["h200"]
    with pytest.raises(ConfigError, match="h200, h100"):
        gpu_named("rtx")


def test_a_prediction_for_a_benchmark_is_the_plans():
    recipe = _recipe()
    told = plan(recipe, gpus=1)
    seconds, peak = predicted(recipe, shapes.base_config(recipe.model.base))

    assert seconds == pytest.approx(told.seconds_per_step)
    assert peak == pytest.approx(told.memory.allocated_gib)
    assert peak < told.total_gb * 1e9 / 2**30


def test_buckets_decide_memory_by_the_largest_and_time_by_their_mean():
    recipe = _recipe()
    both = replace(recipe, clips=replace(recipe.clips, buckets=("37x1360x768", "25x480x720")))
    large = replace(recipe, clips=replace(recipe.clips, buckets=("37x1360x768",)))
    small = replace(recipe, clips=replace(recipe.clips, buckets=("25x480x720",)))
    mixed, one, other = (plan(each, gpus=1) for each in (both, large, small))

    assert mixed.tokens == one.tokens
    assert mixed.total_gb == pytest.approx(one.total_gb)
    assert other.seconds_per_step < mixed.seconds_per_step < one.seconds_per_step
