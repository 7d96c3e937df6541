"""LoRA adapters: harmless at the start, the same after a save, a fusion and its undoing, refused where they misfit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from PIL import Image
from safetensors.torch import load_file, save_file

from dynamictrl.animation import DynamiCtrlPipeline
from dynamictrl.errors import CheckpointError, ConfigError
from dynamictrl.lora import Part, adapter_weights, add_lora, fused_weights, save_lora
from dynamictrl.mini.tiny import TEXT_TOKENS, tiny_transformer, write_tiny_model
from dynamictrl.positions import rotary_positions
from dynamictrl.transformer import DynamiCtrlTransformer3DModel

ALL: tuple[Part, ...] = ("attention", "feed_forward", "pose_control")


def output(transformer: DynamiCtrlTransformer3DModel, **kwargs: Any) -> torch.Tensor:
    """What the transformer makes of always the same input."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 4, 32, 6, 4, generator=generator)
    return transformer(
        hidden_states=noise,
        encoder_hidden_states=torch.randn(1, TEXT_TOKENS, 32, generator=generator),
        timestep=torch.tensor([500]),
        control_hidden_states=noise[:, :, :16],
        ofs=torch.tensor([2.0]),
        image_rotary_emb=rotary_positions(transformer.config, 4, 6, 4, "cpu"),
        **kwargs,
    ).sample


def learn(transformer: DynamiCtrlTransformer3DModel, steps: int = 3) -> list[float]:
    """A few steps towards zero; the losses."""
    learns = [p for p in transformer.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learns, lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = output(transformer).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def pipeline(folder: Path) -> DynamiCtrlPipeline:
    return fresh(folder)


def fresh(folder: Path) -> DynamiCtrlPipeline:
    pipeline = DynamiCtrlPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def clip(pipeline: DynamiCtrlPipeline) -> torch.Tensor:
    poses = np.random.default_rng(0).integers(0, 255, (5, 48, 32, 3), dtype=np.uint8)
    made: Any = pipeline(
        Image.fromarray(poses[0]), poses, "a person", num_inference_steps=2, output_type="latent",
        generator=torch.Generator().manual_seed(0)
    )  # fmt: skip
    return made.frames


def trained_lora(folder: Path, out: Path, **settings: Any) -> Path:
    transformer = fresh(folder).transformer
    torch.manual_seed(0)
    add_lora(transformer, **({"rank": 4, "alpha": 8.0, "parts": ALL} | settings))
    learn(transformer)
    return save_lora(transformer, out)


@pytest.mark.parametrize("parts", [("attention",), ("attention", "feed_forward"), ALL])
@pytest.mark.parametrize("pose_control", ["padaln", "cross_attention"])
def test_a_new_adapter_changes_nothing_and_is_all_that_learns(pose_control: str, parts: tuple[Part, ...]):
    transformer = tiny_transformer(pose_control=pose_control).eval()
    before = output(transformer)
    plain = {name: p.detach().clone() for name, p in transformer.named_parameters()}
    add_lora(transformer, rank=4, parts=parts)

    assert torch.equal(output(transformer), before)
    learns = {name for name, p in transformer.named_parameters() if p.requires_grad}
    assert learns
    assert all(".lora_" in name for name in learns)
    assert any("control_norm1" in name for name in learns) == ("pose_control" in parts)
    losses = learn(transformer)
    assert losses[-1] < losses[0]
    after = {name.replace(".base_layer.", "."): p for name, p in transformer.named_parameters() if ".lora_" not in name}
    assert all(torch.equal(after[name], value) for name, value in plain.items())


def test_a_saved_adapter_gives_the_same_clip_in_a_fresh_pipeline(folder: Path, tmp_path: Path):
    first = fresh(folder)
    plain = clip(first)
    torch.manual_seed(0)
    add_lora(first.transformer, rank=4, alpha=8.0, parts=ALL)
    learn(first.transformer)
    changed = clip(first)
    file = save_lora(first.transformer, tmp_path)

    names = list(load_file(file))
    assert "transformer.transformer_blocks.0.attn1.to_q.lora_A.weight" in names
    assert "transformer.transformer_blocks.1.control_norm1.linear.lora_B.weight" in names
    for source in (tmp_path, file, str(file), load_file(file)):
        second = fresh(folder)
        scale = {} if not isinstance(source, dict) else {"adapter_name": "no_header_no_alpha"}
        second.load_lora_weights(source, **scale)
        same = torch.allclose(clip(second), changed, atol=1e-6)
        # A bare state dict has no header, so alpha is taken to be the rank.
        assert same == (not isinstance(source, dict))
        second.unload_lora_weights()
        torch.testing.assert_close(clip(second), plain, rtol=0, atol=0)


def test_fused_is_unfused_and_unfusing_restores(folder: Path, tmp_path: Path):
    trained_lora(folder, tmp_path)
    pipeline = fresh(folder)
    plain = output(pipeline.transformer)
    pipeline.load_lora_weights(tmp_path, adapter_name="dance")
    loose = output(pipeline.transformer)
    assert not torch.allclose(loose, plain, atol=1e-3)

    pipeline.fuse_lora(adapter_names=["dance"])
    torch.testing.assert_close(output(pipeline.transformer), loose, rtol=0, atol=1e-5)
    pipeline.unfuse_lora()
    torch.testing.assert_close(output(pipeline.transformer), loose, rtol=0, atol=1e-5)
    pipeline.disable_lora()
    torch.testing.assert_close(output(pipeline.transformer), plain, rtol=0, atol=1e-5)


def test_a_fused_pipeline_is_saved_as_a_plain_model(folder: Path, tmp_path: Path):
    trained_lora(folder, tmp_path)
    pipeline = fresh(folder)
    pipeline.load_lora_weights(tmp_path)
    loose = output(pipeline.transformer)
    with pytest.raises(ConfigError, match="fuse_lora"):
        pipeline.save_pretrained(tmp_path / "model")
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    pipeline.save_pretrained(tmp_path / "model")
    torch.testing.assert_close(output(fresh(tmp_path / "model").transformer), loose, rtol=0, atol=1e-5)


def test_adapters_have_names_and_scales(folder: Path, tmp_path: Path):
    trained_lora(folder, tmp_path)
    pipeline = fresh(folder)
    plain = output(pipeline.transformer)
    pipeline.load_lora_weights(tmp_path, adapter_name="dance")
    pipeline.load_lora_weights(tmp_path, adapter_name="style")
    assert pipeline.get_list_adapters() == {"transformer": ["dance", "style"]}
    assert pipeline.get_active_adapters() == ["style"]

    whole = output(pipeline.transformer)
    pipeline.set_adapters(["dance", "style"], [0.5, 0.5])
    torch.testing.assert_close(output(pipeline.transformer), whole, rtol=0, atol=1e-5)
    pipeline.set_adapters("dance", 0.0)
    torch.testing.assert_close(output(pipeline.transformer), plain, rtol=0, atol=1e-6)
    pipeline.set_adapters("dance", 1.0)
    silent = output(pipeline.transformer, attention_kwargs={"scale": 0.0})
    torch.testing.assert_close(silent, plain, rtol=0, atol=1e-6)
    pipeline.delete_adapters("style")
    assert pipeline.get_list_adapters() == {"transformer": ["dance"]}


def test_weights_are_fused_as_peft_fuses_them(folder: Path):
    transformer = fresh(folder).transformer
    torch.manual_seed(0)
    add_lora(transformer, rank=4, alpha=2.0, parts=ALL)
    learn(transformer)
    state = {name: value.clone() for name, value in transformer.state_dict().items()}
    mine = fused_weights(state, scale=0.5)
    transformer.fuse_lora()
    transformer.unload_lora()

    theirs = transformer.state_dict()
    assert list(mine) == list(theirs)
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value, rtol=0, atol=1e-6)
    assert len(adapter_weights(state)) == 2 * len([name for name in state if name.endswith("lora_A.default.weight")])


def test_a_lora_of_the_base_loads_into_dynamictrl(pipeline: DynamiCtrlPipeline, tmp_path: Path):
    from diffusers import CogVideoXPipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    known = CogVideoXTransformer3DModel._get_init_keys(CogVideoXTransformer3DModel)
    config = {k: v for k, v in pipeline.transformer.config.items() if k in known} | {"in_channels": 16}
    base = CogVideoXTransformer3DModel(**config)
    base.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    for name, parameter in base.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    layers: Any = get_peft_model_state_dict(base)
    CogVideoXPipeline.save_lora_weights(tmp_path, transformer_lora_layers=layers)

    before = output(pipeline.transformer)
    pipeline.load_lora_weights(tmp_path)
    assert not torch.allclose(output(pipeline.transformer), before, atol=1e-4)
    loaded = pipeline.transformer.state_dict()["transformer_blocks.1.attn1.to_v.lora_B.default_0.weight"]
    assert torch.equal(loaded, layers["transformer_blocks.1.attn1.to_v.lora_B.weight"])


def test_older_names_and_alphas_are_understood(folder: Path, tmp_path: Path):
    file = trained_lora(folder, tmp_path)
    pipeline = fresh(folder)
    pipeline.load_lora_weights(file)
    expected = output(pipeline.transformer)

    state = load_file(file)
    old = {k.replace("lora_A.", "lora.down.").replace("lora_B.", "lora.up."): v for k, v in state.items()}
    old |= {k.replace("lora_A.weight", "alpha"): torch.tensor(8.0) for k in state if k.endswith("lora_A.weight")}
    own = {"base_model.model." + k.removeprefix("transformer."): v for k, v in old.items()}
    for i, names in enumerate((old, own)):
        save_file(names, tmp_path / f"old{i}.safetensors")
        pipeline = fresh(folder)
        pipeline.load_lora_weights(tmp_path / f"old{i}.safetensors")
        torch.testing.assert_close(output(pipeline.transformer), expected, rtol=0, atol=1e-6)


def test_a_lora_of_another_shape_is_refused_and_leaves_the_model_as_it_was(pipeline: DynamiCtrlPipeline):
    before = output(pipeline.transformer)
    name = "transformer.transformer_blocks.0.attn1.to_q"
    wide = {f"{name}.lora_A.weight": torch.zeros(2, 48), f"{name}.lora_B.weight": torch.zeros(48, 2)}
    with pytest.raises(CheckpointError, match=r"attn1.to_q is \[48, 48\] and this layer is \[32, 32\]"):
        pipeline.load_lora_weights(wide)
    ninth = {k.replace(".0.", ".9.", 1): v for k, v in wide.items()}
    with pytest.raises(CheckpointError, match="has no layer"):
        pipeline.load_lora_weights(ninth)
    with pytest.raises(CheckpointError, match="no LoRA for a video transformer"):
        pipeline.load_lora_weights({"unet.lora.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="does not exist"):
        pipeline.load_lora_weights("./nowhere")
    assert torch.equal(output(pipeline.transformer), before)
    assert not getattr(pipeline.transformer, "peft_config", None)


def test_a_damaged_file_is_refused(pipeline: DynamiCtrlPipeline, tmp_path: Path):
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match="cannot be read"):
        pipeline.load_lora_weights(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank of a LoRA is 0"),
        ({"dropout": 1.0}, "dropout of a LoRA is 1.0"),
        ({"parts": ()}, "choose of attention, feed_forward, pose_control"),
        ({"parts": ("ff",)}, "choose of attention, feed_forward, pose_control"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        add_lora(tiny_transformer(), **settings)


def test_a_pose_control_without_layers_is_named():
    with pytest.raises(ConfigError, match="'direct_addition' has no linear layers"):
        add_lora(tiny_transformer(pose_control="direct_addition"), parts=("attention", "pose_control"))


def test_without_peft_the_error_names_the_extra(pipeline: DynamiCtrlPipeline, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"dynamictrl\[lora\]"):
        add_lora(pipeline.transformer)
    with pytest.raises(ConfigError, match=r"dynamictrl\[lora\]"):
        pipeline.load_lora_weights("./nowhere")
