"""Training on two Ray Train workers over gloo: a kill at any moment costs time and nothing else."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from training.callbacks.metrics_file import read_lines
from training.release import tracking

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


def weights(out: Path) -> dict[str, NDArray[np.float32]]:
    from safetensors.numpy import load_file

    return load_file(out / "model" / "transformer" / "diffusion_pytorch_model.safetensors")


def until(happened: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def checkpointed(out: Path, step: int) -> bool:
    """Whether a checkpoint of this step or a later one is whole."""
    return any(int(path.parent.name.removeprefix("step-")) >= step for path in out.glob("checkpoints/step-*/COMPLETE"))


@contextmanager
def running(words: Sequence[str], **more: str) -> Iterator[subprocess.Popen[str]]:
    """The command under way; it dies with the block."""
    process = subprocess.Popen(
        words, cwd=ROOT, env=environment(**more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def ray_workers(process: subprocess.Popen[str]) -> list[int]:
    """Process ids of the two workers of a run on a Ray of its own."""
    import psutil

    found = [
        child.pid
        for child in psutil.Process(process.pid).children(recursive=True)
        if any("RayTrainWorker" in word for word in child.cmdline())
    ]
    assert len(found) == 2
    return found


def sessions(out: Path) -> list[dict[str, int]]:
    """How each session began: at which step, with how many workers, and how far the one before had come."""
    path = out / "sessions.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return [line for line in lines if line["event"] == "start"]


def workers_of(out: Path) -> list[int]:
    """With how many workers each session began."""
    return [session["workers"] for session in sessions(out)]


def assert_same_as(straight: Path, out: Path) -> None:
    """The same numbers at every step and the same weights; where they are not, says from where on, and by how much."""
    lines = [read_lines(folder / "metrics.jsonl") for folder in (straight, out)]
    assert [line["step"] for line in lines[1]] == list(range(1, STEPS + 1))
    other = [
        (one["step"], name, one[name], two[name])
        for one, two in zip(*lines, strict=True)
        for name in ("loss", "grad_norm")
        if one[name] != two[name]
    ]
    assert not other, (other, (out / "sessions.jsonl").read_text())
    found, expected = weights(out), weights(straight)
    assert found.keys() == expected.keys()
    off = {
        name: float(np.abs(found[name] - value).max())
        for name, value in expected.items()
        if found[name].tobytes() != value.tobytes()
    }
    assert not off


@pytest.mark.timeout(1500)
def test_a_run_whose_worker_dies_whose_worker_hangs_and_that_is_killed_ends_the_same(
    straight: Path, tmp_path: Path, small_dataset: Path, tiny_model: Path
):
    out = tmp_path / "run"
    with running(command(out, small_dataset, tiny_model, "--stall-minutes", "1")) as process:
        until(lambda: checkpointed(out, 3), process)
        os.kill(ray_workers(process)[1], signal.SIGKILL)
        until(lambda: len(sessions(out)) == 2 and checkpointed(out, 6), process)
        os.kill(ray_workers(process)[1], signal.SIGSTOP)
        until(lambda: len(sessions(out)) == 3, process)
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
    assert set(workers_of(out)) == {2}
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
@pytest.mark.exhaustive
def test_a_stopped_run_goes_on_with_fewer_workers(
    straight: Path, tmp_path: Path, small_dataset: Path, tiny_model: Path
):
    out = tmp_path / "run"
    with running(command(out, small_dataset, tiny_model, "--num-workers", "2")) as process:
        until(lambda: checkpointed(out, 3), process)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=300)
    assert process.returncode == 1, said
    assert "stopped" in said.strip().splitlines()[-1]
    assert not (out / "model").exists()

    again = subprocess.run(
        command(out, small_dataset, tiny_model, "--num-workers", "1"),
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip

    assert again.returncode == 0, again.stderr
    assert [session["workers"] for session in sessions(out)] == [2, 1]
    lines = [read_lines(folder / "metrics.jsonl") for folder in (straight, out)]
    assert [line["step"] for line in lines[1]] == list(range(1, STEPS + 1))
    assert [line["loss"] for line in lines[1]] == pytest.approx([line["loss"] for line in lines[0]], rel=1e-3)


@pytest.fixture
def two_nodes() -> Iterator[Any]:
    """A Ray cluster of two nodes with place for one worker each."""
    from ray.cluster_utils import Cluster

    cluster = patiently(
        lambda: Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    )
    yield cluster
    cluster.shutdown()


def patiently(start: Callable[[], Any], tries: int = 4) -> Any:
    """Ray gives a node 30 s to start, whatever else the machine does."""
    for _ in range(tries - 1):
        try:
            return start()
        except Exception as problem:  # a bare one
            if "timed out during startup" not in str(problem):
                raise
    return start()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_node_that_is_taken_away_and_one_that_comes_cost_no_step(
    two_nodes: Any, tmp_path: Path, small_dataset: Path, tiny_model: Path
):
    out, lost = tmp_path / "run", patiently(lambda: two_nodes.add_node(num_cpus=1))
    more = ["--steps", "2000", "--checkpoint-every", "1000", "--min-workers", "1", "--resize-seconds", "3"]
    words = command(out, small_dataset, tiny_model, *more, "--schedule", "constant")
    with running(words, RAY_ADDRESS=two_nodes.address) as process:
        until(lambda: len(read_lines(out / "metrics.jsonl")) > 2, process)
        reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        deadline = ["--deadline-remaining-seconds", "600"]
        ray = str(Path(sys.executable).with_name("ray"))
        where = ["--address", two_nodes.address, "--node-id", lost.node_id]
        subprocess.run([ray, "drain-node", *where, *reason, *deadline], check=True, capture_output=True)
        until(lambda: len(sessions(out)) == 2, process)
        two_nodes.remove_node(lost)
        patiently(lambda: two_nodes.add_node(num_cpus=1))
        until(lambda: workers_of(out)[2:][-1:] == [2], process)  # Ray may try the one node left once more before
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=300)

    assert process.returncode == 1, said
    assert workers_of(out)[:2] == [2, 1]
    assert workers_of(out)[-1] == 2
    assert [session["step"] for session in sessions(out)[1:]] == [session["reached"] for session in sessions(out)[1:]]
