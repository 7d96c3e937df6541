"""Validation beside the training: at the right steps, into one MLflow run, and what is refused before the start."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from dynamictrl.errors import ConfigError
from dynamictrl.samples import shards
from training.checkpoints import leases, on_disk
from training.config import Recipe, Run
from training.recipes import dynamictrl_5b, mini, tiny_on_cpu
from training.run_folder import RunFolder
from training.samples.data import build_index
from training.settings.validation import Validation
from training.validating import validation_checks
from training.validating.validation import Validator, free_gpus
from training.validating.validation_results import folder_of, result_at


@pytest.fixture(scope="session")
def held_out(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clips of `small_dataset` under other keys, as another data set has them."""
    root = tmp_path_factory.mktemp("held_out") / "set"
    samples = [
        shards.Sample(f"other-{sample.key}", sample.members)
        for shard in sorted((small_dataset / "shards").glob("*.tar"))
        for sample in shards.iter_shard(shard)
    ]
    shards.write_shard(root / "shards" / shards.SHARD_NAME.format(0), samples)
    shards.write_json(root / "dataset.json", {"schema_version": shards.SCHEMA_VERSION, "recipe": "tests"})
    return root


@pytest.fixture
def recipe(tiny_model: Path, held_out: Path) -> Recipe:
    small = tiny_on_cpu()
    return replace(
        small,
        model=replace(small.model, base=str(tiny_model)),
        optimization=replace(small.optimization, steps=4, ema_decay=0.5, learning_rate=1e-2),
        checkpoints=replace(small.checkpoints, checkpoint_every=3, keep_checkpoints=3),
        validation=Validation(
            validate_every=2,
            validation_data=held_out,
            validation_clips=2,
            validation_steps=2,
            validation_wait_minutes=8,
        ),
    )


def check(run: Run) -> None:
    """As `launch` does it."""
    validation_checks.check(run, [entry.key for entry in build_index(run.data, run.recipe.clips).entries])


def run_of(recipe: Recipe, data: Path, out: Path) -> Run:
    return Run(name="tiny-on-cpu", data=data, out=out, recipe=recipe)


def test_a_run_is_validated_at_its_steps_in_one_mlflow_run(
    recipe: Recipe, small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from training.launch import launch
    from training.release import tracking

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = run_of(recipe, small_dataset, tmp_path / "run")
    model = launch(run)

    marker = json.loads((run.out / tracking.MARKER).read_text())
    client = tracking.TrackedRun(marker["tracking_uri"], marker["run_id"]).client()
    for name in ("psnr", "ssim", "mean_absolute_error", "seconds"):
        history = client.get_metric_history(marker["run_id"], f"validation/{name}")
        assert [metric.step for metric in history] == [2, 4]
    assert [metric.step for metric in client.get_metric_history(marker["run_id"], "loss")] == [1, 2, 3, 4]
    for step in (2, 4):
        place = f"validation/step-{step:08d}"
        names = sorted(Path(found.path).name for found in client.list_artifacts(marker["run_id"], place))
        assert [Path(name).suffix for name in names] == [".json", ".mp4", ".mp4"]
        assert names[0] == "metrics.json"
        assert sorted(path.name for path in folder_of(run.out, step).iterdir()) == names
    # The average of step 4 is not that of step 2, on the same clips with the same noise.
    first, second = result_at(run.out, 2), result_at(run.out, 4)
    assert first is not None
    assert second is not None
    assert first.identity == second.identity
    assert first.values["psnr"] != second.values["psnr"]
    version = client.get_model_version_by_alias("dynamictrl", "champion")
    assert version.tags["validation/psnr"] == f"{second.values['psnr']:.6g}"
    assert "## Validation" in (model / "README.md").read_text()
    assert not list(RunFolder(run.out).checkpoints.glob("*/.reading-*"))


class Asked:
    """A sampler that notes what it is asked for and ends when told to; it leaves a result for what went well."""

    def __init__(self, run: Run):
        self.steps: list[int] = []
        self.answer: str | None = None
        self._run = run

    def start(self, run: Run, step: int) -> None:
        self.steps.append(step)

    def problem(self) -> str | None:
        if self.answer == "":
            folder = folder_of(self._run.out, self.steps[-1])
            folder.mkdir(parents=True)
            told = {
                "step": self.steps[-1], "identity": "a", "mean": {"model": {"psnr": 1.0}}, "per_clip": {},
                "seconds": 1.0, "finished": 1.0,
            }  # fmt: skip
            shards.write_json(folder / "metrics.json", told)
        return self.answer

    def stop(self) -> None:
        self.answer = "stopped"


def whole_checkpoint(run: Run, step: int) -> Path:
    folder = RunFolder(run.out).checkpoints / on_disk.name_of(step)
    folder.mkdir(parents=True)
    shards.write_json(folder / on_disk.COMPLETE, {"step": step, "workers": 1, "zero_stage": 2, "files": {}})
    return folder


def test_one_runs_at_a_time_what_waits_is_held_and_too_much_is_left_out(recipe: Recipe, tmp_path: Path):
    longer = replace(recipe, optimization=replace(recipe.optimization, steps=12))
    run = run_of(longer, tmp_path, tmp_path / "run")
    sampler = Asked(run)
    validator = Validator(run, None, sampler)
    folders = {step: whole_checkpoint(run, step) for step in (2, 3, 4)}
    validator.look()
    validator.look()
    assert sampler.steps == [2]
    assert [step for step, folder in folders.items() if leases.is_held(folder)] == [2, 4]
    on_disk.prune(RunFolder(run.out).checkpoints, 1)
    assert [step for step, folder in folders.items() if folder.is_dir()] == [2, 4]

    later = {step: whole_checkpoint(run, step) for step in (6, 8, 12)}
    validator.look()
    assert [step for step, folder in (folders | later).items() if leases.is_held(folder)] == [2, 8, 12]
    sampler.answer = ""
    for _ in range(6):
        validator.look()
    assert sampler.steps == [2, 8, 12]
    assert validator.is_done()
    assert not any(leases.is_held(folder) for folder in (folders | later).values())

    again = Asked(run)
    Validator(run, None, again).look()
    assert again.steps == [4]  # a later session takes up what was left out


def test_what_fails_is_tried_once_more_and_then_left(recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    run = run_of(recipe, tmp_path, tmp_path / "run")
    whole_checkpoint(run, 2)
    sampler = Asked(run)
    sampler.answer = "out of memory"
    validator = Validator(run, None, sampler)
    for _ in range(6):
        validator.look()

    assert Counter(sampler.steps) == {2: 2}
    assert validator.is_done()
    assert "validation of step 2 failed: out of memory" in caplog.text


def test_a_mark_of_a_reader_that_died_holds_nothing(tmp_path: Path):
    leases.hold(tmp_path)
    assert leases.is_held(tmp_path)
    (mark,) = tmp_path.iterdir()
    long_ago = time.time() - leases.STALE_SECONDS - 1
    os.utime(mark, (long_ago, long_ago))
    assert not leases.is_held(tmp_path)
    leases.release(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_validation_data_that_cannot_serve_is_refused_before_the_start(
    recipe: Recipe, small_dataset: Path, tmp_path: Path
):
    def with_data(data: Path, **changes: object) -> Run:
        told = replace(recipe.validation, validation_data=data)
        return run_of(replace(recipe, validation=told, **changes), small_dataset, tmp_path / "run")  # pyright: ignore

    check(run_of(recipe, small_dataset, tmp_path / "run"))
    with pytest.raises(ConfigError, match="there is no validation_data"):
        Validation(validate_every=5)
    with pytest.raises(ConfigError, match="shares clips") as caught:
        check(with_data(small_dataset))
    assert caught.value.code == "validation_overlaps"
    with pytest.raises(ConfigError, match=r"no dataset\.json"):
        check(with_data(tmp_path))
    data = recipe.validation.validation_data
    assert data is not None
    with pytest.raises(ConfigError, match="no clip"):
        validation_checks.check(with_data(data, clips=replace(recipe.clips, num_frames=49)), [])


def test_a_validation_beside_the_training_never_takes_a_workers_gpu(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("CUDA_VISIBLE_DEVICES", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)

    def gpus(num_workers: int, validation_gpus: float) -> str:
        workers = replace(recipe.workers, device="cuda", num_workers=num_workers)
        told = replace(recipe.validation, validation_gpus=validation_gpus)
        changed = replace(recipe, workers=workers, validation=told)
        return free_gpus(Run(name="tiny-on-cpu", data=tmp_path, out=tmp_path, recipe=changed))

    assert gpus(0, 1) == "1"  # the training is in this process, on the first
    assert gpus(0, 0) == ""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert gpus(0, 0.5) == "5"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # torchrun's
    assert gpus(2, 2) == "6,7"


def test_a_real_base_that_would_be_sampled_on_cpus_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    told = Validation(validate_every=500, validation_data=tmp_path)

    def warned(recipe: Recipe, told: Validation) -> bool:
        caplog.clear()
        run = Run(name="r", data=tmp_path, out=tmp_path, recipe=replace(recipe, validation=told))
        validation_checks.warn_of_cpus(run)
        return "--validation-gpus 1" in caplog.text

    assert warned(dynamictrl_5b(), told)
    assert not warned(dynamictrl_5b(), replace(told, validation_gpus=1))
    assert not warned(mini(), told)


def test_clips_of_a_video_that_is_trained_on_are_warned_of(
    recipe: Recipe, small_dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    roots = []
    for name, stretch in (("trained", "00000000-00001000"), ("held", "00005000-00006000")):
        root = tmp_path / name
        sample = next(iter(shards.iter_shard(sorted((small_dataset / "shards").glob("*.tar"))[0])))
        renamed = [shards.Sample(f"0123456789abcdef-{stretch}", sample.members)]
        shards.write_shard(root / "shards" / shards.SHARD_NAME.format(0), renamed)
        shards.write_json(root / "dataset.json", {"schema_version": shards.SCHEMA_VERSION, "recipe": "tests"})
        roots.append(root)
    told = replace(recipe.validation, validation_data=roots[1], validation_clips=1)
    check(run_of(replace(recipe, validation=told), roots[0], tmp_path / "run"))

    assert "1 of 1 validation clips are of videos that are trained on" in caplog.text
