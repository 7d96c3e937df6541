"""The command from end to end on one process: MLflow, the registry, reruns, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from training.__main__ import main
from training.callbacks.metrics_file import MetricsFile
from training.callbacks.mlflow_log import MlflowLog
from training.config import Run
from training.recipes import RECIPES
from training.release import tracking

TINY = ["--steps", "2", "--log-every", "1"]


@pytest.fixture(autouse=True)
def _own_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_a_run_is_trained_tracked_and_registered_and_a_rerun_changes_nothing(
    tiny_model: Path, small_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "run"
    command = ["tiny-on-cpu", "--data", str(small_dataset), "--out", str(out), "--base", str(tiny_model), *TINY]

    assert main(command) == 0
    exported = (out / "model" / "training.json").stat().st_mtime_ns
    assert main(command) == 0
    assert (out / "model" / "training.json").stat().st_mtime_ns == exported
    assert str(out / "model") in capsys.readouterr().out

    marker = json.loads((out / "mlflow.json").read_text())
    client = tracking.TrackedRun(**marker).client()
    (experiment,) = [e for e in client.search_experiments() if e.name == "dynamictrl"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert [m.step for m in client.get_metric_history(run.info.run_id, "loss")] == [1, 2]
    assert {"grad_norm", "learning_rate", "tokens_per_second", "peak_memory_gib"} <= set(run.data.metrics)
    assert {a.path for a in client.list_artifacts(run.info.run_id)} == {
        "dataset.json", "plan.txt", "recipe.json", "environment.json", "summary.html",
    }  # fmt: skip
    champion = client.get_model_version_by_alias("dynamictrl", "champion")
    assert int(champion.version) == 1
    assert champion.source == str((out / "model").resolve())
    assert champion.run_id == run.info.run_id


def test_every_step_is_on_record_once_whatever_a_kill_kept_from_it(small_dataset: Path, tmp_path: Path):
    run = Run(name="mini", data=small_dataset, out=tmp_path, recipe=RECIPES["dynamictrl-2b"]())
    tracked = tracking.open_run(run)
    path = tmp_path / "metrics.jsonl"

    def session(start: int, steps: list[int], *, killed: bool) -> None:
        kept, log = MetricsFile(path), MlflowLog(tracked, path)
        kept.on_start(start)
        log.on_start(start)
        for step in steps:
            kept.on_step(step, {"loss": 1.0 / step})
            log.on_step(step, {"loss": 1.0 / step})
        if not killed:
            log.on_close()

    session(0, [1, 2, 3], killed=False)
    session(2, [3, 4, 5], killed=True)  # 4 and 5 reached the file alone
    session(4, [5, 6], killed=False)

    assert tracking.open_run(run) == tracked
    history = tracked.client().get_metric_history(tracked.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(n, 1.0 / n) for n in range(1, 7)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["mini2"], "did you mean 'mini'?"),
        (
            ["tiny-on-cpu", "--data", "{data}", "--out", "{out}", "--base", "/nowhere/model"],
            "/nowhere/model does not exist",
        ),
        (
            ["tiny-on-cpu", "--data", "/nowhere/data", "--out", "{out}", "--base", "{base}"],
            "/nowhere/data does not exist",
        ),
        (["tiny-on-cpu", "--data", "{base}", "--out", "{out}", "--base", "{base}"], "no dataset.json"),
        (["tiny-on-cpu", "--data", "{data}", "--out", "{out}", "--base", "{data}"], "model_index.json was not found"),
        (
            ["tiny-on-cpu", "--data", "{data}", "--out", "{out}", "--base", "{base}", "--height", "30"],
            "multiples of 16",
        ),
        (["tiny-on-cpu", "--data", "{data}", "--out", "{out}", "--base", "{base}", "--num-frames", "6"], "4k + 1"),
        (["tiny-on-cpu", "--data", "{data}", "--out", "{base}", "--base", "{base}"], "holds no run"),
        (["tiny-on-cpu", "--data", "{data}", "--out", "{data}/dataset.json", "--base", "{base}"], "is a file"),
        (["plan", "dynamictrl-5b", "--gpus", "1", "--gpu-memory-gib", "40"], "what would fit: --zero-stage 3"),
        (["plan", "dynamictrl-5b", "--gpus", "3"], "choose a multiple of 3"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line_and_leaves_nothing(
    arguments: list[str],
    said: str,
    tiny_model: Path,
    small_dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
):
    places = {"data": small_dataset, "base": tiny_model, "out": tmp_path / "run"}
    try:
        code = main([argument.format(**places) for argument in arguments])
    except SystemExit as stop:
        code = stop.code

    (line,) = capsys.readouterr().err.strip().splitlines()
    assert code == 2
    assert line.startswith("error: ")
    assert said in line
    assert not (tmp_path / "run").exists()


def test_a_dead_tracking_server_is_told_of_before_training(
    tiny_model: Path,
    small_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    code = main(
        ["tiny-on-cpu", "--data", str(small_dataset), "--out", str(tmp_path / "run"), "--base", str(tiny_model)]
    )

    assert code == 2
    assert "http://127.0.0.1:9 does not answer" in capsys.readouterr().err


def test_help_loads_nothing_heavy():
    code = (
        "import sys\nfrom training.__main__ import main\n"
        "for words in ([], ['--help'], ['mini', '--help'], ['plan', '--help'], ['evaluate', '--help']):\n"
        "    try: main(words)\n    except SystemExit: pass\n"
        "heavy = {'torch', 'ray', 'diffusers', 'transformers', 'mlflow', 'deepspeed', 'cv2'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[3])

    assert done.returncode == 0, done.stderr
    assert "--learning-rate" in done.stdout


@pytest.mark.slow
def test_torchruns_processes_train_one_run_with_one_record(tiny_model: Path, small_dataset: Path, tmp_path: Path):
    out = tmp_path / "run"
    group = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "training"]
    places = ["--data", str(small_dataset), "--out", str(out), "--base", str(tiny_model)]
    done = subprocess.run(
        [*group, "tiny-on-cpu", *places, *TINY], capture_output=True, text=True, cwd=Path(__file__).parents[3]
    )

    assert done.returncode == 0, done.stderr[-3000:]
    assert (out / "model" / "model_index.json").is_file()
    sessions = [json.loads(line) for line in (out / "sessions.jsonl").read_text().splitlines()]
    assert [line["workers"] for line in sessions if line["event"] == "start"] == [2]
    client = tracking.TrackedRun(**json.loads((out / "mlflow.json").read_text())).client()
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert run.info.status == "FINISHED"
