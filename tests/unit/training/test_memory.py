"""What a worker's memory holds, against what was measured and what DeepSpeed allocates."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dynamictrl.errors import ConfigError
from training.config import Recipe
from training.planning import shapes
from training.planning.memory import GIB, Kept, Memory, _at_fullest, _backward, _Job, kept_blocks, memory
from training.recipes import dynamictrl_5b, dynamictrl_5b_lora, mini

FIVE_B = shapes.KNOWN_BASES["CogVideoX-5b-I2V"]
BLOCKS = 42


def _recipe(workers: int = 1, **speed: object) -> Recipe:
    five = dynamictrl_5b()
    return replace(
        five,
        speed=replace(five.speed, **speed),
        optimization=replace(five.optimization, batch_size=8),
        workers=replace(five.workers, num_workers=workers),
    )


@pytest.mark.parametrize(
    ("tokens", "batch", "compiled", "measured_gib"),
    [
        (17_776, 1, False, 46.3),
        (17_776, 1, True, 45.8),
        (17_776, 2, False, 55.5),
        (17_776, 4, False, 78.3),
        (20_626, 1, False, 46.7),
    ],
)
def test_activations_explain_what_was_measured_with_bf16_states(
    tokens: int, batch: int, compiled: bool, measured_gib: float
):
    # gpu.md, section 5.1: weights, gradients and both moments in bf16, every block computed twice. Before the first
    # gradient come 6 bytes a parameter and all inputs, after the last 8 bytes and one block's tensors.
    job = _Job(_recipe(compile_blocks=compiled), FIVE_B, tokens * batch, workers=1, precomputed=True)
    kept = Kept(0, 0, BLOCKS)
    first = 6 * job.parameters + _activations(job, kept)
    last = 8 * job.parameters + _activations(job, kept, blocks_left=1)

    assert (max(first, last) + 0.5e9) / GIB == pytest.approx(measured_gib, rel=0.02)


def _activations(job: _Job, kept: Kept, blocks_left: int = BLOCKS) -> float:
    rest = replace(job, config=dict(job.config) | {"num_layers": blocks_left})
    return _backward(rest, replace(kept, inputs=blocks_left))["activations"]


def test_the_backward_pass_is_fullest_where_kept_tensors_and_gradients_meet():
    recipe = _recipe(recompute="all")
    one_by_one = replace(recipe, optimization=replace(recipe.optimization, batch_size=1))
    few = memory(one_by_one, FIVE_B, 17_776, 1, Kept(0, 0, BLOCKS), precomputed=True)
    many = memory(one_by_one, FIVE_B, 17_776, 1, Kept(BLOCKS, 0, 0), precomputed=True)

    # Little is kept: the last gradients are the fullest moment; all is kept: the first.
    assert few.device_gb["gradients"] == pytest.approx(23.1, abs=0.1)
    assert many.device_gb["gradients"] < 4
    assert many.device_gb["activations"] == pytest.approx(55, abs=3)


def test_gradients_that_are_summed_are_there_from_the_second_micro_batch_on():
    summed = memory(_recipe(), FIVE_B, 17_776, 1, Kept(BLOCKS, 0, 0), precomputed=True)

    assert summed.device_gb["gradients"] == pytest.approx(4 * 5.769, abs=0.1)


def test_auto_keeps_attention_first_then_whole_blocks_and_never_less_on_a_larger_gpu():
    recipe, found = _recipe(), []
    for gib in (124, 127, 131, 139, 180, 300):
        found.append(kept_blocks(recipe, FIVE_B, 17_776, 1, gib, precomputed=True))

    assert found[0].inputs > 0
    assert found[0].whole == 0
    assert found[-1] == Kept(BLOCKS, 0, 0)
    assert all(kept.whole == 0 or kept.inputs == 0 for kept in found)
    assert found == sorted(found, key=lambda kept: (kept.whole, kept.attention + kept.whole))


def test_auto_leaves_the_reserve_free():
    def held(reserve: float) -> Memory:
        recipe = _recipe(memory_reserve_gib=reserve)
        kept = kept_blocks(recipe, FIVE_B, 17_776, 1, 139, precomputed=True)
        return memory(recipe, FIVE_B, 17_776, 1, kept, precomputed=True)

    assert held(6).total_gb * 1e9 / GIB <= 133
    assert held(16).total_gb * 1e9 / GIB <= 123


@pytest.mark.parametrize(
    ("policy", "kept"), [("all", Kept(0, 0, 42)), ("attention", Kept(0, 42, 0)), ("none", Kept(42, 0, 0))]
)
def test_a_policy_that_was_asked_for_is_kept_to(policy: str, kept: Kept):
    assert kept_blocks(_recipe(recompute=policy), FIVE_B, 17_776, 1, 24) == kept


def test_what_fits_with_no_policy_is_refused_with_its_size():
    with pytest.raises(ConfigError, match=r"needs \d+\.\d GiB .* 24\.0 GiB") as refused:
        kept_blocks(_recipe(), FIVE_B, 17_776, 1, 24, precomputed=True)

    assert refused.value.code == "does_not_fit"


def test_offloaded_states_are_in_host_memory():
    recipe = _recipe()
    there = replace(recipe, workers=replace(recipe.workers, offload_optimizer=True))
    before, after = (memory(r, FIVE_B, 17_776, 1, Kept(0, 0, 42), precomputed=True) for r in (recipe, there))

    assert "optimizer states" in before.device_gb
    assert "optimizer states" not in after.device_gb
    assert after.host_gb["optimizer states"] == pytest.approx(18 * 5.769, rel=0.01)


def test_workers_that_share_a_clip_share_its_tensors_and_not_its_weights():
    alone, shared = (
        memory(_recipe(4, sequence_parallel=n), FIVE_B, 17_776, 4, Kept(42, 0, 0), precomputed=True) for n in (1, 4)
    )

    assert shared.device_gb["weights"] == alone.device_gb["weights"]
    assert shared.device_gb["activations"] == pytest.approx(alone.device_gb["activations"] / 4, rel=0.05)


def test_a_lora_has_gradients_and_states_of_its_adapter_alone():
    recipe = dynamictrl_5b_lora()
    held = memory(recipe, FIVE_B, 17_776, 1, Kept(0, 0, 42), precomputed=True)

    assert held.device_gb["optimizer states"] == pytest.approx(12 * 0.1486, rel=0.01)
    assert held.device_gb["weights"] == pytest.approx(2 * (5.769 + 0.149), rel=0.01)
    assert held.total_gb < 36


def test_precomputed_encodings_leave_the_text_encoder_off_the_device():
    encoded, online = (
        memory(_recipe(), FIVE_B, 17_776, 1, Kept(0, 0, 42), precomputed=is_there) for is_there in (True, False)
    )

    assert encoded.device_gb["frozen encoders"] == pytest.approx(0.43, abs=0.01)
    assert online.device_gb["frozen encoders"] == pytest.approx(0.43 + 9.52, abs=0.05)
    assert online.device_gb["encoding"] > 4 * encoded.device_gb["encoding"]


def test_a_moving_average_is_shared_out_like_the_states():
    recipe = _recipe()
    averaged = replace(recipe, optimization=replace(recipe.optimization, ema_decay=0.999))

    held = memory(averaged, FIVE_B, 17_776, 4, Kept(0, 0, 42), precomputed=True)

    assert held.device_gb["moving average"] == pytest.approx(held.device_gb["optimizer states"] / 3)


def test_parameters_without_a_cuda_context_take_none_of_one():
    job = _Job(mini(), shapes.base_config("mini/dynamictrl"), 1_000, workers=2, precomputed=True)

    assert "context" not in _at_fullest(job, Kept(7, 0, 0)).device_gb


def test_buckets_and_groups_are_those_that_the_engine_is_given():
    from training.engine import parallel
    from training.planning import memory as counted

    assert counted.REDUCE_BUCKET == parallel.REDUCE_BUCKET
    assert counted.GROUP_ELEMENTS == parallel.GROUP_ELEMENTS
