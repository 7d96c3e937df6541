"""The quick look at gradients says what DeepSpeed's own two say."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from training.engine import gradient_norms, parallel
from training.recipes import tiny_on_cpu


class Two(torch.nn.Module):
    """Two layers, so that there are several gradients of several sizes."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(7, 5), torch.nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).tanh()).square().mean()


def engine_of(monkeypatch: pytest.MonkeyPatch, quick: bool) -> Any:
    if not quick:
        monkeypatch.setattr(gradient_norms, "take_at_once", lambda engine: False)
    torch.manual_seed(0)
    recipe = tiny_on_cpu()
    engine = parallel.make_engine(Two(), recipe, parallel.join(recipe))
    monkeypatch.undo()
    return engine


def steps(engine: Any, spoilt: int = -1) -> list[tuple[float, bool]]:
    generator = torch.Generator().manual_seed(1)
    told = []
    for number in range(4):
        x = torch.randn((2, 7), generator=generator)
        for _ in range(engine.gradient_accumulation_steps()):
            engine.backward(engine(x * torch.nan if number == spoilt else x))
            engine.step()
        told.append((float(engine.get_global_grad_norm()), engine.was_step_applied()))
    return told


def test_norms_and_weights_are_those_of_deepspeed(monkeypatch: pytest.MonkeyPatch):
    theirs, ours = engine_of(monkeypatch, quick=False), engine_of(monkeypatch, quick=True)
    for (expected, _), (norm, applied) in zip(steps(theirs), steps(ours), strict=True):
        assert applied
        assert norm == pytest.approx(expected, rel=1e-6)
    for expected, weight in zip(theirs.module.parameters(), ours.module.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=1e-6, atol=1e-8)


def test_a_step_with_a_gradient_that_is_not_finite_is_left_out_and_the_next_is_not(monkeypatch: pytest.MonkeyPatch):
    engine = engine_of(monkeypatch, quick=True)
    assert [applied for _, applied in steps(engine, spoilt=1)] == [True, False, True, True]
    assert engine.skipped_steps == 1
    assert all(weight.isfinite().all() for weight in engine.module.parameters())
