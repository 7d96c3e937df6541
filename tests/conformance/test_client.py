"""Our own client against the whole service: both kinds, every call, and what it does when time or a connection ends."""

from __future__ import annotations

import asyncio
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from dynamictrl.media.video import read_video
from serving.client import ApiError, AsyncClient, Client, Job, JobFailedError, JobTimeoutError

ROOT = Path(__file__).parents[2]


class Driven:
    """The asynchronous client, driven as the other one is."""

    def __init__(self, client: AsyncClient):
        self._client, self._loop = client, asyncio.new_event_loop()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*args: Any, **named: Any) -> Any:
            value = method(*args, **named)
            if inspect.isasyncgen(value):

                async def collect() -> list[Any]:
                    return [item async for item in value]

                return self._loop.run_until_complete(collect())
            return self._loop.run_until_complete(value)

        return call


@pytest.fixture(scope="module", params=["sync", "async"])
def client(request: pytest.FixtureRequest, service: Any) -> Iterator[Any]:
    made = (
        Client(service.url, service.key) if request.param == "sync" else Driven(AsyncClient(service.url, service.key))
    )
    yield made
    made.close()


@pytest.fixture(scope="module")
def wish(service: Any) -> dict[str, Any]:
    return {"image": service.person, "prompt": "p", "pose_video": Path(service.pose), "num_frames": 5}


def test_a_clip_is_rendered_and_downloaded(client: Any, wish: dict[str, Any], tmp_path: Path):
    seen: list[Job] = []
    job = client.animate(**wish, timeout=120, on_progress=seen.append, seed=7)
    assert (job.status, job.progress, job.seed, job.num_frames, job.size) == ("completed", 100, 7, 5, "64x96")
    assert seen[-1] == job
    assert [one.progress for one in seen] == sorted(one.progress for one in seen)
    client.download(job.id, tmp_path / "clip.mp4")
    assert read_video(tmp_path / "clip.mp4").frames.shape == (5, 96, 64, 3)
    client.download(job.id, tmp_path / "thumbnail.webp", variant="thumbnail")
    assert sorted(os.listdir(tmp_path)) == ["clip.mp4", "thumbnail.webp"]
    assert client.get(job.id).is_final
    assert client.wait(job.id).id == job.id  # at its end already
    assert job.id in [one.id for one in client.jobs()]
    client.delete(job.id)
    with pytest.raises(ApiError) as gone:
        client.get(job.id)
    assert (gone.value.status, gone.value.code, gone.value.param) == (404, "video_not_found", "video_id")
    assert gone.value.request_id.startswith("req_")
    with pytest.raises(ApiError):
        client.download(job.id, tmp_path / "gone.mp4")
    assert not (tmp_path / "gone.mp4").exists()


def test_what_is_sent_ahead_serves_many_jobs(client: Any, wish: dict[str, Any]):
    pose = client.upload(wish["pose_video"])
    found = client.preflight(wish["image"], "p", pose_video=pose, num_frames=9)
    assert (found["num_frames"], found["frames_available"], found["size"]) == (9, 17, "64x96")
    first = client.create(wish["image"], "p", pose_video=pose, num_frames=5, idempotency_key=f"k{id(client)}", seed=1)
    again = client.create(wish["image"], "p", pose_video=pose, num_frames=5, idempotency_key=f"k{id(client)}", seed=1)
    assert first.id == again.id
    client.wait(first.id)
    client.delete(first.id)
    client.delete_file(pose)


def test_a_job_that_takes_too_long_is_cancelled(client: Any, wish: dict[str, Any]):
    long = {**wish, "num_frames": 17, "num_inference_steps": 100}
    job = client.create(**long)
    with pytest.raises(JobTimeoutError):
        client.wait(job.id, timeout=0.3)
    assert client.get(job.id).status == "cancelled"
    with pytest.raises(JobFailedError) as ended:
        client.wait(job.id)
    assert ended.value.code == "cancelled"


def test_refusals_and_missing_files_are_told_in_the_services_words(client: Any, wish: dict[str, Any]):
    with pytest.raises(ApiError) as refused:
        client.create(**wish, size="65x96")
    assert (refused.value.status, refused.value.code, refused.value.param) == (400, "bad_size", "size")
    with pytest.raises(ApiError) as missing:
        client.create(**{**wish, "image": "nowhere.png"})
    assert (missing.value.status, missing.value.code) == (0, "not_found")


class Lossy(httpx.BaseTransport):
    """Loses the answer to every other request after the service has worked on it."""

    def __init__(self):
        self.inner, self.count = httpx.HTTPTransport(), 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = self.inner.handle_request(request)
        self.count += 1
        if self.count % 2 and request.url.path != "/v1/files":
            answer.close()
            raise httpx.ReadError("the connection was lost", request=request)
        return answer


def test_lost_answers_make_no_second_job(service: Any, wish: dict[str, Any]):
    with Client(service.url, service.key) as steady, Client(service.url, service.key, transport=Lossy()) as lossy:
        before = {job.id for job in steady.jobs()}
        job = lossy.animate(**wish, timeout=120)
        assert {one.id for one in steady.jobs()} - before == {job.id}


def test_nobody_there_is_an_error_of_its_own():
    with Client("http://127.0.0.1:9", "k") as client, pytest.raises(ApiError) as problem:
        client.delete("video_x")
    assert (problem.value.status, problem.value.code) == (0, "unreachable")
    with pytest.raises(ApiError):
        Client("ftp://example.com")


def test_the_command_renders_on_a_running_service(service: Any, tmp_path: Path):
    def run(*words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "serving", "animate", *map(str, words)]
        environment = {**os.environ, "DYNAMICTRL_API_KEY": service.key}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)

    wish = ["--image", service.person, "--pose-video", service.pose, "--prompt", "p", "--num-frames", 5]
    done = run("--url", service.url, *wish, "--out", tmp_path / "clip.mp4", "--seed", 9)
    assert done.returncode == 0, done.stderr
    assert "seed 9" in done.stderr
    assert read_video(tmp_path / "clip.mp4").frames.shape == (5, 96, 64, 3)
    refused = run("--url", service.url, *wish, "--out", tmp_path / "other.mp4", "--size", "65x96")
    assert refused.returncode == 1
    assert "multiples of 16" in refused.stderr.splitlines()[-1]
    missing = run("--url", service.url, "--image", "no.png", *wish[2:], "--out", tmp_path / "o.mp4")
    assert missing.returncode == 2
