"""The same pipeline on a local Ray: same bytes as in a loop, killed and continued, real media accounted for."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from dynamictrl.errors import CheckpointError
from pipelines import job
from pipelines.datasets.verify import verify
from pipelines.publishing import dataset_files
from pipelines.recipes import Curation, curate_mini
from pipelines.stages.estimate_pose import EstimatePose

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


def tree(folder: Path) -> dict[str, str]:
    """Digests of a data set's files, and of what is in its shards, but for the work folder and the report, which says
    what it cost: where two differ, a failed test names the files and not their bytes."""
    paths = [p for p in folder.rglob("*") if p.is_file() and not {".work", "report"} & set(p.parts)]
    digests = {}
    for path in paths:
        name, content = str(path.relative_to(folder)), path.read_bytes()
        digests[name] = said(content)
        if path.suffix == ".tar":
            with tarfile.open(path) as shard:
                for member in shard:
                    inside = shard.extractfile(member)
                    assert inside is not None
                    digests[f"{name}/{member.name}"] = said(inside.read())
    return digests


def said(content: bytes) -> str:
    """A digest, and a text itself where it is short."""
    text = content[:2000].decode("ascii", errors="replace")
    return sha256(content).hexdigest() + (" " + text if text.isprintable() else "")


def command(videos: Path, out: Path) -> list[str]:
    words = ["curate-mini", "--videos", str(videos), "--out", str(out)]
    return [sys.executable, "-m", "pipelines", *words]


@pytest.mark.usefixtures("local_ray")
def test_a_finished_run_is_a_no_op_on_ray_too(videos: Path, looped: Path, tmp_path: Path):
    shutil.copytree(looped, tmp_path / "set")
    assert not job.run("curate-mini", recipe(videos, tmp_path / "set")).changed


@pytest.mark.usefixtures("local_ray")
def test_ray_s_own_reader_reads_the_shards(looped: Path):
    import ray

    shards = sorted(str(path) for path in (looped / "shards").glob("*.tar"))
    rows = {row["__key__"]: row for row in ray.data.read_webdataset(shards, decoder=False).take_all()}
    manifest = dataset_files.read_manifest(looped / "manifest.parquet")
    assert sorted(rows) == sorted(row["key"] for row in manifest if not row["reason"])
    for key, row in rows.items():
        info = row["json"] if isinstance(row["json"], dict) else json.loads(row["json"])
        with np.load(io.BytesIO(row["pose.npz"])) as pose, np.load(io.BytesIO(row["mask.npz"])) as mask:
            assert pose["keypoints"].shape[::2] == (info["frames"], 134)
            assert (len(mask["persons"]), mask["persons"].dtype) == (info["frames"], np.uint8)
        text = row["txt"] if isinstance(row["txt"], str) else row["txt"].decode()
        assert (info["key"], row["mp4"][4:8]) == (key, b"ftyp")
        assert len(text.split()) > 3


@pytest.mark.usefixtures("local_ray")
def test_two_data_sets_on_one_ray_have_the_bytes_of_a_loop(videos: Path, looped: Path, tmp_path: Path):
    """The second of the same settings is made by processes that still know the first."""
    for name in ("first", "second"):
        outcome = job.run("curate-mini", recipe(videos, tmp_path / name / "set"))
        assert outcome.description["counts"]["kept"] > 0
        assert tree(tmp_path / name / "set") == tree(looped)
        assert verify(tmp_path / name / "set") == []


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
def test_a_command_killed_twice_and_run_again_ends_with_the_same_bytes(
    videos: Path, looped: Path, tmp_path: Path, run_command: list[subprocess.Popen[bytes]]
):
    out = tmp_path / "set"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    for until in ("results/sources/*/*.json", "results/clips/*/*.json"):
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


THREE = ("animatex__dance_2.mp4", "mmhuman3d__single_person_demo.mp4", "intel__one-by-one-person-detection.mp4")
"""A dance, a short video, a corridor through which people come and go."""


@pytest.mark.slow
@pytest.mark.parametrize("clips", [THREE, pytest.param(("*",), marks=pytest.mark.exhaustive)], ids=["three", "all"])
@pytest.mark.usefixtures("local_ray")
def test_every_real_file_is_accounted_for(clips: tuple[str, ...], shared_data: Path, tmp_path: Path):
    people, odd = [path for name in clips for path in (shared_data / "clips").glob(name)], shared_data / "odd"
    files = {path.name for path in (*people, *odd.iterdir())}
    pipeline = replace(curate_mini(), videos=(*map(str, people), str(odd)), out=str(tmp_path / "set"))
    counts = job.run("curate-mini", pipeline).description["counts"]
    rows = dataset_files.read_manifest(tmp_path / "set" / "manifest.parquet")
    reasons: dict[str, set[str]] = {}
    for row in rows:
        reasons.setdefault(Path(row["source"]).name, set()).add(row["reason"])
    quarantined = {
        Path(q["uri"]).name: q["reason"] for q in dataset_files.read_quarantine(tmp_path / "set" / "quarantine.jsonl")
    }
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
