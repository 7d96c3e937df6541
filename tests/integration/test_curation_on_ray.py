"""The same pipeline on a local Ray: same bytes as in a loop, killed and continued, real media accounted for."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dynamictrl.errors import CheckpointError
from pipelines import dataset_files, job
from pipelines.recipes import Curation, curate_mini
from pipelines.stages.estimate_pose import EstimatePose
from pipelines.verify import verify

ROOT = Path(__file__).parents[2]
SECONDS = 400


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three marionette videos, and a download that broke off."""
    from dynamictrl.mini.marionettes import write_marionettes

    folder = tmp_path_factory.mktemp("curation") / "videos"
    first, *_ = write_marionettes(folder, 3, seed=11)
    (folder / "broken.mp4").write_bytes(first.read_bytes()[:2000])
    return folder


@pytest.fixture(scope="module")
def looped(videos: Path) -> Path:
    """The data set made in this process, without Ray."""
    out = videos.parent / "looped" / "set"
    job.run("curate-mini", recipe(videos, out, local=True))
    return out


def recipe(videos: Path, out: Path, **fields: object) -> Curation:
    return replace(curate_mini(), videos=(str(videos),), out=str(out), **fields)  # type: ignore[arg-type]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a data set but the work folder and the report, which says what it cost."""
    paths = [p for p in folder.rglob("*") if p.is_file() and not {".work", "report"} & set(p.parts)]
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


def command(videos: Path, out: Path) -> list[str]:
    words = ["curate-mini", "--videos", str(videos), "--out", str(out)]
    return [sys.executable, "-m", "pipelines", *words]


@pytest.mark.usefixtures("local_ray")
def test_ray_and_a_loop_give_the_same_bytes(videos: Path, looped: Path, tmp_path: Path):
    outcome = job.run("curate-mini", recipe(videos, tmp_path / "set"))
    assert outcome.description["counts"]["kept"] > 0
    assert tree(tmp_path / "set") == tree(looped)
    assert verify(tmp_path / "set") == []


@pytest.mark.usefixtures("local_ray")
def test_a_finished_run_is_a_no_op_on_ray_too(videos: Path, looped: Path, tmp_path: Path):
    shutil.copytree(looped, tmp_path / "set")
    assert not job.run("curate-mini", recipe(videos, tmp_path / "set")).changed


@pytest.mark.usefixtures("local_ray")
def test_two_data_sets_of_the_same_settings_on_one_ray_lose_nothing(videos: Path, looped: Path, tmp_path: Path):
    for name in ("first", "second"):
        job.run("curate-mini", recipe(videos, tmp_path / name / "set"))
        assert tree(tmp_path / name / "set") == tree(looped)


@pytest.mark.usefixtures("local_ray")
def test_weights_that_break_in_a_worker_stop_the_run_with_their_own_error(videos: Path, tmp_path: Path):
    from dynamictrl.weights import MINI

    broken = tmp_path / "weights"
    shutil.copytree(MINI / "dwpose", broken)
    (broken / "yolox_l.onnx").write_bytes(b"no model")
    pipeline = recipe(videos, tmp_path / "set", pose=EstimatePose(model=str(broken), device="cpu"))
    with pytest.raises(CheckpointError, match=r"yolox_l\.onnx"):
        job.run("curate-mini", pipeline)


@pytest.fixture
def run_command(tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        if process.poll() is None:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("until", ["results/sources/*/*.json", "results/clips/*/*.json"])
def test_a_killed_command_run_again_ends_with_the_same_bytes(
    until: str, videos: Path, looped: Path, tmp_path: Path, run_command: list[subprocess.Popen[bytes]]
):
    out = tmp_path / "set"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    process = subprocess.Popen(command(videos, out), cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    run_command.append(process)
    deadline = time.monotonic() + SECONDS
    while not list((out / ".work").glob(until)):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "dataset.json").exists()
    again = subprocess.run(command(videos, out), cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert tree(out) == tree(looped)


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_every_real_file_is_accounted_for(shared_data: Path, tmp_path: Path):
    folders = (shared_data / "clips", shared_data / "odd")
    pipeline = replace(curate_mini(), videos=tuple(map(str, folders)), out=str(tmp_path / "set"))
    counts = job.run("curate-mini", pipeline).description["counts"]
    rows = dataset_files.read_manifest(tmp_path / "set" / "manifest.parquet")
    reasons: dict[str, set[str]] = {}
    for row in rows:
        reasons.setdefault(Path(row["source"]).name, set()).add(row["reason"])
    quarantined = {
        Path(q["uri"]).name: q["reason"] for q in dataset_files.read_quarantine(tmp_path / "set" / "quarantine.jsonl")
    }
    files = {p.name for folder in folders for p in folder.iterdir()}
    assert reasons.keys() | quarantined.keys() == files
    assert counts["sources"] == len(files)
    assert verify(tmp_path / "set") == []
    assert quarantined == {
        "androidx__sample_audio_only.mp4": "no_video_stream",
        "decord__corrupted.mp4": "decode_error",
        "exif__Portrait_6.jpg": "still_image",
        "moviepy__result.webm": "empty_file",
        "mp4parse__invalid_userdata.mp4": "no_frames",
        "musepose__ref.png": "still_image",
        "screenpipe__selah.mp4": "not_media",
    }
    assert reasons["-video-with-dash-.mp4"] == {"too_small"}
    assert reasons["decord__video_90.mov"] == reasons["androidx__portrait_4k60.mp4"] == {"too_short"}
    assert "" in reasons["animatex__dance_2.mp4"]
    # Long stretches of the corridor are empty: nothing moves, or somebody is there for a moment only.
    assert {"", "frozen", "person_often_absent"} <= reasons["intel__one-by-one-person-detection.mp4"]
    assert json.loads((tmp_path / "set" / "dataset.json").read_text())["counts"] == counts
