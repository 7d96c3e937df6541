"""The same suite with the last 2.x of the stock client, which `make setup` puts beside the environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SECOND = ROOT / ".venv" / "openai2"


def test_the_last_2x_passes_the_whole_suite(service: Any):
    if not (SECOND / "openai").is_dir():
        pytest.skip("the last 2.x of openai is not here; `make setup` puts it into .venv/openai2")
    paths = [str(SECOND), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "DYNAMICTRL_TEST_SERVED": service.to_json()}
    version = subprocess.run(
        [sys.executable, "-c", "import openai; print(openai.__version__)"], env=environment, capture_output=True,
        text=True, check=True
    )  # fmt: skip
    assert version.stdout.startswith("2.")
    suite = Path(__file__).with_name("test_openai_sdk.py")
    words = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(suite)]
    run = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert "skipped" not in run.stdout
