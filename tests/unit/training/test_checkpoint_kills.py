"""A worker is killed in every phase of a checkpoint: the next session ends with the same bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from training.callbacks.metrics_file import read_lines
from training.checkpoints import on_disk
from training.config import Recipe, Run
from training.run_folder import RunFolder

SIGKILL = -9


def run_of(recipe: Recipe, data: Path, out: Path) -> Run:
    out.mkdir()
    return Run(name="tiny-on-cpu", data=data, out=out, recipe=recipe)


def weights_of(run: Run) -> dict[str, torch.Tensor]:
    return load_file(RunFolder(run.out).model / "transformer" / "diffusion_pytorch_model.safetensors")


def course_of(run: Run) -> list[tuple[float, ...]]:
    lines = read_lines(RunFolder(run.out).metrics)
    return [tuple(line[name] for name in ("step", "loss", "grad_norm")) for line in lines]


@pytest.fixture(scope="module")
def unbroken(sessions, tiny_model: Path, small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    from training.recipes import tiny_on_cpu

    small = tiny_on_cpu()
    recipe = replace(
        small,
        model=replace(small.model, base=str(tiny_model)),
        workers=replace(small.workers, threads_per_worker=1),
        checkpoints=replace(small.checkpoints, checkpoint_every=2, keep_checkpoints=1),
    )
    run = run_of(recipe, small_dataset, tmp_path_factory.mktemp("kills") / "unbroken")
    assert sessions.train(run) == [0]
    return run


@pytest.mark.parametrize(
    ("phase", "kept"),
    [
        pytest.param("before", 2, marks=pytest.mark.exhaustive),
        ("shards", 2),
        ("marker", 2),
        ("named", 4),
        pytest.param("pruning", 4, marks=pytest.mark.exhaustive),
    ],
)
def test_a_kill_in_any_phase_of_a_checkpoint_changes_no_bit(
    sessions, unbroken: Run, tmp_path: Path, phase: str, kept: int
):
    run = replace(unbroken, out=tmp_path / "run")
    run.out.mkdir()
    root = RunFolder(run.out).checkpoints

    assert sessions.train(run, kill_at=phase) == [SIGKILL]
    left = on_disk.newest(root)
    assert left is not None
    assert (left.step, left.damage()) == (kept, "")
    assert sessions.train(run) == [0]

    one, other = weights_of(unbroken), weights_of(run)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert course_of(run) == course_of(unbroken)
    assert [path.name for path in root.iterdir()] == ["step-00000004"]
