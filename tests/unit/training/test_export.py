"""A model folder from a checkpoint, without an engine: the very weights, whatever the ZeRO stage, and its card."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file

from dynamictrl.errors import CheckpointError, ConfigError
from dynamictrl.samples.shards import write_json
from training.checkpoints import on_disk
from training.config import Recipe, Run
from training.lora import Lora
from training.recipes import tiny_on_cpu
from training.release import model_card
from training.release.export import export_checkpoint
from training.run_folder import RunFolder
from training.settings.export import Export
from training.trainer import train

FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def recipe(tiny_model: Path) -> Recipe:
    small = tiny_on_cpu()
    return replace(
        small,
        model=replace(small.model, base=str(tiny_model)),
        optimization=replace(small.optimization, steps=2, learning_rate=1e-2),
        workers=replace(small.workers, precision="bf16"),
    )


def trained(recipe: Recipe, data: Path, out: Path) -> Run:
    """A run brought to its end, with its settings on disk as `launch` leaves them."""
    run = Run(name="tiny-on-cpu", data=data, out=out, recipe=recipe)
    RunFolder(out).claim(run, "0")
    train(run)
    return run


def weights(model: Path, part: str = "transformer") -> dict[str, torch.Tensor]:
    return load_file(model / part / FILE)


def still(recipe: Recipe, zero_stage: Literal[0, 1, 2, 3] = 2, lora: Lora | None = None) -> Recipe:
    """The recipe with a learning rate of nothing."""
    return replace(
        recipe,
        lora=lora or Lora(),
        optimization=replace(recipe.optimization, steps=1, learning_rate=0.0, ema_decay=0.9),
        workers=replace(recipe.workers, zero_stage=zero_stage),
    )


@pytest.mark.parametrize(
    ("zero_stage", "lora"), [(2, None), (3, None), (2, Lora(lora_rank=2))], ids=["zero 2", "zero 3", "lora"]
)
def test_a_learning_rate_of_nothing_gives_the_base_back_from_end_and_checkpoint(
    recipe: Recipe, small_dataset: Path, tmp_path: Path, zero_stage: Literal[2, 3], lora: Lora | None
):
    run = trained(still(recipe, zero_stage, lora), small_dataset, tmp_path / "run")
    raw = export_checkpoint(run.out, Export(out=tmp_path / "raw", weights="raw"))
    averaged = export_checkpoint(run.out, Export(out=tmp_path / "averaged", step=1))

    base = {name: value.bfloat16() for name, value in weights(Path(recipe.model.base)).items()}
    for model in (RunFolder(run.out).model, raw, averaged):
        found = weights(model)
        assert found.keys() == base.keys()
        assert all(torch.equal(found[name], base[name]) for name in base)
    assert (raw / "lora").is_dir() == (lora is not None)


def test_a_checkpoint_exports_what_the_run_exported_and_the_raw_weights_beside(
    recipe: Recipe, small_dataset: Path, tmp_path: Path
):
    expert = replace(
        recipe,
        model=replace(recipe.model, pose_encoding="expert"),
        optimization=replace(recipe.optimization, ema_decay=0.5),
    )
    run = trained(expert, small_dataset, tmp_path / "run")
    model = RunFolder(run.out).model
    averaged = export_checkpoint(run.out, Export(out=tmp_path / "averaged"))
    raw = export_checkpoint(run.out, Export(out=tmp_path / "raw", weights="raw"))

    for part in ("transformer", "pose_encoder"):
        one, two, other = weights(model, part), weights(averaged, part), weights(raw, part)
        assert all(torch.equal(one[name], two[name]) for name in one)
        assert any(not torch.equal(one[name], other[name]) for name in one)
    assert json.loads((raw / "training.json").read_text())["step"] == 2

    with pytest.raises(ConfigError, match="exists already"):
        export_checkpoint(run.out, Export(out=raw))
    with pytest.raises(ConfigError, match="it has 2"):
        export_checkpoint(run.out, Export(out=tmp_path / "none", step=7))
    with pytest.raises(ConfigError, match="holds no run"):
        export_checkpoint(tmp_path / "nowhere", Export(out=tmp_path / "none"))
    for shard in (run.out / "checkpoints").glob("*/average/*.pt"):
        held = torch.load(shard, weights_only=True)
        held.pop("transformer.proj_out.weight")
        torch.save(held, shard)
    with pytest.raises(CheckpointError, match="proj_out.weight"):
        export_checkpoint(run.out, Export(out=tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_a_run_without_an_average_says_so_when_asked_for_it(recipe: Recipe, small_dataset: Path, tmp_path: Path):
    once = replace(recipe, optimization=replace(recipe.optimization, steps=1))
    run = trained(once, small_dataset, tmp_path / "run")

    with pytest.raises(ConfigError, match="--weights raw"):
        export_checkpoint(run.out, Export(out=tmp_path / "out", weights="ema"))
    assert on_disk.newest(RunFolder(run.out).checkpoints) is not None


def test_the_card_names_data_licences_results_and_has_front_matter_that_can_be_read(tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as parquet
    import yaml

    data, out = tmp_path / "dancers", tmp_path / "run"
    data.mkdir()
    write_json(data / "dataset.json", {"counts": {"kept": 3}, "seconds": {"kept": 5400.0}})
    rows = {"licence": ["CC-BY-4.0", "CC-BY-4.0", "", "MIT"], "reason": ["", "", "", "too_short"]}
    parquet.write_table(pa.table(rows), data / "manifest.parquet")
    recipe = replace(tiny_on_cpu(), model=replace(tiny_on_cpu().model, base="zai-org/CogVideoX1.5-5B-I2V"))
    folder = out / "validation" / "step-00000004"
    folder.mkdir(parents=True)
    told = {
        "step": 4, "identity": "a", "mean": {"model": {"psnr": 21.5, "ssim": 0.7}}, "per_clip": {"k1": {}, "k2": {}},
        "seconds": 1.0, "finished": 2.0,
    }  # fmt: skip
    write_json(folder / "metrics.json", told)
    run = Run(name="tiny-on-cpu", data=data, out=out, recipe=recipe)
    text = model_card.model_card(run, {"last_loss": 0.25, "mini": False}, 4)

    _, front, body = text.split("---\n", 2)
    matter = yaml.safe_load(front)
    assert matter["library_name"] == "diffusers"
    assert matter["base_model"] == "zai-org/CogVideoX1.5-5B-I2V"
    assert "| licences of the data | CC-BY-4.0 (2 clips), not stated (1 clips) |" in body
    assert "| hours of the data set | 1.5 |" in body
    assert "| PSNR* (dB) | 21.5 | higher |" in body
    assert "`k1`, `k2`" in body
    assert "MIT" not in body
