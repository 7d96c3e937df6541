"""The database goes away in the middle of jobs and comes back: nothing lost, nothing doubled, nothing begun anew."""

from __future__ import annotations

import asyncio
import secrets
import time
from pathlib import Path

from serving.backend import Backend, open_backend
from serving.config import Service
from serving.jobs.dispatcher import Dispatcher
from serving.jobs.job import Settings, Status
from serving.jobs.presence import ServedModel
from serving.jobs.store import Verdict, new_video_id
from serving.web.http_errors import install
from tests.postgres import LocalPostgres

SETTINGS = Settings(
    prompt="p", width=64, height=96, num_frames=9, fps=12.0, resample=False, num_inference_steps=3, guidance_scale=3.0,
    seed=1
)  # fmt: skip
JOBS, ENGINES, STEPS, AWAY_S = 8, 2, 8, 6.0


def render(backend: Backend, video_id: str, token: int) -> str:
    """What a worker does, with a nap for a model."""
    for step in range(STEPS):
        time.sleep(0.1)
        verdict = backend.store.report(video_id, token, stage="denoising", progress=step, step=step, steps=STEPS)
        if verdict is not Verdict.GO_ON:
            return "lost"
    done = backend.store.complete(video_id, token, model_version="v", expires_at=time.time() + 60)
    return "completed" if done else "lost"


def test_jobs_outlive_the_loss_of_their_database(postgres: LocalPostgres, tmp_path: Path):
    url = postgres.new_database(f"outage_{secrets.token_hex(6)}", like="fresh")
    backend = open_backend(
        Service(data_folder=tmp_path, database=url, max_engines=ENGINES, lease_s=5.0, longest_job_s=60.0)
    )
    ids = [
        backend.store.add(
            video_id=new_video_id(), model="m", settings=SETTINGS, inputs={"pose_video": "0"}, content_hash="c"
        )[0].id
        for _ in range(JOBS)
    ]
    backend.presence.beat("w", ServedModel("m", "v", mini=True))

    async def serve() -> None:
        dispatcher = Dispatcher(
            backend, lambda *lease: asyncio.to_thread(render, backend, *lease), capacity=lambda: ENGINES
        )
        dispatcher.start()
        await asyncio.sleep(1.0)
        await asyncio.to_thread(postgres.stop)
        await asyncio.sleep(AWAY_S)
        assert dispatcher.is_alive
        await asyncio.to_thread(postgres.start)
        deadline = time.monotonic() + 60
        while backend.store.counts()[Status.COMPLETED] < JOBS and time.monotonic() < deadline:
            await asyncio.sleep(0.2)
        await dispatcher.drain(5.0)

    asyncio.run(serve())
    videos = backend.store.many(ids)
    assert [videos[video_id].status for video_id in ids] == [Status.COMPLETED] * JOBS
    assert [videos[video_id].attempts for video_id in ids] == [1] * JOBS
    ends = [event.version for video_id in ids for event in backend.store.events(video_id, 0) if event.status.is_final]
    assert len(ends) == JOBS
    backend.store.engine.dispose()


def test_a_request_meanwhile_is_told_to_come_again(postgres: LocalPostgres, tmp_path: Path):
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    url = postgres.new_database(f"outage_{secrets.token_hex(6)}", like="fresh")
    backend = open_backend(Service(data_folder=tmp_path, database=url))
    app = FastAPI()
    install(app)

    @app.get("/job")
    def job() -> bool:
        return backend.store.get("video_none") is None

    client = TestClient(app, raise_server_exceptions=False)
    assert client.get("/job").json() is True
    postgres.stop()
    try:
        refused = client.get("/job")
    finally:
        postgres.start()
    assert (refused.status_code, refused.json()["error"]["code"], refused.headers["retry-after"]) == (
        503, "store_unavailable", "2"
    )  # fmt: skip
    assert client.get("/job").json() is True
    backend.store.engine.dispose()
