"""Units whose worker process dies: charged after a finite number of deaths, in one run, and no neighbour with them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.records import attempts


def dies_in_an_attempt(work: Path, run_id: str, *units: str) -> None:
    """A process of its own that is killed while it works on units."""
    program = (
        "import os, signal, sys; from pathlib import Path; from pipelines.records import attempts\n"
        "with attempts.attempt(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]): os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = str(Path(attempts.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", program, str(work), run_id, *units], env={**os.environ, "PYTHONPATH": root}, check=False
    )
    assert done.returncode == -signal.SIGKILL


def test_every_death_is_counted_and_an_attempt_that_ends_is_none(tmp_path: Path):
    with attempts.attempt(tmp_path, "run", ["a"]):
        assert attempts.made(tmp_path, "run", "a") == 1
    assert attempts.made(tmp_path, "run", "a") == 0
    for count in range(1, attempts.MOST + 1):
        dies_in_an_attempt(tmp_path, "run", "a")
        assert attempts.made(tmp_path, "run", "a") == count
    attempts.forget(tmp_path, "run", ["a"])
    assert attempts.made(tmp_path, "run", "a") == 0


def test_an_error_that_is_raised_is_no_death(tmp_path: Path):
    with pytest.raises(OSError, match="full"), attempts.attempt(tmp_path, "run", ["a"]):
        raise OSError("the disk is full")
    assert attempts.made(tmp_path, "run", "a") == 0


def test_what_one_run_left_is_not_charged_in_the_next(tmp_path: Path):
    dies_in_an_attempt(tmp_path, "first", "a")
    assert attempts.made(tmp_path, "second", "a") == 0
    attempts.sweep(tmp_path)
    assert not (tmp_path / "attempts").exists()


def test_units_that_died_together_are_tried_alone_afterwards(tmp_path: Path):
    assert attempts.split(tmp_path, "run", ["a", "b", "c"]) == ([], ["a", "b", "c"])
    dies_in_an_attempt(tmp_path, "run", "a", "b")
    assert attempts.split(tmp_path, "run", ["a", "b", "c"]) == (["a", "b"], ["c"])
    with attempts.attempt(tmp_path, "run", ["b"]):
        pass
    assert attempts.split(tmp_path, "run", ["a", "b", "c"]) == (["a"], ["b", "c"])


def test_without_a_run_nothing_is_marked(tmp_path: Path):
    with attempts.attempt(tmp_path, "", ["a"]):
        assert list(tmp_path.iterdir()) == []
