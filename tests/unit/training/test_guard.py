"""The guard around real engines of one linear layer: what is left out, told of, and what ends a run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from dynamictrl.errors import ConfigError, DynamiCtrlError
from training.callbacks.metrics_file import MetricsFile, read_lines
from training.config import Recipe
from training.engine import parallel, step
from training.recipes import tiny_on_cpu
from training.settings.watch import Watch
from training.watching.guard import Guard

Precision = Literal["fp32", "bf16"]
ZERO_STAGES: tuple[Literal[1, 2, 3], ...] = (1, 2, 3)


class Learner:
    """A layer in its engine under its guard; a step is given one input."""

    def __init__(self, folder: Path, watch: Watch, precision: Precision = "fp32", stage: Literal[1, 2, 3] = 2):
        small = tiny_on_cpu()
        self.recipe: Recipe = replace(
            small,
            optimization=replace(small.optimization, batch_size=1, learning_rate=0.01),
            workers=replace(small.workers, precision=precision, zero_stage=stage),
            watch=watch,
        )
        place = parallel.join(self.recipe)
        torch.manual_seed(0)
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.engine = parallel.make_engine(nn.Linear(8, 8).to(self.dtype), self.recipe, place)
        self.guard = Guard(watch, place, folder, self.engine)
        self.done = 0

    def weights(self) -> Tensor:
        gathered = parallel.gather_weights(self.engine)
        assert gathered is not None
        return torch.cat([value.flatten() for value in gathered.values()])

    def step(self, factor: float, loss_factor: float = 1.0) -> dict[str, float]:
        torch.manual_seed(self.done)
        inputs = (torch.randn(4, 8) * factor).to(self.dtype)
        loss = self.engine(inputs).float().square().mean() * loss_factor
        step.backward(self.engine, loss)
        self.engine.step()
        self.done += 1
        norm = float(self.engine.get_global_grad_norm() or 0.0)
        metrics = {"loss": float(loss.detach()), "grad_norm": norm if math.isfinite(norm) else math.nan}
        return metrics | self.guard.judge(self.done, metrics, self._shown)

    def _shown(self) -> Sequence[dict[str, Any]]:
        return [{"key": f"clip{self.done:04d}", "position": self.done - 1, "loss": math.nan}]


@pytest.mark.parametrize("stage", ZERO_STAGES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_with_gradients_that_are_not_finite_changes_nothing_and_is_told_of(
    tmp_path: Path, precision: Precision, stage: Literal[1, 2, 3]
):
    learner = Learner(tmp_path, Watch(), precision, stage)
    learner.step(1.0)
    assert learner.guard.applied
    before = learner.weights()
    metrics = learner.step(math.nan)

    assert not learner.guard.applied
    assert not learner.guard.allows_checkpoint
    assert metrics["skipped_steps"] == 1
    assert torch.equal(learner.weights(), before)
    [told] = [json.loads(line) for line in (tmp_path / "skipped_steps.jsonl").read_text().splitlines()]
    assert (told["step"], told["reason"], told["applied"], told["loss"]) == (2, "not_finite", False, None)
    assert told["samples"] == [{"key": "clip0002", "position": 1, "loss": None}]

    assert learner.step(1.0)["skipped_steps"] == 1
    assert learner.guard.allows_checkpoint
    assert not torch.equal(learner.weights(), before)


def test_a_loss_that_is_not_finite_is_left_out_though_its_gradients_are_finite(tmp_path: Path):
    class Endless(torch.autograd.Function):
        """Gives infinity with the gradient of nothing."""

        @staticmethod
        def forward(ctx: Any, value: Tensor) -> Tensor:  # noqa: ANN401
            return value + math.inf

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:  # noqa: ANN401
            return grads[0]

    learner = Learner(tmp_path, Watch())
    before = learner.weights()
    loss = Endless.apply(learner.engine(torch.ones(1, 8)).square().mean())
    assert isinstance(loss, Tensor)
    step.backward(learner.engine, loss)
    learner.engine.step()

    assert not learner.guard.applied
    assert torch.equal(learner.weights(), before)


def test_too_many_steps_left_out_in_a_row_end_the_run_with_the_way_out(tmp_path: Path):
    learner = Learner(tmp_path, Watch(max_skipped_steps=2))
    learner.step(math.nan)
    learner.step(1.0)
    learner.step(math.nan)
    with pytest.raises(DynamiCtrlError, match=r"steps 3 to 4 .*lower --learning-rate") as caught:
        learner.step(math.nan)

    assert caught.value.code == "run_failed"
    with pytest.raises(DynamiCtrlError, match="steps 3 to 4"):
        learner.guard.check_end(4)


def spiking(skip: bool) -> Watch:
    return Watch(spike_factor=5.0, spike_window=8, skip_spikes=skip)


def test_a_spike_is_told_of_and_applied_unless_it_is_to_be_skipped(tmp_path: Path):
    learner = Learner(tmp_path, spiking(skip=False))
    for _ in range(3):
        learner.step(1.0)
    before = learner.weights()
    metrics = learner.step(100.0)

    assert (metrics["spikes"], metrics["skipped_steps"]) == (1, 0)
    assert learner.guard.applied
    assert not torch.equal(learner.weights(), before)
    [told] = [json.loads(line) for line in (tmp_path / "skipped_steps.jsonl").read_text().splitlines()]
    assert (told["reason"], told["applied"]) == ("spike", True)
    assert told["grad_norm"] > 5 * told["median_norm"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", ZERO_STAGES)
def test_a_run_that_skips_a_spike_is_the_run_without_it_bit_for_bit(
    tmp_path: Path, precision: Precision, stage: Literal[1, 2, 3]
):
    learner, calm = (Learner(tmp_path, spiking(skip=True), precision, stage) for _ in range(2))
    for _ in range(3):
        learner.step(1.0)
        calm.step(1.0)
    metrics = learner.step(1000.0)
    assert (metrics["spikes"], metrics["skipped_steps"]) == (1, 1)
    assert not learner.guard.applied
    calm.done += 1
    for _ in range(2):
        learner.step(1.0)
        calm.step(1.0)

    assert torch.equal(learner.weights(), calm.weights())


def test_a_restart_knows_the_median_and_the_counts_of_the_steps_before(tmp_path: Path):
    record = MetricsFile(tmp_path / "metrics.jsonl")
    record.on_start(0)
    learner = Learner(tmp_path, spiking(skip=True))
    for factor in (1.0, 1.0, 1.0, math.nan, 1000.0, 1.0):
        record.on_step(learner.done + 1, learner.step(factor))
    record.on_close()
    assert math.isnan(read_lines(tmp_path / "metrics.jsonl")[3]["grad_norm"])

    again = Learner(tmp_path, spiking(skip=True))
    again.guard.resume(5)
    again.done = 5
    kept = (tmp_path / "skipped_steps.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in kept] == [4, 5]
    metrics = again.step(1000.0)
    assert (metrics["spikes"], metrics["skipped_steps"]) == (2, 3)
    assert not again.guard.applied


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Watch(skip_spikes=True, spike_factor=0.0), "spike_factor"),
        (lambda: Watch(max_skipped_steps=0), "max_skipped_steps"),
    ],
)
def test_settings_that_cannot_work_are_refused(make: Callable[[], Watch], word: str):
    with pytest.raises(ConfigError, match=word):
        make()
