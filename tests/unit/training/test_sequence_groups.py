"""Workers that share clips train the model of one worker, and settings that cannot work are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from safetensors.torch import load_file

from dynamictrl.errors import ConfigError
from training.callbacks.metrics_file import read_lines
from training.config import Recipe, Run
from training.engine.sequence_groups import check_heads, spans_machines
from training.recipes import tiny_on_cpu
from training.run_folder import RunFolder

if TYPE_CHECKING:
    from tests.unit.training.conftest import Sessions


def shared_by(recipe: Recipe, ways: int, workers: int) -> Recipe:
    """The recipe on so many workers, of which each `ways` share a clip."""
    return replace(
        recipe,
        speed=replace(recipe.speed, sequence_parallel=ways),
        workers=replace(recipe.workers, num_workers=workers if workers > 1 else 0),
    )


def test_two_workers_that_share_clips_and_two_pairs_train_the_model_of_one(
    sessions: Sessions, one_thread_recipe: Recipe, small_dataset: Path, tmp_path: Path
):
    # Two frames of 3 x 2 tokens and 16 of text: 12 and 10 tokens, and in four workers two shares of the batch.
    odd = replace(one_thread_recipe, clips=replace(one_thread_recipe.clips, height=48, width=32, num_frames=13))
    runs = {}
    for name, ways, workers in (("one", 1, 1), ("two", 2, 2), ("pairs", 2, 4)):
        runs[name] = Run(
            name="tiny-on-cpu", data=small_dataset, out=tmp_path / name, recipe=shared_by(odd, ways, workers)
        )
        runs[name].out.mkdir()
        assert sessions.train(runs[name], workers) == [0] * workers

    lines = {name: read_lines(RunFolder(run.out).metrics) for name, run in runs.items()}
    weights = {
        name: load_file(RunFolder(run.out).model / "transformer" / "diffusion_pytorch_model.safetensors")
        for name, run in runs.items()
    }
    for name in ("two", "pairs"):
        for key in ("loss", "grad_norm"):
            alone = [line[key] for line in lines["one"]]
            assert [line[key] for line in lines[name]] == pytest.approx(alone, rel=1e-5), (name, key)
        assert weights[name].keys() == weights["one"].keys()
        for key, value in weights["one"].items():
            assert float((weights[name][key] - value).abs().max()) < 1e-5, (name, key)


def test_more_workers_to_a_clip_than_heads_are_refused_before_anything_starts():
    recipe = shared_by(tiny_on_cpu(), 4, 4)
    check_heads(recipe, {"num_attention_heads": 4})
    with pytest.raises(ConfigError, match="has 2 attention heads.*choose 2 or less") as caught:
        check_heads(recipe, {"num_attention_heads": 2})
    assert caught.value.param == "sequence_parallel"


def test_workers_must_be_a_multiple_of_those_that_share_a_clip():
    with pytest.raises(ConfigError, match="3 workers cannot share each clip by sequence_parallel 2"):
        shared_by(tiny_on_cpu(), 2, 3)


def test_a_group_that_lies_on_two_machines_is_made_out():
    assert not spans_machines(4, 8)
    assert spans_machines(4, 6)
    assert not spans_machines(4, 0)
