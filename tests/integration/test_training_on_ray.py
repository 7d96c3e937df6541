"""Training on two Ray Train workers over gloo: a kill at any moment costs time and nothing else."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from training import tracking
from training.callbacks.metrics_file import read_lines

ROOT = Path(__file__).parents[2]
STEPS = 24
SETTINGS = [
    "--steps", str(STEPS), "--checkpoint-every", "3", "--height", "32", "--width", "32", "--num-frames", "5",
    "--batch-size", "4", "--micro-batch-size", "1", "--warmup-steps", "0", "--fresh-pose", "False",
]  # fmt: skip


def command(out: Path, data: Path, base: Path, *more: str) -> list[str]:
    places = ["--data", str(data), "--out", str(out), "--base", str(base)]
    return [sys.executable, "-m", "training", "mini", *places, *SETTINGS, *more]


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")}
    return kept | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | more


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, small_dataset: Path, tiny_model: Path) -> Path:
    """The same run on two processes that know no Ray, never stopped: what every other way must end with."""
    out = tmp_path_factory.mktemp("straight") / "run"
    code = (
        "import sys; from pathlib import Path; import tyro\n"
        "from training import __main__ as cli\n"
        "from training.callbacks.metrics_file import MetricsFile\n"
        "import training.launch\n"
        "def alone(run):\n"
        "    from training.trainer import train\n"
        "    run.out.mkdir(parents=True, exist_ok=True)\n"
        "    return train(run, [MetricsFile(run.out / 'metrics.jsonl')])\n"
        "training.launch.launch = alone\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    arguments = command(out, small_dataset, tiny_model)[3:]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, *arguments], cwd=ROOT, env=environment(RANK=str(rank), LOCAL_RANK="0", **group)
        )
        for rank in range(2)
    ]
    assert [process.wait(300) for process in processes] == [0, 0]
    return out


def weights(out: Path) -> dict[str, bytes]:
    from safetensors.numpy import load_file

    return {
        name: value.tobytes()
        for name, value in load_file(out / "model" / "transformer" / "diffusion_pytorch_model.safetensors").items()
    }


def first_checkpoint(out: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not list(out.glob("checkpoints/step-*/COMPLETE")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def started(tmp_path: Path, small_dataset: Path, tiny_model: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A run on Ray, under way, with its first checkpoint written."""
    out = tmp_path / "run"
    process = subprocess.Popen(
        command(out, small_dataset, tiny_model),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        first_checkpoint(out, process)
        yield out, process
    finally:
        process.kill()
        process.wait()


def assert_same_as(straight: Path, out: Path) -> None:
    assert weights(out) == weights(straight)
    lines = [read_lines(folder / "metrics.jsonl") for folder in (straight, out)]
    assert [line["step"] for line in lines[1]] == list(range(1, STEPS + 1))
    for name in ("loss", "grad_norm"):
        assert [line[name] for line in lines[0]] == [line[name] for line in lines[1]]


def test_a_killed_run_goes_on_by_the_same_command_and_ends_the_same(
    straight: Path, started: tuple[Path, subprocess.Popen[str]], small_dataset: Path, tiny_model: Path
):
    out, process = started
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "model").exists()

    again = subprocess.run(
        command(out, small_dataset, tiny_model),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert again.returncode == 0, again.stderr
    assert_same_as(straight, out)
    client = tracking.TrackedRun(**json.loads((out / "mlflow.json").read_text())).client()
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [metric.step for metric in history] == list(range(1, STEPS + 1))
    assert run.info.status == "FINISHED"
    assert client.get_model_version_by_alias("dynamictrl", "champion").source == str(out / "model")
    assert list(out.glob("checkpoints/.*")) == []

    from dynamictrl.animation import DynamiCtrlPipeline

    pipeline = DynamiCtrlPipeline.from_pretrained(out / "model")
    assert pipeline.transformer.config["pose_control"] == "padaln"


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_the_run_ends_the_same(
    straight: Path, started: tuple[Path, subprocess.Popen[str]]
):
    import psutil

    out, process = started
    workers = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if any("RayTrainWorker" in word for word in child.cmdline())
    ]
    assert len(workers) == 2
    workers[1].kill()

    said, _ = process.communicate(timeout=300)

    assert process.returncode == 0, said
    assert_same_as(straight, out)
