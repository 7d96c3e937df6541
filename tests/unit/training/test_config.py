"""Settings refuse what cannot work, and come back from JSON as they were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dynamictrl.errors import ConfigError
from training.config import Run, differences
from training.recipes import RECIPES, mini
from training.settings.checkpoints import Checkpoints
from training.settings.clips import Clips
from training.settings.model import Model
from training.settings.optimization import Optimization


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_can_be_made_and_survives_json(name: str, tmp_path: Path):
    import json

    run = Run(name=name, data=tmp_path / "data", out=tmp_path / "out", recipe=RECIPES[name]())

    assert Run.from_dict(json.loads(json.dumps(run.to_dict()))) == run


def test_a_setting_unknown_to_this_release_is_named(tmp_path: Path):
    values = Run(name="mini", data=tmp_path, out=tmp_path, recipe=mini()).to_dict()
    values["recipe"]["clips"]["colour"] = "red"

    with pytest.raises(ConfigError, match="colour"):
        Run.from_dict(values)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Clips(caption_dropout=1.5), "caption_dropout"),
        (lambda: Clips(num_frames=0), "num_frames"),
        (lambda: Optimization(steps=0), "steps"),
        (lambda: Optimization(learning_rate=-1), "learning_rate"),
        (lambda: Checkpoints(keep_checkpoints=0), "keep_checkpoints"),
        (lambda: Model(learn_pose=False, pose_control="direct_addition"), "learn_pose"),
        (lambda: replace(mini(), optimization=replace(mini().optimization, batch_size=3)), "choose a multiple of"),
    ],
)
def test_a_setting_out_of_range_is_refused_with_its_name(make, named: str):
    with pytest.raises(ConfigError, match=named):
        make()


def test_only_settings_that_shape_the_model_count_as_differences():
    recipe = mini()
    changed = replace(
        recipe,
        seed=7,
        records=replace(recipe.records, log_every=99),
        workers=replace(recipe.workers, threads_per_worker=3),
    )

    assert differences(recipe, changed) == ["seed: 42 -> 7"]
