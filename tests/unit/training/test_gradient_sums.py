"""The sums that a step's gradients go into."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest
import torch

from training.engine import parallel
from training.recipes import tiny_on_cpu


@pytest.mark.parametrize("zero_stage", [1, 2])
@pytest.mark.parametrize("offload", [False, True])
def test_a_step_that_was_left_out_leaves_nothing_in_the_sums_of_the_next(offload: bool, zero_stage: Literal[1, 2]):
    small = tiny_on_cpu()
    recipe = replace(
        small,
        optimization=replace(small.optimization, batch_size=2, micro_batch_size=1),
        workers=replace(small.workers, precision="bf16", offload_optimizer=offload, zero_stage=zero_stage),
    )
    torch.manual_seed(0)
    engine: Any = parallel.make_engine(torch.nn.Linear(7, 5).bfloat16(), recipe, parallel.join(recipe))

    applied = []
    for value in (1.0, torch.nan, 1.0):
        for _ in range(2):
            engine.backward(engine(torch.full((1, 7), value, dtype=torch.bfloat16)).float().square().mean())
            engine.step()
        applied.append(engine.was_step_applied())
    assert applied == [True, False, True]
