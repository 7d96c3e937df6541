"""A run that stops, finds damage, a full disk or a notice to leave, and goes on as if nothing had been."""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dynamictrl.errors import CheckpointError, ConfigError, DynamiCtrlError
from training.callbacks import Callback
from training.callbacks.metrics_file import MetricsFile, read_lines
from training.checkpoints import on_disk
from training.config import Recipe, Run
from training.run_folder import RunFolder
from training.trainer import train


class At(Callback):
    """Does something after a step."""

    def __init__(self, step: int, act: Callable[[], object]):
        self._step, self._act = step, act

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        if step == self._step:
            self._act()


def stop() -> None:
    raise KeyboardInterrupt


def run_of(recipe: Recipe, data: Path, out: Path) -> Run:
    out.mkdir()
    return Run(name="tiny-on-cpu", data=data, out=out, recipe=recipe)


def session(run: Run, *callbacks: Callback) -> Path:
    return train(run, [MetricsFile(RunFolder(run.out).metrics), *callbacks])


def longer(recipe: Recipe, steps: int, every: int) -> Recipe:
    return replace(
        recipe,
        optimization=replace(recipe.optimization, steps=steps),
        checkpoints=replace(recipe.checkpoints, checkpoint_every=every),
    )


def assert_same_bits(one: Run, other: Run) -> None:
    """Course, exported weights, and all that the last checkpoints hold."""
    lines = [read_lines(RunFolder(run.out).metrics) for run in (one, other)]
    for name in ("step", "loss", "grad_norm", "learning_rate"):
        assert [line[name] for line in lines[0]] == [line[name] for line in lines[1]]
    names = "transformer/diffusion_pytorch_model.safetensors"
    first, second = (load_file(RunFolder(run.out).model / names) for run in (one, other))
    assert all(torch.equal(first[name], second[name]) for name in first)
    found = [on_disk.newest(RunFolder(run.out).checkpoints) for run in (one, other)]
    assert found[0] is not None
    assert found[1] is not None
    shards = [name for name in found[0].files if name.endswith("optim_states.pt")]
    assert shards
    for shard in shards:
        states = [
            torch.load(checkpoint.folder / shard, weights_only=False)["optimizer_state_dict"]
            for checkpoint in found
            if checkpoint is not None
        ]
        assert_equal(states[0], states[1])


def assert_equal(one: object, other: object) -> None:
    if isinstance(one, torch.Tensor):
        assert isinstance(other, torch.Tensor)
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert isinstance(other, dict)
        assert one.keys() == other.keys()
        for name in one:
            assert_equal(one[name], other[name])
    elif isinstance(one, list):
        assert isinstance(other, list)
        for mine, theirs in zip(one, other, strict=True):
            assert_equal(mine, theirs)


def test_a_stop_at_the_very_end_of_an_epoch_changes_no_bit_with_other_threads_either(
    one_thread_recipe: Recipe, small_dataset: Path, tmp_path: Path
):
    recipe = longer(one_thread_recipe, steps=6, every=3)  # six clips, two a step: an epoch ends with step 3
    straight = run_of(recipe, small_dataset, tmp_path / "straight")
    stopped = run_of(recipe, small_dataset, tmp_path / "stopped")
    session(straight)
    with pytest.raises(KeyboardInterrupt):
        session(stopped, At(4, stop))
    found = on_disk.newest(RunFolder(stopped.out).checkpoints)
    assert found is not None
    assert found.step == 3
    session(replace(stopped, recipe=replace(recipe, clips=replace(recipe.clips, loader_threads=3))))

    assert_same_bits(straight, stopped)


def test_a_signal_makes_a_checkpoint_and_ends_the_session_and_the_same_command_goes_on(
    one_thread_recipe: Recipe, small_dataset: Path, tmp_path: Path
):
    recipe = longer(one_thread_recipe, steps=4, every=100)
    straight = run_of(recipe, small_dataset, tmp_path / "straight")
    told = run_of(recipe, small_dataset, tmp_path / "told")
    session(straight)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(DynamiCtrlError, match="same command goes on") as caught:
        session(told, At(2, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert caught.value.code == "run_stopped"
    assert signal.getsignal(signal.SIGTERM) == before
    found = on_disk.newest(RunFolder(told.out).checkpoints)
    assert found is not None
    assert (found.step, found.damage()) == (3, "")
    session(told)

    assert_same_bits(straight, told)


def test_a_damaged_checkpoint_is_passed_by_with_a_warning_that_names_it(
    one_thread_recipe: Recipe, small_dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    run = run_of(longer(one_thread_recipe, steps=4, every=2), small_dataset, tmp_path / "run")
    session(run)
    unbroken = tmp_path / "unbroken"
    shutil.copytree(run.out, unbroken)
    shutil.rmtree(RunFolder(run.out).model)
    root = RunFolder(run.out).checkpoints
    damage(root / "step-00000004")
    with caplog.at_level(logging.WARNING):
        session(run)

    assert "step-00000004 is damaged and passed by" in caplog.text
    assert_same_bits(replace(run, out=unbroken), run)
    assert sorted(path.name for path in root.iterdir()) == ["step-00000002", "step-00000004"]

    for name in ("step-00000002", "step-00000004"):
        damage(root / name)
    shutil.rmtree(RunFolder(run.out).model)
    with pytest.raises(CheckpointError, match="start again from step 0") as caught:
        session(run)
    assert "step-00000002" in str(caught.value)
    assert "step-00000004" in str(caught.value)


def damage(folder: Path) -> None:
    """Changes one byte in the middle of the largest file."""
    largest = max(folder.rglob("*.pt"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(bytes(content))


def test_a_disk_without_room_costs_a_checkpoint_and_not_the_run(
    one_thread_recipe: Recipe, small_dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    recipe = longer(one_thread_recipe, steps=6, every=2)
    straight = run_of(recipe, small_dataset, tmp_path / "straight")
    full = run_of(recipe, small_dataset, tmp_path / "full")
    session(straight)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    root = RunFolder(full.out).checkpoints
    kept: list[list[str]] = []

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))

    try:
        session(
            full,
            At(3, lambda: limit(10_000)),
            At(5, lambda: kept.append(sorted(path.name for path in root.iterdir()))),
            At(5, lambda: limit(limits[0])),
        )
    finally:
        limit(limits[0])

    assert "checkpoint of step 4 could not be written: no space is left for it" in caplog.text
    assert kept == [["step-00000002"]]
    assert sorted(path.name for path in root.iterdir()) == ["step-00000002", "step-00000006"]
    lines = read_lines(RunFolder(full.out).metrics)
    assert [line.get("checkpoint_failures", 0) for line in lines] == [0, 0, 0, 0, 1, 1]
    assert_same_bits(straight, full)


def test_a_run_under_a_constant_learning_rate_can_be_made_longer_and_is_then_the_longer_run(
    one_thread_recipe: Recipe, small_dataset: Path, tmp_path: Path
):
    constant = replace(
        one_thread_recipe, optimization=replace(one_thread_recipe.optimization, schedule="constant", steps=4)
    )
    straight = run_of(constant, small_dataset, tmp_path / "straight")
    extended = run_of(longer(constant, steps=2, every=2), small_dataset, tmp_path / "extended")
    session(straight)
    RunFolder(extended.out).claim(extended, "0")
    session(extended)
    more = replace(extended, recipe=constant)
    RunFolder(more.out).claim(more, "0")
    assert json.loads(RunFolder(more.out).settings.read_text())["recipe"]["optimization"]["steps"] == 4
    session(more)

    assert_same_bits(straight, extended)
    with pytest.raises(ConfigError, match="--steps 4 or more"):
        RunFolder(more.out).claim(replace(more, recipe=longer(constant, steps=3, every=2)), "0")


def test_a_cosine_run_is_not_made_longer_and_the_way_out_is_named(
    one_thread_recipe: Recipe, small_dataset: Path, tmp_path: Path
):
    run = run_of(longer(one_thread_recipe, steps=4, every=2), small_dataset, tmp_path / "run")
    folder = RunFolder(run.out)
    folder.claim(run, "0")
    more = replace(run, recipe=longer(run.recipe, steps=8, every=2))
    folder.claim(more, "0")  # nothing is done yet
    whole = folder.checkpoints / "step-00000002"
    whole.mkdir(parents=True)
    (whole / on_disk.COMPLETE).write_text(json.dumps({"step": 2, "workers": 1, "zero_stage": 2, "files": {}}))

    with pytest.raises(ConfigError, match=f"--base {folder.model}"):
        folder.claim(run, "0")
