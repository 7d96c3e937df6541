"""What a user is told of a data set before anything is started."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dynamictrl.errors import ConfigError, InputError
from training.__main__ import main
from training.planning.shapes import base_config
from training.recipes import RECIPES, dynamictrl_5b, mini
from training.samples.buckets import block_flop, check_sizes, largest, video_tokens
from training.settings.clips import Clips


def test_the_table_counts_clips_hours_and_what_is_left_out(small_dataset: Path, capsys: pytest.CaptureFixture[str]):
    sizes = ["--buckets", "13x96x64", "5x64x96", "--fps", "12", "--batch-size", "2", "--micro-batch-size", "1"]
    assert main(["data", "mini", "--data", str(small_dataset), *sizes]) == 0

    shown = capsys.readouterr().out.splitlines()
    assert shown[1].split()[:2] == ["5x64x96", "0"]
    assert shown[2].split()[:3] == ["13x96x64", "6", f"{93 / 12 / 3600:.2f}"]
    assert "left out: 1 clips too short" in shown
    assert any("an epoch is 3.0 steps of 2" in line for line in shown)


def test_a_size_that_the_base_cannot_render_is_refused_with_the_one_it_can():
    learned = replace(dynamictrl_5b(), model=replace(dynamictrl_5b().model, base="zai-org/CogVideoX-5b-I2V"))

    with pytest.raises(ConfigError, match="720x480 pixels .* cannot render 768x1360"):
        check_sizes(learned, base_config(learned.model.base))
    legal = replace(learned, clips=replace(learned.clips, height=480, width=720, num_frames=49))
    check_sizes(legal, base_config(legal.model.base))
    with pytest.raises(InputError, match="nearest are 45 and 49"):
        check_sizes(replace(legal, clips=replace(legal.clips, num_frames=48)), base_config(legal.model.base))


def test_rows_of_a_bucket_must_divide_the_batch():
    recipe = replace(mini(), clips=replace(mini().clips, buckets=("5x64x96", "13x96x64"), bucket_samples=3))

    with pytest.raises(ConfigError, match="bucket_samples 3 must divide batch_size 4"):
        check_sizes(recipe, base_config("mini/dynamictrl"))


def test_cost_is_that_of_tokens_and_their_square():
    recipe = RECIPES["dynamictrl-5b"]()
    config = base_config(recipe.model.base)
    size = recipe.clips.sizes[0]

    assert video_tokens(size, config) + config["max_text_seq_length"] == 20_626
    assert 42 * block_flop(size, config) / 1e12 == pytest.approx(416, abs=1)
    both = replace(recipe, clips=replace(recipe.clips, buckets=("25x768x1360", "49x480x720")))
    assert str(largest(both, config)) == "25x768x1360"


def test_shares_of_masks_beyond_one_are_refused():
    with pytest.raises(ConfigError, match="more than 1 together"):
        Clips(masked_reference="mixed", mixed_background=0.6, mixed_clothes=0.5)


def test_data_of_no_data_set_ends_with_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["data", "mini", "--data", str(tmp_path)]) == 2
    assert "has no dataset.json" in capsys.readouterr().err
