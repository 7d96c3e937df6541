"""The service on local Ray Serve: the stock `openai` client, a worker killed, a stop and a start over queued jobs."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from openai import OpenAI
    from openai.types import Video

from dynamictrl.media.video import read_video

# The Videos API is deprecated at OpenAI; as a de-facto standard it lives on.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

ROOT = Path(__file__).parents[2]


@dataclass
class Running:
    """`python -m serving up mini` in a process of its own."""

    model: Path
    data: Path
    log: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        words = [
            "-m", "serving", "up", "mini", "--model", self.model, "--port", self.port, "--data-folder", self.data,
            "--defaults.width", 64, "--defaults.height", 96, "--lease-s", 3, "--drain-s", 1, "--person-check", "render",
            "--max-engines", 2, "--scaling.clear-within-s", 10, "--scaling.shrink-after-s", 3600
        ]  # fmt: skip
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, words)], cwd=ROOT, env=environment, stdout=log, stderr=log
            )
        deadline = time.monotonic() + 400
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                with urllib.request.urlopen(f"{self.url}/readyz", timeout=2):
                    break
            except OSError:
                time.sleep(0.3)
        # The Ctrl-C handler is set once the URL has been printed.
        while "ready: " + self.url not in self.log.read_text():
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.1)

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(90)


@pytest.fixture(scope="module")
def service(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("service")
    running = Running(tiny_model, folder / "data", folder / "log")
    running.start()
    yield running
    if running.process is not None and running.process.poll() is None:
        running.stop()


@pytest.fixture
def client(service: Running) -> OpenAI:
    return OpenAI(base_url=f"{service.url}/v1", api_key="none")


@pytest.fixture
def sent(client: OpenAI, person_and_pose: tuple[Path, Path]) -> dict[str, Any]:
    """Arguments of `client.videos.create`: the image as a file, the pose video sent ahead."""
    person, pose = person_and_pose
    file = client.files.create(file=pose, purpose="user_data")
    return {
        "prompt": "a figure",
        "input_reference": person,
        "size": "64x96",
        "extra_body": {"pose_video": {"file_id": file.id}, "num_frames": 5, "num_inference_steps": 2, "seed": 3},
    }


def with_extra(sent: dict[str, Any], **extra: object) -> dict[str, Any]:
    return {**sent, "extra_body": {**sent["extra_body"], **extra}}


def test_the_stock_client_makes_a_clip(client: OpenAI, sent: dict[str, Any], tmp_path: Path):
    video = client.videos.create_and_poll(**sent)
    assert (video.status, video.progress, video.size, video.seconds) == ("completed", 100, "64x96", "0.417")
    assert video.error is None
    assert video.completed_at is not None
    assert video.model_extra is not None
    assert {"seed": 3, "num_frames": 5, "stage": "completed"}.items() <= video.model_extra.items()
    client.videos.download_content(video.id).write_to_file(tmp_path / "clip.mp4")
    assert read_video(tmp_path / "clip.mp4").frames.shape == (5, 96, 64, 3)
    assert client.videos.download_content(video.id, variant="thumbnail").read()[8:12] == b"WEBP"
    assert client.videos.download_content(video.id, variant="spritesheet").read()[:2] == b"\xff\xd8"

    remix = client.videos.remix(video.id, prompt="another")
    assert (remix.remixed_from_video_id, remix.prompt) == (video.id, "another")
    assert client.videos.poll(remix.id).status == "completed"

    assert client.videos.retrieve(video.id).id == video.id
    gone = client.videos.delete(video.id)
    assert (gone.id, gone.deleted, gone.object) == (video.id, True, "video.deleted")
    with pytest.raises(openai.NotFoundError) as missing:
        client.videos.retrieve(video.id)
    assert missing.value.code == "video_not_found"


def test_auto_paging_finds_every_job_once(client: OpenAI, sent: dict[str, Any]):
    made = [client.videos.create(**sent).id for _ in range(3)]
    found = [video.id for video in client.videos.list(limit=2)]
    assert found[:3] == made[::-1]
    assert len(found) == len(set(found))
    assert [video.id for video in client.videos.list(limit=2, order="asc")] == found[::-1]
    for video_id in made:
        client.videos.delete(video_id)


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"size": "65x96"}, "bad_size", "size"),
        ({"extra_body": {"pose_video": b"bytes"}}, "bytes_as_text", "pose_video"),
        ({"extra_body": {"pose_video": {"file_id": "file_none"}}}, "file_not_found", "pose_video"),
        ({"extra_body": {}}, "missing_video", "driving_video"),
    ],
)
def test_a_bad_request_is_the_sdks_own_error_with_code_and_parameter(
    client: OpenAI, sent: dict[str, Any], change: dict[str, Any], code: str, param: str
):
    with pytest.raises(openai.BadRequestError) as refused:
        client.videos.create(**{**sent, **change})
    assert (refused.value.code, refused.value.param, refused.value.type) == (code, param, "invalid_request_error")
    assert refused.value.request_id


def test_a_failed_job_is_an_answer_and_no_exception(client: OpenAI, sent: dict[str, Any], tmp_path: Path):
    from dynamictrl.media.video import write_video

    bright = read_video(sent["input_reference"].parent / "pose.mp4").frames // 2 + 128
    write_video(tmp_path / "bright.mp4", bright, 12)
    file = client.files.create(file=tmp_path / "bright.mp4", purpose="user_data")
    video = client.videos.create_and_poll(**with_extra(sent, pose_video={"file_id": file.id}))
    assert video.status == "failed"
    assert video.error is not None
    assert video.error.code == "not_a_pose_video"


def test_a_key_makes_one_job(client: OpenAI, sent: dict[str, Any]):
    key = {"Idempotency-Key": "the-one"}
    first = client.videos.create(**sent, extra_headers=key)
    assert client.videos.create(**sent, extra_headers=key).id == first.id
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.videos.create(**{**sent, "prompt": "other"}, extra_headers=key)
    assert refused.value.code == "idempotency_key_reused"


def test_a_running_job_is_cancelled_and_its_events_are_streamed(client: OpenAI, service: Running, sent: dict[str, Any]):
    video = client.videos.create(**with_extra(sent, num_inference_steps=100, num_frames=17))
    seen: list[str] = []
    with urllib.request.urlopen(f"{service.url}/v1/videos/{video.id}/events", timeout=60) as stream:
        for line in stream:
            if line.startswith(b"data: "):
                event = json.loads(line[6:])
                seen.append(event["status"])
                if event["stage"] == "denoising" and "cancelled" not in seen:
                    cancelled = client.post(f"/videos/{video.id}/cancel", cast_to=Video)
                    assert cancelled.status == "cancelled"
    assert seen[-1] == "cancelled"
    assert "in_progress" in seen


def test_many_jobs_at_once_all_end(client: OpenAI, sent: dict[str, Any]):
    videos = [client.videos.create(**with_extra(sent, seed=seed)) for seed in range(6)]
    assert {client.videos.poll(video.id).status for video in videos} == {"completed"}


def test_the_service_says_what_it_serves(client: OpenAI, service: Running):
    (model,) = client.models.list().data
    assert (model.id, model.model_extra["family"]) == ("dynamictrl", "mini")  # type: ignore[index]
    with urllib.request.urlopen(f"{service.url}/metrics") as page:
        assert re.search(rb'dynamictrl_jobs\{status="completed"\} [1-9]', page.read())


def test_a_worker_that_is_killed_loses_no_job(client: OpenAI, service: Running, sent: dict[str, Any]):
    video = client.videos.create(**with_extra(sent, num_inference_steps=100, num_frames=17))
    deadline = time.monotonic() + 30
    while client.videos.retrieve(video.id).status != "in_progress" and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in processes(service, "ServeReplica:dynamictrl:renderer"):
        os.kill(pid, signal.SIGKILL)
    done = client.videos.poll(video.id)
    assert done.status == "completed"


def test_a_burst_gets_a_second_engine(client: OpenAI, service: Running, sent: dict[str, Any]):
    long = {"num_inference_steps": 100, "num_frames": 17}
    videos = [client.videos.create(**with_extra(sent, seed=seed, **long)) for seed in range(8)]
    deadline = time.monotonic() + 400
    while warm(service) < 2:
        assert time.monotonic() < deadline, service.log.read_text()[-3000:]
        time.sleep(0.2)
    assert {client.post(f"/videos/{video.id}/cancel", cast_to=Video).status for video in videos} <= {
        "cancelled",
        "completed",
        "in_progress",
    }
    assert {client.videos.poll(video.id).status for video in videos} <= {"cancelled", "completed"}


def warm(service: Running) -> int:
    try:
        with urllib.request.urlopen(f"{service.url}/readyz", timeout=5) as page:
            return json.loads(page.read())["workers"]
    except OSError:
        return 0


def test_the_death_of_dispatcher_and_ingress_costs_no_job_its_life(service: Running, sent: dict[str, Any]):
    patient = OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=20)
    long = with_extra(sent, num_inference_steps=60, num_frames=17)
    videos = [patient.videos.create(**long, extra_headers={"Idempotency-Key": f"k{n}"}) for n in range(2)]
    deadline = time.monotonic() + 60
    while patient.videos.retrieve(videos[0].id).status != "in_progress" and time.monotonic() < deadline:
        time.sleep(0.05)
    for title in ("ServeReplica:dynamictrl:dispatcher", "ServeReplica:dynamictrl:ingress"):
        for pid in processes(service, title):
            os.kill(pid, signal.SIGKILL)
    again = [patient.videos.create(**long, extra_headers={"Idempotency-Key": f"k{n}"}) for n in range(2)]
    assert [video.id for video in again] == [video.id for video in videos]
    assert [patient.videos.poll(video.id).status for video in videos] == ["completed"] * 2
    with sqlite3.connect(service.data / "jobs.db") as store:
        ends = "SELECT count(*) FROM video_events WHERE video_id = ? AND status = 'completed'"
        assert [store.execute(ends, (video.id,)).fetchone() for video in videos] == [(1,), (1,)]
    store.close()


def processes(service: Running, name: str) -> list[int]:
    """Process ids of one deployment's replicas: descendants of the service with their actor's name as title."""
    assert service.process is not None
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes()
            mine = str(service.data).encode() in (folder / "environ").read_bytes()
        except OSError:
            continue
        if name.encode() in title and (mine or descends(int(folder.name), service.process.pid)):
            found.append(int(folder.name))
    assert found
    return found


def descends(pid: int, ancestor: int) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return False


def test_a_restart_keeps_every_job(client: OpenAI, service: Running, sent: dict[str, Any]):
    videos = [client.videos.create(**with_extra(sent, num_inference_steps=60, num_frames=17)) for _ in range(3)]
    assert service.stop() == 0
    service.start()
    again = OpenAI(base_url=f"{service.url}/v1", api_key="none")
    for video in videos:
        assert again.videos.poll(video.id).status == "completed"
