"""What the training tests share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from training.config import Recipe, Run
from training.recipes import tiny_on_cpu


class Sessions:
    """Trains in processes of their own; `training_sessions.py` says what a job may hold."""

    def __init__(self, process: subprocess.Popen[str]):
        self._process = process

    def train(self, run: Run, workers: int = 1, **job: Any) -> list[int]:
        """The workers' exit codes, minus the signal's number for one that was killed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"run": run.to_dict(), "workers": workers} | job) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


@pytest.fixture(scope="session")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sessions]:
    """One process that forks a worker for each session, so that the imports are paid once."""
    log = tmp_path_factory.mktemp("sessions") / "log.txt"
    root = Path(__file__).parents[3]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(root)}
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("training_sessions.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream, text=True, env=environment, cwd=root,
        )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", log.read_text()
    yield Sessions(process)
    assert process.stdin is not None
    process.stdin.close()
    process.wait()


@pytest.fixture
def one_thread_recipe(tiny_model: Path) -> Recipe:
    """Four steps of the tiny model, a checkpoint after every second, the same bits in every process."""
    small = tiny_on_cpu()
    return replace(
        small,
        model=replace(small.model, base=str(tiny_model)),
        workers=replace(small.workers, threads_per_worker=1),
        checkpoints=replace(small.checkpoints, checkpoint_every=2, keep_checkpoints=2),
    )
