"""Recorded attention against a naive one, and that a recorded run is the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dynamictrl.animation import DynamiCtrlPipeline
from dynamictrl.attention_figures import (
    binarized,
    block_figure,
    coloured,
    diagonal_share,
    overlay_figure,
    save_maps,
    step_figure,
    token_frame,
)
from dynamictrl.attention_maps import MAPS, Grid, Wanted, measure, queries_and_keys, record_attention
from dynamictrl.errors import InputError
from dynamictrl.mini.tiny import TEXT_TOKENS, write_tiny_model
from dynamictrl.positions import rotary_positions

FRAMES, HEIGHT, WIDTH = 9, 48, 32
GRID = Grid(2, 3, 2)  # 1.5-shaped: 3 latents, one in front of them, in pairs; cells of 16 pixels
STEPS = 3


@pytest.fixture(scope="module", params=["padaln", "unified_tokens", "cross_attention"])
def pipeline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DynamiCtrlPipeline:
    folder = tmp_path_factory.mktemp("model") / request.param
    pipeline = DynamiCtrlPipeline.from_pretrained(write_tiny_model(folder, pose_control=request.param))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def run(pipeline: DynamiCtrlPipeline) -> torch.Tensor:
    poses = np.random.default_rng(0).integers(0, 255, (FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)
    made: Any = pipeline(
        Image.fromarray(poses[0]),
        poses,
        "a person in a red shirt",
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    )
    return made.frames


def test_a_recorded_run_is_the_same_to_the_bit_and_leaves_no_hooks(pipeline: DynamiCtrlPipeline):
    before = run(pipeline)
    with record_attention(pipeline.transformer) as maps:
        recorded = run(pipeline)
    after = run(pipeline)

    assert torch.equal(before, recorded)
    assert torch.equal(before, after)
    assert len(maps) == STEPS * 2
    assert not pipeline.transformer._forward_pre_hooks
    assert not any(block.attn1._forward_pre_hooks for block in pipeline.transformer.transformer_blocks)


def test_hooks_are_removed_from_a_run_that_fails(pipeline: DynamiCtrlPipeline):
    with (
        pytest.raises(InputError, match="lies outside"),
        record_attention(pipeline.transformer, Wanted(points=[(5, 0, 0)])),
    ):
        run(pipeline)
    assert not any(block.attn1._forward_pre_hooks for block in pipeline.transformer.transformer_blocks)


def naive(pipeline: DynamiCtrlPipeline, block: int) -> torch.Tensor:
    """[tokens, tokens] of the first step, from what the attention itself is given."""
    seen: dict[str, torch.Tensor] = {}
    attention = pipeline.transformer.transformer_blocks[block].attn1

    def listen(_module: object, _args: object, kwargs: dict[str, Any]) -> None:
        if seen:
            return
        joined = torch.cat([kwargs["encoder_hidden_states"], kwargs["hidden_states"]], dim=1)[1:]
        cos, sin = kwargs["image_rotary_emb"]
        sides = []
        for project, norm in ((attention.to_q, attention.norm_q), (attention.to_k, attention.norm_k)):
            x = norm(project(joined).reshape(joined.shape[1], 2, 16).transpose(0, 1))
            video = x[:, TEXT_TOKENS:]
            swapped = torch.stack([-video[..., 1::2], video[..., ::2]], dim=-1).flatten(-2)
            sides.append(torch.cat([x[:, :TEXT_TOKENS], video * cos + swapped * sin], dim=1))
        seen["attention"] = torch.softmax(sides[0] @ sides[1].transpose(1, 2) / 4, dim=-1).mean(0)

    handle = attention.register_forward_pre_hook(listen, with_kwargs=True)
    with torch.no_grad():
        run(pipeline)
    handle.remove()
    return seen["attention"]


@pytest.mark.parametrize("memory_mib", [1e-4, 256.0])  # one row at a time, all at once
def test_the_maps_are_those_of_a_naive_attention(pipeline: DynamiCtrlPipeline, memory_mib: float):
    whole = naive(pipeline, block=1).numpy()
    wanted = Wanted(blocks=[1], steps=[0], points=[(1, 2, 0)], words=[3, 0], memory_mib=memory_mib)
    with record_attention(pipeline.transformer, wanted) as maps:
        run(pipeline)
    (found,) = maps

    assert (found.step, found.block, found.grid) == (0, 1, GRID)
    cells, video = GRID.per_frame, whole[TEXT_TOKENS:]
    by_frame = video[:, TEXT_TOKENS:].reshape(GRID.frames, cells, GRID.frames, cells)
    expected = {
        "temporal": np.einsum("fpgp->fg", by_frame) / cells,
        "spatial": np.einsum("fpfq->pq", by_frame) / GRID.frames,
        "received": video[:, TEXT_TOKENS:].mean(0).reshape(2, 3, 2),
        "sent": video[cells + 4, TEXT_TOKENS:].reshape(1, 2, 3, 2),
        "words": video[:, [3, 0]].T.reshape(2, 2, 3, 2),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=1e-4, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(found.mass[1:, 1:], by_frame.sum(3).mean(1), rtol=1e-4)
    np.testing.assert_allclose(found.mass.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(found.spatial.sum(1).mean(), np.einsum("fpfq->", by_frame) / GRID.tokens, rtol=1e-4)


def test_a_large_spatial_map_is_averaged_down_and_loses_no_attention():
    generator = torch.Generator().manual_seed(0)
    grid = Grid(2, 4, 5)
    queries, keys = torch.randn(2, 2, 3 + grid.tokens, 8, generator=generator)
    whole = measure(queries, keys, 3, grid, Wanted())["spatial"]
    small = measure(queries, keys, 3, grid, Wanted(max_side=10))["spatial"]

    assert small.shape == (10, 10)
    np.testing.assert_allclose(small, whole.reshape(10, 2, 10, 2).sum(3).mean(1), rtol=1e-4)


def test_of_several_calls_with_one_timestep_the_first_is_recorded(pipeline: DynamiCtrlPipeline):
    """A long video calls the transformer once for each of its windows."""
    with torch.no_grad(), record_attention(pipeline.transformer, Wanted(blocks=[0])) as maps:
        for timestep, seed in ((900, 0), (900, 1), (500, 2), (500, 3)):
            call(pipeline, timestep, seed)
    with torch.no_grad(), record_attention(pipeline.transformer, Wanted(blocks=[0])) as alone:
        call(pipeline, 500, 2)
    assert [(m.step, m.timestep) for m in maps] == [(0, 900.0), (1, 500.0)]
    np.testing.assert_array_equal(maps[1].spatial, alone[0].spatial)


def call(pipeline: DynamiCtrlPipeline, timestep: int, seed: int) -> None:
    transformer, generator = pipeline.transformer, torch.Generator().manual_seed(seed)
    channels = transformer.config["in_channels"]
    noise = torch.randn(1, 4, min(channels, 32), 6, 4, generator=generator)
    transformer(
        hidden_states=noise,
        encoder_hidden_states=torch.randn(1, TEXT_TOKENS, 32, generator=generator),
        timestep=torch.tensor([timestep]),
        control_hidden_states=noise[:, :, :16],
        ofs=torch.tensor([2.0]),
        image_rotary_emb=rotary_positions(transformer.config, 4, 6, 4, "cpu"),
    )


def test_queries_of_the_text_are_first(pipeline: DynamiCtrlPipeline):
    attention = pipeline.transformer.transformer_blocks[0].attn1
    text, video = torch.randn(2, TEXT_TOKENS, 32), torch.randn(2, GRID.tokens, 32)
    queries, _ = queries_and_keys(attention, {"encoder_hidden_states": text, "hidden_states": video})
    alone = attention.norm_q(attention.to_q(text[1:]).unflatten(-1, (2, 16)).transpose(1, 2))[0]
    torch.testing.assert_close(queries[:, :TEXT_TOKENS], alone)


def test_a_block_or_word_that_is_not_there_is_refused(pipeline: DynamiCtrlPipeline):
    with pytest.raises(InputError, match="blocks 0 to 1"), record_attention(pipeline.transformer, Wanted(blocks=[2])):
        pass
    with pytest.raises(InputError, match="tokens 0 to 15"), record_attention(pipeline.transformer, Wanted(words=[16])):
        run(pipeline)


def test_a_binarized_diagonal_is_lit_where_tokens_look_at_themselves():
    sharp = np.eye(20, dtype=np.float32)[None]
    lit = binarized(sharp, share=0.1)
    assert lit.sum() == 40
    assert diagonal_share(lit) == 1.0
    assert diagonal_share(binarized(np.roll(sharp, 10, axis=-1), share=0.05)) == 0.0


def test_a_frame_of_the_clip_is_found_among_the_tokens():
    # 9 frames are 3 latents; on a 1.5 base one is put in front and they go in pairs: (pad, 0), (1-4, 5-8).
    assert [token_frame(f, 9, 2) for f in range(9)] == [0] + [1] * 8
    assert [token_frame(f, 9, None) for f in range(9)] == [0, 1, 1, 1, 1, 2, 2, 2, 2]
    # 13 frames are 4 latents: (0, 1-4), (5-8, 9-12).
    assert [token_frame(f, 13, 2) for f in range(13)] == [0] * 5 + [1] * 8


def test_saved_maps_are_stacked_by_step_and_block(pipeline: DynamiCtrlPipeline, tmp_path: Path):
    with record_attention(pipeline.transformer, Wanted(steps=[0, 2])) as maps:
        run(pipeline)
    save_maps(tmp_path / "maps.npz", maps)
    with np.load(tmp_path / "maps.npz") as saved:
        assert saved["steps"].tolist() == [0, 2]
        assert saved["blocks"].tolist() == [0, 1]
        assert saved["grid"].tolist() == [2, 3, 2]
        assert saved["temporal"].shape == (2, 2, 2, 2)
        np.testing.assert_array_equal(saved["spatial"][1, 0], maps[2].spatial)
        assert set(MAPS) <= set(saved)
    with pytest.raises(InputError, match="no attention was recorded"):
        save_maps(tmp_path / "none.npz", [])


def test_figures_have_a_row_for_each_run_and_a_column_for_each_block(pipeline: DynamiCtrlPipeline):
    with record_attention(pipeline.transformer, Wanted(steps=[0, 1])) as maps:
        run(pipeline)
    one = block_figure({"padaln": maps}, cell=50)
    two = block_figure({"padaln": maps, "unified": maps}, share=None, cell=50)
    assert two.height > 2 * one.height - 20
    assert step_figure(maps, "mass", cell=40).height > 2 * 40
    frames = np.full((FRAMES, HEIGHT, WIDTH, 3), 255, np.uint8)
    laid = np.asarray(overlay_figure(maps[0].received, frames, 2, "received", mark=(1, 2, 0), width=64))
    assert (laid == (255, 60, 60)).all(axis=-1).any(), "the mark is drawn"


def test_the_range_of_colours_is_from_nothing_to_the_top():
    colours = coloured(np.array([[0.0, 0.5, 1.0, 2.0]], np.float32), top=1.0)[0].tolist()
    assert colours[0] == [68, 1, 84]
    assert colours[2] == colours[3] == [253, 231, 37]
