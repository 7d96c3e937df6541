"""Ranks that share a clip find the loss and every gradient of one process that holds it whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dynamictrl.sequence_parallel import shares

RANKS = Path(__file__).with_name("shared_clip_ranks.py")


@pytest.fixture(scope="module")
def differences(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, dict[str, dict[str, float]]]:
    """By number of ranks and case: how far loss and gradients are from one process's. One process forks all sizes."""
    mine = [item for item in request.session.items if isinstance(item, pytest.Function) and item.path == request.path]
    sizes = [item.callspec.params["ranks"] for item in mine if hasattr(item, "callspec")]
    folder = tmp_path_factory.mktemp("ranks")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(RANKS.parents[3])}
    subprocess.run([sys.executable, str(RANKS), str(folder), *map(str, sizes)], check=True, env=environment)
    return {size: json.loads((folder / f"{size}.json").read_text()) for size in sizes}


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.exhaustive), 4])
def test_loss_and_gradients_are_one_processs(differences: dict[int, dict[str, dict[str, float]]], ranks: int):
    assert len(differences[ranks]) > 10
    for case, found in differences[ranks].items():
        tolerance = 2e-1 if case == "bfloat16" else 1e-4
        wrong = {name: value for name, value in found.items() if not value < tolerance}
        assert wrong == {}, case
        assert found["loss"] < (1e-2 if case == "bfloat16" else 1e-6), case


def test_shares_differ_by_one_at_most():
    assert shares(30, 4) == (8, 8, 7, 7)
    assert shares(20_400, 4) == (5100,) * 4
    assert shares(3, 4) == (1, 1, 1, 0)
    assert shares(17_550, 4) == (4388, 4388, 4387, 4387)
