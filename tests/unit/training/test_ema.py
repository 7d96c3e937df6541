"""The moving average of the weights: what it is, who holds which part of it, and that a stop changes nothing."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from training.callbacks import Callback
from training.config import Recipe, Run
from training.engine import parallel
from training.recipes import tiny_on_cpu
from training.run_folder import RunFolder
from training.trainer import train

ROOT = Path(__file__).parents[3]
RANKS = Path(__file__).with_name("average_ranks.py")


def check_average(stage: int, precision: str) -> None:
    """What `average_ranks.py` holds two workers to, on one."""
    spec = importlib.util.spec_from_file_location("average_ranks", RANKS)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.check_average(stage, precision)


class StopAfter(Callback):
    """Ends a session as a kill would: in the middle of the loop."""

    def __init__(self, step: int):
        self._step = step

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        if step == self._step:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("stage", "precision"), [(1, "bf16"), (2, "fp32"), (2, "bf16"), (3, "bf16")])
def test_the_average_is_the_formula_on_float32_weights(stage: int, precision: str):
    parallel.join(tiny_on_cpu())
    check_average(stage, precision)


def test_two_workers_share_the_average_and_gather_the_whole(tmp_path: Path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, str(RANKS), str(rank), str(tmp_path / "store")], env=environment, stderr=subprocess.PIPE
        )
        for rank in (0, 1)
    ]
    told = [worker.communicate()[1].decode()[-3000:] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], told


@pytest.fixture
def recipe(tiny_model: Path) -> Recipe:
    small = tiny_on_cpu()
    return replace(
        small,
        model=replace(small.model, base=str(tiny_model)),
        optimization=replace(small.optimization, ema_decay=0.5, learning_rate=1e-2),
    )


def weights(model: Path) -> dict[str, torch.Tensor]:
    return load_file(model / "transformer" / "diffusion_pytorch_model.safetensors")


def test_a_stop_and_a_restart_export_the_same_average_bit_for_bit(recipe: Recipe, small_dataset: Path, tmp_path: Path):
    runs = [Run(name="tiny-on-cpu", data=small_dataset, out=tmp_path / name, recipe=recipe) for name in ("one", "two")]
    for run in runs:
        run.out.mkdir()
    train(runs[0])
    with pytest.raises(KeyboardInterrupt):
        train(runs[1], [StopAfter(3)])
    train(runs[1])

    one, two = (weights(RunFolder(run.out).model) for run in runs)
    assert all(torch.equal(one[name], two[name]) for name in one)
    raw = replace(recipe, optimization=replace(recipe.optimization, ema_decay=0.0))
    (tmp_path / "raw").mkdir()
    last = weights(train(Run(name="tiny-on-cpu", data=small_dataset, out=tmp_path / "raw", recipe=raw)))
    base = weights(Path(recipe.model.base))
    name = "proj_out.weight"
    # The average lags behind: nearer to the base than the last weights are.
    assert not torch.equal(one[name], last[name])
    assert (one[name] - base[name]).abs().sum() < (last[name] - base[name]).abs().sum()
