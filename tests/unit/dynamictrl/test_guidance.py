"""Guidance's two branches: what depends on the pose alone is computed once, and two or four processes share a clip."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dynamictrl.mini.tiny import TEXT_WIDTH, tiny_transformer
from dynamictrl.pose_control import POSE_CONTROLS
from dynamictrl.positions import rotary_positions
from dynamictrl.transformer import DynamiCtrlTransformer3DModel

RANKS = Path(__file__).with_name("guidance_ranks.py")


def inputs(model: DynamiCtrlTransformer3DModel, clips: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "hidden_states": draw(2 * clips, 4, 32, 12, 8),
        "encoder_hidden_states": draw(2 * clips, 5, TEXT_WIDTH),
        "timestep": torch.full((2 * clips,), 500),
        "control_hidden_states": draw(clips, 4, 16, 12, 8),
        "ofs": torch.tensor([2.0]),
        "image_rotary_emb": rotary_positions(model.config, 4, 12, 8, "cpu"),
    }


@pytest.mark.parametrize("clips", [1, 2])
@pytest.mark.parametrize("control", POSE_CONTROLS)
def test_one_branchs_poses_serve_both(control: str, clips: int):
    torch.manual_seed(0)
    model = tiny_transformer(pose_control=control).eval()
    given = inputs(model, clips)
    doubled = {**given, "control_hidden_states": torch.cat([given["control_hidden_states"]] * 2)}
    with torch.no_grad():
        shared, whole = model(**given).sample, model(**doubled).sample
    assert torch.allclose(shared, whole, atol=1e-6), (shared - whole).abs().max()


def test_the_pose_stream_is_computed_for_one_branch():
    model = tiny_transformer().eval()
    seen: list[int] = []
    for block in model.transformer_blocks:
        block.control_norm1.norm.register_forward_hook(lambda _m, given, _out: seen.append(len(given[0])))
    with torch.no_grad():
        model(**inputs(model, 1))
    assert seen == [1, 1]


@pytest.fixture(scope="module")
def differences(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    """By number of processes: how far their clips' latents are from one process's, guided and not."""
    out = tmp_path_factory.mktemp("guidance") / "found.json"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(RANKS.parents[3])}
    subprocess.run([sys.executable, str(RANKS), str(tiny_model), str(out), "2", "4"], check=True, env=environment)
    return json.loads(out.read_text())


@pytest.mark.parametrize("ranks", ["2", "4"])
def test_processes_that_share_a_clip_find_one_processs(differences: dict[str, dict[str, float]], ranks: str):
    assert set(differences[ranks]) == {"guided", "unguided", "windows"}
    # The clips differ from their noise by about 1; a step's rounding is 1e-6 of that.
    assert max(differences[ranks].values()) < 1e-4
