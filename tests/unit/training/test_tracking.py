"""The run's MLflow run: one whatever dies on the way, none where none is wanted, whole once the server is back."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from training.__main__ import main
from training.config import Run
from training.recipes import RECIPES
from training.release import provenance, registering, tracking

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _own_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def a_run(data: Path, out: Path) -> Run:
    return Run(name="dynamictrl-2b", data=data, out=out, recipe=RECIPES["dynamictrl-2b"]())


def opened(run: Run) -> tracking.TrackedRun:
    tracked = tracking.open_run(run)
    assert tracked is not None
    return tracked


def test_a_session_that_died_before_it_wrote_down_its_mlflow_run_makes_no_second(small_dataset: Path, tmp_path: Path):
    run = a_run(small_dataset, tmp_path / "run")
    first = opened(run)
    (run.out / tracking.MARKER).unlink()

    second = opened(run)

    assert second == first
    client = first.client()
    (found,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert found.info.status == "RUNNING"
    assert {file.path for file in client.list_artifacts(first.run_id)} == {
        "dataset.json", "environment.json", "plan.txt", "recipe.json",
    }  # fmt: skip


def test_two_runs_of_one_name_on_one_server_stay_two(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'shared.db'}")
    first = opened(a_run(small_dataset, tmp_path / "a" / "run"))
    second = opened(a_run(small_dataset, tmp_path / "b" / "run"))

    assert first.run_id != second.run_id


def test_every_setting_is_on_record_and_another_number_of_workers_does_not_open_a_second_run(
    small_dataset: Path, tmp_path: Path
):
    run = a_run(small_dataset, tmp_path / "run")
    tracked = opened(run)
    (run.out / tracking.MARKER).unlink()  # described once more, with what MLflow would refuse to change
    fewer = replace(run.recipe, workers=replace(run.recipe.workers, num_workers=4))
    assert opened(replace(run, recipe=fewer)) == tracked

    params = tracked.client().get_run(tracked.run_id).data.params
    assert params == provenance.settings(run.recipe)
    assert params["workers.num_workers"] == "8"
    assert {"seed", "speed.recompute", "checkpoints.checkpoint_every", "watch.timestep_bins"} <= set(params)


def test_what_a_dead_server_missed_is_on_record_at_the_end_once(small_dataset: Path, tmp_path: Path):
    run = a_run(small_dataset, tmp_path / "run")
    tracked, client = opened(run), opened(run).client()
    tracking.log_steps(client, tracked.run_id, [(step, step, {"loss": float(step)}) for step in (1, 2, 3)])
    lines = [{"step": step, "time": float(step), "loss": float(step)} for step in range(1, 7)]
    (run.out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run.out / "model").mkdir()

    assert registering.finish(tracked, run, run.out / "model") == "1"
    assert registering.finish(tracked, run, run.out / "model") == "1"

    assert [metric.step for metric in client.get_metric_history(tracked.run_id, "loss")] == [1, 2, 3, 4, 5, 6]
    assert client.get_run(tracked.run_id).info.status == "FINISHED"


def test_the_environment_names_what_shaped_the_numbers():
    told = provenance.environment()

    assert told["packages"]["torch"]
    assert told["python"].startswith("3.")
    assert len(told["code"].rstrip("+")) in (0, 40)


def test_a_run_without_records_needs_neither_mlflow_nor_tyro(tiny_model: Path, small_dataset: Path, tmp_path: Path):
    code = (
        "import sys; sys.modules['mlflow'] = sys.modules['tyro'] = None\n"
        "from dataclasses import replace; from pathlib import Path\n"
        "from training.config import Run; from training.launch import launch\n"
        "from training.recipes import tiny_on_cpu\n"
        "data, base, out = map(Path, sys.argv[1:])\n"
        "recipe = tiny_on_cpu()\n"
        "recipe = replace(recipe, model=replace(recipe.model, base=str(base)), "
        "records=replace(recipe.records, experiment=''), optimization=replace(recipe.optimization, steps=2))\n"
        "launch(Run(name='tiny-on-cpu', data=data, out=out, recipe=recipe))\n"
    )
    places = [str(small_dataset), str(tiny_model), str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-c", code, *places], cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "model" / "model_index.json").is_file()
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2
    assert not list((tmp_path / "run").glob("mlflow*"))


class Server:
    """A real MLflow server on SQLite, that can be killed and started again."""

    def __init__(self, folder: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        store = ["--backend-store-uri", f"sqlite:///{self._folder / 'server.db'}"]
        artifacts = ["--artifacts-destination", str(self._folder / "artifacts")]
        where = ["--host", "127.0.0.1", "--port", str(self._port), "--workers", "1"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *store, *artifacts, *where],
            start_new_session=True,
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # seven more processes
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                assert self._process.poll() is None
                time.sleep(0.3)
        raise AssertionError("the MLflow server did not start")

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path)
    running.start()
    yield running
    running.kill()


def when(happened: Callable[[], bool], then: Callable[[], None]) -> threading.Thread:
    def wait() -> None:
        while not happened():
            time.sleep(0.02)
        then()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_tracking_server_that_dies_costs_neither_training_nor_a_step_of_the_record(
    server: Server,
    tiny_model: Path,
    small_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(registering, "PATIENCE_SECONDS", 6.0)
    out = tmp_path / "run"
    command = ["tiny-on-cpu", "--data", str(small_dataset), "--out", str(out), "--base", str(tiny_model)]
    metrics = out / "metrics.jsonl"
    killing = when(lambda: metrics.is_file() and metrics.stat().st_size > 0, server.kill)

    assert main([*command, "--steps", "6"]) == 1
    killing.join()
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "is complete and not registered" in said
    exported = (out / "model" / "training.json").stat().st_mtime_ns

    assert main([*command, "--steps", "6"]) == 2  # it is told of at once where the server is dead from the start
    server.start()
    assert main([*command, "--steps", "6"]) == 0

    assert (out / "model" / "training.json").stat().st_mtime_ns == exported
    client = tracking.TrackedRun(**json.loads((out / "mlflow.json").read_text())).client()
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert run.info.status == "FINISHED"
    assert sorted(metric.step for metric in client.get_metric_history(run.info.run_id, "loss")) == [1, 2, 3, 4, 5, 6]
    assert client.get_model_version_by_alias("dynamictrl", "champion").run_id == run.info.run_id
