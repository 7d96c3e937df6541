"""LoRA runs: what learns, that a stop changes nothing, and the two forms of the export."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dynamictrl.errors import ConfigError
from training.checkpoints import on_disk
from training.config import Recipe, Run
from training.engine.starting_weights import load
from training.launch import check
from training.lora import Lora
from training.planning.plan import plan
from training.recipes import RECIPES, tiny_on_cpu
from training.run_folder import RunFolder
from training.trainer import train


@pytest.fixture
def recipe(tiny_model: Path) -> Recipe:
    small = tiny_on_cpu()
    return replace(
        small,
        model=replace(small.model, base=str(tiny_model)),
        lora=Lora(lora_rank=2, lora_alpha=4.0, lora_parts=("attention", "feed_forward", "pose_control")),
        optimization=replace(small.optimization, learning_rate=1e-2, schedule="constant"),
    )


def run_of(recipe: Recipe, data: Path, out: Path) -> Run:
    out.mkdir(exist_ok=True)
    return Run(name="tiny-on-cpu", data=data, out=out, recipe=recipe)


def transformer_weights(model: Path) -> dict[str, torch.Tensor]:
    return load_file(model / "transformer" / "diffusion_pytorch_model.safetensors")


def test_a_stopped_lora_run_ends_as_a_straight_one_and_exports_both_forms(
    recipe: Recipe, tiny_model: Path, small_dataset: Path, tmp_path: Path
):
    from dynamictrl.animation import DynamiCtrlPipeline

    straight = run_of(recipe, small_dataset, tmp_path / "straight")
    two = replace(recipe, optimization=replace(recipe.optimization, steps=2))
    train(run_of(two, small_dataset, tmp_path / "stopped"))
    train(run_of(recipe, small_dataset, tmp_path / "stopped"))
    model = train(straight)

    fused = transformer_weights(model)
    resumed = transformer_weights(RunFolder(tmp_path / "stopped").model)
    assert all(torch.equal(fused[name], resumed[name]) for name in fused)
    base = transformer_weights(tiny_model)
    assert fused.keys() == base.keys()
    changed = {name for name in base if not torch.equal(base[name], fused[name])}
    expected = ("attn1.to_", "ff.net.0.proj", "ff.net.2", "control_norm1.linear")
    assert changed == {name for name in base if name.endswith("weight") and any(part in name for part in expected)}

    pipeline = DynamiCtrlPipeline.from_pretrained(tiny_model)
    pipeline.load_lora_weights(model / "lora")
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    for name, value in pipeline.transformer.state_dict().items():
        torch.testing.assert_close(value, fused[name], rtol=0, atol=1e-6)
    assert "| LoRA | rank 2, scale 2, on attention" in (model / "README.md").read_text()


def test_checkpoints_of_a_lora_run_hold_the_adapter_alone(recipe: Recipe, small_dataset: Path, tmp_path: Path):
    train(run_of(recipe, small_dataset, tmp_path / "run"))
    found = on_disk.newest(RunFolder(tmp_path / "run").checkpoints)
    assert found is not None
    (file,) = found.folder.rglob("mp_rank_00_model_states.pt")
    names = list(torch.load(file, weights_only=False)["module"])
    assert names
    assert all(".lora_" in name for name in names)


def test_a_fresh_pose_control_learns_whole_beside_the_adapter(recipe: Recipe, small_dataset: Path, tmp_path: Path):
    whole = replace(recipe, model=replace(recipe.model, fresh_pose=True))
    whole = replace(whole, lora=Lora(lora_rank=2, lora_whole_pose=True))
    start = {name: p.detach().clone() for name, p in load(whole).transformer.named_parameters()}
    model = train(run_of(whole, small_dataset, tmp_path / "run"))

    fused = transformer_weights(model)
    for name in fused:
        before = start.get(name, start.get(".base_layer.".join(name.rsplit(".", 1))))
        assert before is not None
        learnt = ".control_norm1." in name or (name.endswith("weight") and ("attn1.to_" in name or ".ff." in name))
        assert torch.equal(before, fused[name]) != learnt, name
    assert not (model / "lora").exists()


def test_a_run_that_would_leave_a_fresh_pose_control_untrained_is_refused(
    recipe: Recipe, small_dataset: Path, tmp_path: Path
):
    fresh = replace(recipe, model=replace(recipe.model, fresh_pose=True))
    with pytest.raises(ConfigError, match="--lora-whole-pose True"):
        check(run_of(fresh, small_dataset, tmp_path / "run"))
    other = replace(recipe, model=replace(recipe.model, pose_control="cross_attention"))
    with pytest.raises(ConfigError, match="has 'padaln'"):
        check(run_of(other, small_dataset, tmp_path / "run"))
    check(run_of(recipe, small_dataset, tmp_path / "run"))
    check(run_of(RECIPES["dynamictrl-5b-lora"](), small_dataset, tmp_path / "run"))


def test_settings_out_of_range_and_conflicts_are_refused(recipe: Recipe):
    with pytest.raises(ConfigError, match="must be 0 or more"):
        Lora(lora_rank=-1)
    with pytest.raises(ConfigError, match="lora_dropout is 1"):
        Lora(lora_dropout=1.0)
    with pytest.raises(ConfigError, match="lora_parts is empty"):
        Lora(lora_parts=())
    with pytest.raises(ConfigError, match="learn_pose is off"):
        replace(recipe, model=replace(recipe.model, learn_pose=False))
    with pytest.raises(ConfigError, match="expert pose encoder learns whole"):
        replace(recipe, model=replace(recipe.model, pose_encoding="expert"))


def test_the_plan_counts_what_a_lora_really_trains(recipe: Recipe):
    for lora in (recipe.lora, Lora(lora_rank=3), Lora(lora_rank=2, lora_whole_pose=True), Lora()):
        changed = replace(recipe, lora=lora)
        learns = sum(p.numel() for p in load(changed).transformer.parameters() if p.requires_grad)
        assert plan(changed, gpus=1).trained == learns
    lean = [
        replace(made, speed=replace(made.speed, recompute="all"))
        for made in (RECIPES["dynamictrl-5b-lora"](), RECIPES["dynamictrl-5b"]())
    ]  # auto fills what a GPU has
    small, whole = (plan(made, gpus=1) for made in lean)
    assert small.fits
    assert small.total_gb < whole.total_gb / 2
