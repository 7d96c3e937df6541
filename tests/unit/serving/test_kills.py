"""kill -9 at random moments of the processes that work on one queue: no job is lost, doubled or stuck.

Each process is a real Dispatcher on the real store, with a nap for a model; several share a database, as several nodes
would. The same with Ray Serve and a model is tests/benchmarks/serving_kills.py.
"""

from __future__ import annotations

import random
import secrets
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from serving.backend import open_backend
from serving.config import Service
from serving.jobs.job import Settings, Status
from serving.jobs.store import new_video_id

ROOT = Path(__file__).parents[3]
SETTINGS = Settings(
    prompt="p", width=64, height=96, num_frames=9, fps=12.0, resample=False, num_inference_steps=3, guidance_scale=3.0,
    seed=1
)  # fmt: skip
JOBS, PROCESSES, KILLS = 40, 3, 6
PROCESS = """
import asyncio, sys, time
from pathlib import Path
from serving.backend import open_backend
from serving.config import Service
from serving.jobs.dispatcher import Dispatcher
from serving.jobs.store import Verdict

folder, url = sys.argv[1:]
backend = open_backend(Service(data_folder=Path(folder), database=url, lease_s=1.5, longest_job_s=60.0, max_attempts=9))

def render(video_id, token):
    for step in range(4):
        time.sleep(0.05)
        if backend.store.report(video_id, token, stage="denoising", progress=step) is not Verdict.GO_ON:
            return "lost"
    target = Path(folder) / "committed" / f"{video_id}-{token}"
    done = backend.store.complete(video_id, token, model_version="v", expires_at=time.time() + 60)
    if done:
        target.touch()
    return "completed" if done else "lost"

async def serve():
    dispatcher = Dispatcher(backend, lambda *lease: asyncio.to_thread(render, *lease), capacity=lambda: 2)
    dispatcher.start()
    print("at work", flush=True)
    await asyncio.sleep(600)

asyncio.run(serve())
"""


def start(folder: Path, url: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS, str(folder), url], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_kills_of_every_dispatcher_in_turn_cost_no_job(database: str, request: pytest.FixtureRequest, tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    if database == "postgresql":
        url = request.getfixturevalue("postgres").new_database(f"kills_{secrets.token_hex(6)}", like="fresh")
    (tmp_path / "committed").mkdir()
    store = open_backend(Service(data_folder=tmp_path, database=url)).store
    ids = [
        store.add(
            video_id=new_video_id(), model="m", settings=SETTINGS, inputs={"pose_video": "0"}, content_hash="c",
            tenant=f"tenant{number % 4}"
        )[0].id
        for number in range(JOBS)
    ]  # fmt: skip
    processes = [start(tmp_path, url) for _ in range(PROCESSES)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == b"at work\n"
    moments = random.Random(3)
    try:
        for kill in range(KILLS):
            time.sleep(moments.uniform(0.1, 0.4))
            victim = kill % PROCESSES
            processes[victim].kill()
            processes[victim].wait()
            processes[victim] = start(tmp_path, url)
        deadline = time.monotonic() + 120
        while store.counts()[Status.COMPLETED] < JOBS and time.monotonic() < deadline:
            time.sleep(0.2)
    finally:
        for process in processes:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
    assert [video.status for video in store.many(ids).values()] == [Status.COMPLETED] * JOBS
    ends = Counter(event.status for video_id in ids for event in store.events(video_id, 0) if event.status.is_final)
    assert ends == {Status.COMPLETED: JOBS}
    committed = Counter(path.name.rpartition("-")[0] for path in (tmp_path / "committed").iterdir())
    assert max(committed.values()) == 1
    assert sum(video.attempts for video in store.many(ids).values()) > JOBS, "no kill hit a job at work"
    store.engine.dispose()
