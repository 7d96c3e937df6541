"""What a call may leave out or round: 8-bit products, steps taken from a cache, our own attention."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dynamictrl import DynamiCtrlPipeline
from dynamictrl.acceleration import EXACT, Acceleration, Shortcuts, attention_kernels
from dynamictrl.acceleration.accelerate import accelerate, accelerate_vae, tokens
from dynamictrl.acceleration.attention_kernels import Choice
from dynamictrl.acceleration.float8_linear import Float8Linear, in_8_bits, multiplying_in_8_bits
from dynamictrl.acceleration.step_cache import StepCache
from dynamictrl.errors import ConfigError
from dynamictrl.lora import add_lora
from dynamictrl.mini.tiny import tiny_transformer

POSES = np.random.default_rng(0).integers(0, 255, (17, 96, 64, 3), dtype=np.uint8)


@pytest.fixture
def pipeline(tiny_model: Path) -> DynamiCtrlPipeline:
    loaded = DynamiCtrlPipeline.from_pretrained(tiny_model)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def render(pipeline: DynamiCtrlPipeline, shortcuts: Shortcuts = EXACT, frames: int = 9, **more: Any) -> np.ndarray:
    return pipeline(
        Image.fromarray(POSES[0]), POSES[:frames], "a person", num_inference_steps=6, shortcuts=shortcuts,
        generator=torch.Generator().manual_seed(0), output_type="np", **more,
    ).frames[0]  # fmt: skip


def test_a_model_that_is_prepared_for_everything_still_renders_the_same(pipeline: DynamiCtrlPipeline):
    wanted, keys = render(pipeline), list(pipeline.transformer.state_dict())
    how = Acceleration(attention="math", float8=True, fast_vae=True)
    try:
        accelerate(pipeline.transformer, how, shape=(64, 96, 9))
        accelerate_vae(pipeline.vae, how)
        np.testing.assert_allclose(render(pipeline), wanted, atol=1e-4)
    finally:
        attention_kernels.prefer_default()
    assert list(pipeline.transformer.state_dict()) == keys


def test_steps_from_the_cache_are_near_and_the_first_and_last_are_computed(pipeline: DynamiCtrlPipeline):
    exact = render(pipeline)
    near = render(pipeline, Shortcuts(step_cache=9.0))
    assert pipeline.step_caches[0].computed == [0, 2, 4, 5]
    assert 0 < np.abs(near - exact).mean() < 0.05
    far = render(pipeline, Shortcuts(step_cache=9.0, steps_in_a_row=9))
    assert pipeline.step_caches[0].computed == [0, 5]
    assert np.abs(far - exact).mean() > np.abs(near - exact).mean()
    # Nothing of a call is left for the next, and none is taken where no step is near enough.
    np.testing.assert_array_equal(render(pipeline, Shortcuts(step_cache=9.0)), near)
    np.testing.assert_array_equal(render(pipeline, Shortcuts(step_cache=1e-9)), exact)
    np.testing.assert_array_equal(render(pipeline), exact)


def test_each_window_of_a_long_clip_has_a_cache_of_its_own(pipeline: DynamiCtrlPipeline):
    render(pipeline, Shortcuts(step_cache=9.0), 17, window_frames=13, window_overlap=4)
    assert [cache.computed for cache in pipeline.step_caches] == [[0, 2, 4, 5]] * 2


def test_a_step_is_reused_where_the_first_block_changes_less_than_the_threshold():
    cache, rest = StepCache(0.1, 6, in_a_row=2), torch.full((1, 2, 3), 7.0)
    steps = [1.0, 1.05, 1.2, 1.19, 1.18, 1.2]
    reused = []
    for change in steps:
        found = cache.rest(torch.full((1, 2, 3), change))
        reused.append(found is not None)
        if found is None:
            cache.keep(rest)
        else:
            assert found is rest
    # 1.2 differs by 0.2 from the last computed step; the two after it do not, and the last is always computed.
    assert reused == [False, True, False, True, True, False]
    assert cache.computed == [0, 2, 5]


def test_8_bit_products_are_near_and_off_again_after_the_call(pipeline: DynamiCtrlPipeline):
    with pytest.raises(ConfigError, match=r"Acceleration\.float8"):
        render(pipeline, Shortcuts(float8=True))
    exact = render(pipeline)
    accelerate(pipeline.transformer, Acceleration(float8=True))
    rounded = render(pipeline, Shortcuts(float8=True))
    assert 0 < np.abs(rounded - exact).mean() < 0.02
    np.testing.assert_array_equal(render(pipeline), exact)


def test_rows_in_8_bits_keep_their_own_scale():
    x = torch.randn(4, 32) * torch.tensor([1e-6, 1.0, 50.0, 1e4])[:, None]
    eight, scale = in_8_bits(x)
    error = (eight.float() * scale - x).norm(dim=1) / x.norm(dim=1)
    assert error.max() < 0.04
    torch.testing.assert_close(in_8_bits(torch.zeros(2, 16))[0].float(), torch.zeros(2, 16))


def test_a_weight_that_an_adapter_changes_is_rounded_anew():
    transformer = tiny_transformer("1.5", num_layers=1, num_attention_heads=2, attention_head_dim=16)
    accelerate(transformer, Acceleration(float8=True))
    layers = [module for module in transformer.modules() if isinstance(module, Float8Linear)]
    assert len(layers) == 6
    layers[0].weight.data *= 3  # as PEFT fuses: torch counts no change
    with multiplying_in_8_bits(transformer, True):
        assert all(layer.float8 for layer in layers)
        kept: Any = layers[0].weight_scale
        torch.testing.assert_close(kept, in_8_bits(layers[0].weight.detach())[1])
    assert not any(layer.float8 for layer in layers)


def test_an_adapter_sits_on_prepared_layers(pipeline: DynamiCtrlPipeline):
    accelerate(pipeline.transformer, Acceleration(float8=True))
    exact = render(pipeline, Shortcuts(float8=True))
    add_lora(pipeline.transformer, rank=2)
    np.testing.assert_allclose(render(pipeline, Shortcuts(float8=True)), exact, atol=0.05)


def test_compiled_blocks_serve_every_shortcut_without_a_graph_for_each_step(
    pipeline: DynamiCtrlPipeline, fresh_compiler: None
):
    from torch._dynamo.utils import counters

    from dynamictrl.acceleration import compilation

    both = Shortcuts(float8=True, step_cache=9.0)
    accelerate(pipeline.transformer, Acceleration(float8=True))
    wanted = [render(pipeline), render(pipeline, both)]
    compilation.compile_blocks(pipeline.transformer, backend="aot_eager")
    counters.clear()
    for turn in range(2):
        for shortcuts, plain in zip((Shortcuts(), both), wanted, strict=True):
            np.testing.assert_allclose(render(pipeline, shortcuts), plain, atol=2e-3)
        graphs = counters["stats"]["unique_graphs"]
        assert graphs == 2, turn
    assert not counters["graph_break"]


def test_tokens_are_those_of_the_released_sizes():
    config = {"patch_size": 2, "patch_size_t": 2, "max_text_seq_length": 226}
    assert tokens((1360, 768, 37), config) == 20_626
    assert tokens((1024, 576, 37), config) == 11_746
    assert tokens((1360, 768, 37), {**config, "patch_size_t": None}) == 41_026


def attention_against_torch(device: str, dtype: torch.dtype, width: int, tolerance: float) -> None:
    """Our kernel on sizes that fill no tile, with logits small enough for the bound and too large for it."""
    from dynamictrl.acceleration.triton_attention import attend

    for size in (1.0, 8.0):
        torch.manual_seed(0)
        q, k, v = (torch.randn(2, 150, 2, width, device=device).to(dtype).transpose(1, 2) for _ in range(3))
        wanted = torch.nn.functional.scaled_dot_product_attention(size * q.double(), k.double(), v.double())
        found = attend(size * q, k, v)
        assert found.stride() == (150 * 2 * width, width, 2 * width, 1)
        assert float((found.double() - wanted).norm() / wanted.norm()) < tolerance


def test_our_attention_gives_torch_s_numbers_in_triton_s_interpreter():
    pytest.importorskip("triton")
    code = (
        "import sys, torch; sys.path.insert(0, 'tests/unit/dynamictrl'); import test_shortcuts as t; "
        "t.attention_against_torch('cpu', torch.float32, 16, 1e-5)"
    )
    asked = [sys.executable, "-c", code]
    done = subprocess.run(asked, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_our_attention_gives_torch_s_numbers_on_the_gpu():
    attention_against_torch("cuda", torch.bfloat16, 64, 8e-3)


def test_blocks_with_long_queries_or_keys_keep_torch_s_attention():
    transformer = tiny_transformer("1.5", num_layers=3, num_attention_heads=2, attention_head_dim=64)
    blocks: Any = transformer.transformer_blocks
    with torch.no_grad():
        blocks[1].attn1.norm_q.weight.fill_(3.0)
        blocks[1].attn1.norm_k.bias.fill_(2.0)
    try:
        ours = Choice("triton", heads_first=True)
        count = attention_kernels.use_own_where_bounded(transformer, ours, Choice("math", heads_first=False))
    finally:
        attention_kernels.prefer_default()
    found = [(block.attn1.processor.kernel, block.attn1.processor.heads_first) for block in blocks]
    assert found == [("triton", True), ("torch", False), ("triton", True)]
    assert count == 2


def test_our_attention_is_passed_over_where_it_cannot_run():
    times = attention_kernels.probe(
        (1, 2, 64, 16), torch.device("cpu"), torch.float32, ("math", "triton"), backward=False
    )
    assert {choice.kernel for choice in times} == {"math"}
