"""A validation as a Ray task, from a checkpoint that the training left."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from training.cluster.ray_validation import RayTask
from training.config import Run
from training.recipes import tiny_on_cpu
from training.run_folder import RunFolder
from training.settings.validation import Validation
from training.trainer import train
from training.validating.validation import POLL_SECONDS, Validator
from training.validating.validation_results import result_at


def test_a_checkpoint_is_validated_in_a_ray_task(
    tiny_model: Path, small_dataset: Path, tmp_path: Path, local_ray: None
):
    small = tiny_on_cpu()
    recipe = replace(
        small,
        model=replace(small.model, base=str(tiny_model)),
        optimization=replace(small.optimization, steps=1),
        validation=Validation(validate_every=1, validation_data=small_dataset, validation_clips=1, validation_steps=1),
    )
    run = Run(name="tiny-on-cpu", data=small_dataset, out=tmp_path / "run", recipe=recipe)
    RunFolder(run.out).claim(run, "0")
    train(run)
    validator = Validator(run, None, RayTask())
    deadline = time.monotonic() + 400
    validator.look()
    assert not validator.is_done()
    while not validator.is_done() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        validator.look()

    found = result_at(run.out, 1)
    assert found is not None
    assert found.values["psnr"] > 0
    assert [path.suffix for path in found.clips] == [".mp4"]
    assert all(path.is_file() for path in found.clips)


def test_what_a_task_died_of_is_told(local_ray: None, tmp_path: Path):
    run = Run(name="tiny-on-cpu", data=tmp_path, out=tmp_path, recipe=tiny_on_cpu())
    told = Validation(validate_every=1, validation_data=tmp_path)
    task = RayTask()
    task.start(replace(run, recipe=replace(run.recipe, validation=told)), 1)
    problem = None
    while problem is None:
        time.sleep(0.2)
        problem = task.problem()

    assert "no dataset.json" in problem
