"""Rotary positions against diffusers' image-to-video pipeline."""

import pytest
import torch
from diffusers import CogVideoXImageToVideoPipeline

from dynamictrl.mini.tiny import tiny_transformer
from dynamictrl.positions import centred_region, rotary_positions


@pytest.mark.parametrize(
    ("base", "frames", "height", "width"),
    [("1.0", 3, 12, 8), ("1.0", 4, 8, 16), ("1.0", 2, 30, 14), ("1.5", 4, 12, 8), ("1.5", 2, 8, 6)],
)
def test_positions_are_those_of_diffusers_pipeline(base, frames, height, width):
    model = tiny_transformer(base)

    # Only what their method reads: nothing else of the pipeline is needed.
    pipeline = object.__new__(CogVideoXImageToVideoPipeline)
    object.__setattr__(pipeline, "transformer", model)
    object.__setattr__(pipeline, "vae_scale_factor_spatial", 8)
    wanted = pipeline._prepare_rotary_positional_embeddings(height * 8, width * 8, frames, torch.device("cpu"))
    got = rotary_positions(model.config, frames, height, width, "cpu")
    assert got is not None
    tokens = frames // (model.config["patch_size_t"] or 1) * height * width // 4
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours.shape == (tokens, 16)
        assert torch.equal(ours, theirs)


def test_a_base_without_rotary_positions_has_none():
    config = tiny_transformer("1.0", use_rotary_positional_embeddings=False).config
    assert rotary_positions(config, 3, 12, 8, "cpu") is None


def test_a_portrait_covers_the_middle_of_a_landscape_grid():
    assert centred_region((85, 48), (30, 45)) == ((0, 14), (30, 31))
    assert centred_region((30, 45), (30, 45)) == ((0, 0), (30, 45))


def test_a_picture_beyond_the_base_grid_of_1_5_still_has_positions():
    config = tiny_transformer("1.5").config
    cosines, _ = rotary_positions(config, 2, 32, 32, "cpu")
    assert cosines.shape == (256, 16)
