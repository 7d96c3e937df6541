"""The command `convert`, and runs that start from a plain CogVideoX folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from training.__main__ import main
from training.config import Run
from training.recipes import mini_from_base, tiny_on_cpu


@pytest.fixture(scope="module")
def plain_base(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's base as diffusers writes it: a stock class, no pose control."""
    from diffusers import CogVideoXImageToVideoPipeline, CogVideoXTransformer3DModel

    from dynamictrl import DynamiCtrlPipeline

    loaded = DynamiCtrlPipeline.from_pretrained(tiny_model)
    config = {key: value for key, value in loaded.transformer.config.items() if key != "pose_control"}
    stock = CogVideoXTransformer3DModel.from_config(config)
    parts = {name: getattr(loaded, name) for name in ("tokenizer", "text_encoder", "vae", "scheduler")}
    folder = tmp_path_factory.mktemp("plain") / "base"
    CogVideoXImageToVideoPipeline(**parts, transformer=stock).save_pretrained(folder)
    return folder


def test_the_command_says_what_it_did_and_refuses_in_one_line(
    plain_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "model"
    assert main(["convert", str(plain_base), "--out", str(out), "--expert-pose-encoder", "True"]) == 0
    said = capsys.readouterr().out
    assert "transformer_blocks.N.control_norm1.linear.weight (each block)" in said
    assert "input channels    32 -> 32" in said
    assert "8 new, 0 left out" in said
    index = json.loads((out / "model_index.json").read_text())
    assert index["transformer"] == ["dynamictrl.transformer", "DynamiCtrlTransformer3DModel"]
    assert index["pose_encoder"] == ["dynamictrl.pose_encoder", "PoseEncoder"]

    assert main(["convert", str(tmp_path), "--out", str(tmp_path / "other")]) == 2
    assert "no whole base: it lacks model_index.json" in capsys.readouterr().err
    assert main(["convert", "--out", str(tmp_path / "other")]) == 2
    assert "name a CogVideoX folder" in capsys.readouterr().err
    assert main(["convert", str(plain_base), "--out", str(out)]) == 2
    assert "choose another --out" in capsys.readouterr().err


def test_a_run_starts_from_a_plain_cogvideox_folder(plain_base: Path, small_dataset: Path, tmp_path: Path):
    from training.trainer import train

    small = tiny_on_cpu()
    recipe = replace(
        small,
        model=replace(mini_from_base().model, base=str(plain_base)),
        optimization=replace(small.optimization, steps=1),
    )
    (tmp_path / "run").mkdir()
    model = train(Run(name="mini-from-base", data=small_dataset, out=tmp_path / "run", recipe=recipe))
    before = load_file(plain_base / "transformer" / "diffusion_pytorch_model.safetensors")
    after = load_file(model / "transformer" / "diffusion_pytorch_model.safetensors")
    assert len(after.keys() - before.keys()) == 8
    assert before.keys() <= after.keys()
