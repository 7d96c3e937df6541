"""Which version gets the alias: in a real registry in a SQLite file."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dynamictrl.samples.shards import write_json
from training.config import Run
from training.recipes import tiny_on_cpu
from training.release import promotion
from training.release.promotion import compare
from training.release.registering import register
from training.release.tracking import TrackedRun
from training.settings.records import Gate
from training.settings.validation import Validation
from training.validating.validation_results import Result, folder_of, results


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Any:
    found = TrackedRun(f"sqlite:///{tmp_path_factory.mktemp('registry') / 'mlflow.db'}", "").client()
    found.create_registered_model("dynamictrl")
    return found


def finished(out: Path, psnr: float | None, identity: str = "clips", validate_every: int = 2) -> Run:
    """A run whose last step reached this PSNR."""
    small = tiny_on_cpu()
    told = Validation(validate_every=validate_every, validation_data=out / "clips")
    if psnr is not None:
        folder = folder_of(out, small.optimization.steps)
        folder.mkdir(parents=True)
        content = {
            "step": small.optimization.steps, "identity": identity, "mean": {"model": {"psnr": psnr}},
            "per_clip": {"k": {}}, "seconds": 1.0, "finished": 2.0,
        }  # fmt: skip
        write_json(folder / "metrics.json", content)
    return Run(name="tiny-on-cpu", data=out, out=out, recipe=replace(small, validation=told))


def registered(client: Any, run: Run) -> tuple[str, bool]:
    version = str(client.create_model_version("dynamictrl", str(run.out)).version)
    return version, promotion.settle(client, run, version, "sqlite:///mlflow.db")


def champion(client: Any) -> str:
    return str(client.get_model_version_by_alias("dynamictrl", "champion").version)


def test_the_alias_moves_to_what_is_not_worse_and_the_rest_is_tagged_with_why(
    client: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    first, has = registered(client, finished(tmp_path / "first", 20.0))
    assert has
    worse, has = registered(client, finished(tmp_path / "worse", 19.5))
    assert not has
    assert champion(client) == first
    tags = client.get_model_version("dynamictrl", worse).tags
    assert tags["gate"].startswith("refused: its psnr 19.5 is worse than the 20 of version")
    assert tags["validation/psnr"] == "19.5"
    assert tags["recipe"] == "tiny-on-cpu"
    assert f"set_registered_model_alias('dynamictrl', 'champion', '{worse}')" in caplog.text

    better, has = registered(client, finished(tmp_path / "better", 20.5))
    assert has
    assert champion(client) == better
    other, has = registered(client, finished(tmp_path / "other", 99.0, identity="other clips"))
    assert not has
    assert "other clips" in client.get_model_version("dynamictrl", other).tags["gate"]
    none, has = registered(client, finished(tmp_path / "none", None))
    assert not has
    assert "missing" in client.get_model_version("dynamictrl", none).tags["gate"]
    assert champion(client) == better

    ungated, has = registered(client, finished(tmp_path / "ungated", None, validate_every=0))
    assert has
    assert champion(client) == ungated


def test_a_run_that_was_made_longer_gets_a_version_of_its_own_and_a_rerun_none(tmp_path: Path):
    out = tmp_path / "run"
    run = finished(out, None, validate_every=0)
    store = TrackedRun(f"sqlite:///{tmp_path / 'mlflow.db'}", "")
    client = store.client()
    run_id = client.create_run(client.create_experiment("dynamictrl")).info.run_id
    tracked = replace(store, run_id=run_id)
    longer = replace(run.recipe, optimization=replace(run.recipe.optimization, steps=8))

    first = register(tracked, run, out / "model")
    assert register(tracked, run, out / "model") == first
    second = register(tracked, replace(run, recipe=longer), out / "model")

    assert second != first
    assert register(tracked, replace(run, recipe=longer), out / "model") == second
    assert champion(client) == second


@pytest.mark.parametrize(
    ("metric", "mine", "theirs", "margin", "passes"),
    [
        ("psnr", 20.0, 20.0, 0.0, True),
        ("psnr", 19.9, 20.0, 0.05, False),
        ("psnr", 19.9, 20.0, 0.2, True),
        ("mean_absolute_error", 5.0, 6.0, 0.0, True),
        ("mean_absolute_error", 7.0, 6.0, 0.5, False),
    ],
)
def test_a_margin_is_counted_in_the_direction_of_the_metric(
    metric: Gate, mine: float, theirs: float, margin: float, passes: bool
):
    result = Result(Path(), 1, "a", {metric: mine}, 0.0, 0.0, ())
    tags = {f"validation/{metric}": str(theirs), promotion.IDENTITY: "a"}
    assert (compare(result, "1", tags, metric, margin) == "") is passes
    assert "no" in compare(result, "1", {}, metric, margin)
    assert "other clips" in compare(dataclasses.replace(result, identity="b"), "1", tags, metric, margin)


def test_half_written_results_are_passed_by(tmp_path: Path):
    run = finished(tmp_path, 20.0)
    broken = folder_of(run.out, 1)
    broken.mkdir()
    (broken / "metrics.json").write_text('{"step": 1')

    assert [result.step for result in results(run.out)] == [run.recipe.optimization.steps]
