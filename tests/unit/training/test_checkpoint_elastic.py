"""A run goes on with another number of workers: the same samples once each, and the same course."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from training.callbacks.metrics_file import read_lines
from training.config import Recipe, Run
from training.lora import Lora
from training.run_folder import RunFolder

STOPPED = 10


def losses_of(run: Run) -> list[float]:
    return [line["loss"] for line in read_lines(RunFolder(run.out).metrics)]


def norms_of(run: Run) -> list[float]:
    return [line["grad_norm"] for line in read_lines(RunFolder(run.out).metrics)]


@pytest.mark.parametrize(("zero_stage", "lora_rank"), [pytest.param(2, 0, marks=pytest.mark.exhaustive), (3, 4)])
def test_two_workers_then_one_then_two_take_the_course_of_two(
    sessions, one_thread_recipe: Recipe, small_dataset: Path, tmp_path: Path, zero_stage: Literal[2, 3], lora_rank: int
):
    recipe = replace(
        one_thread_recipe,
        lora=Lora(lora_rank=lora_rank),
        optimization=replace(one_thread_recipe.optimization, steps=6, ema_decay=0.9),
        workers=replace(one_thread_recipe.workers, zero_stage=zero_stage),
    )
    runs = [Run(name="tiny-on-cpu", data=small_dataset, out=tmp_path / name, recipe=recipe) for name in ("one", "many")]
    for run in runs:
        run.out.mkdir()
    unbroken, changing = runs
    samples = tmp_path / "samples"
    samples.mkdir()

    # Several parameter groups, as a model has that is not tiny.
    job = {"samples": str(samples), "group_elements": 5000}
    assert sessions.train(unbroken, 2, group_elements=5000) == [0, 0]
    assert sessions.train(changing, 2, stop_after=2, **job) == [STOPPED, STOPPED]
    assert sessions.train(changing, 1, stop_after=4, **job) == [STOPPED]
    assert sessions.train(changing, 2, **job) == [0, 0]

    assert losses_of(changing) == pytest.approx(losses_of(unbroken), rel=1e-3)
    assert norms_of(changing) == pytest.approx(norms_of(unbroken), rel=1e-3)
    seen = Counter(int(line) for path in samples.iterdir() for line in path.read_text().splitlines())
    assert seen == Counter(range(12))  # two epochs of the six clips that can be trained on
    one, other = (run.out / "model" / "transformer" / "diffusion_pytorch_model.safetensors" for run in runs)
    assert_close(one, other)


def assert_close(one: Path, other: Path) -> None:
    """The averages that were exported."""
    import torch
    from safetensors.torch import load_file

    first, second = load_file(one), load_file(other)
    assert all(torch.allclose(first[name].float(), second[name].float(), rtol=1e-3, atol=1e-5) for name in first)
