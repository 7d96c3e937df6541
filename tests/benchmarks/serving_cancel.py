"""How long a cancelled job keeps its worker: POST cancel over HTTP to the moment the worker could take the next job.

    python -m tests.benchmarks.serving_cancel [--cancels 20] [--model mini/dynamictrl] [--postgres]

The real HTTP surface on uvicorn, the real dispatcher and worker, without Ray (which only carries the call). Each job is
cancelled at a random moment of its denoising; told are the time of a step in the same run, the time to the
worker's freedom, and what is left of it beyond one step.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import socket
import statistics
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import httpx
import uvicorn

from serving.backend import open_backend
from serving.jobs.dispatcher import Dispatcher
from serving.recipes import mini
from serving.rendering.worker import Worker
from serving.web.api import build_api
from tests.benchmarks.serving_kills import make_media
from tests.postgres import LocalPostgres


def main(cancels: int, model: str, postgres: LocalPostgres | None) -> None:
    folder = Path(tempfile.mkdtemp(prefix="serving-cancel-"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    database = postgres.url() if postgres else ""
    service = replace(
        mini(), model=model, data_folder=folder, port=port, person_check="render", database=database, threads=2
    )
    backend = open_backend(service)
    worker = Worker(backend)
    server = uvicorn.Server(uvicorn.Config(build_api(service, backend), port=port, log_level="warning"))

    async def dispatch() -> None:
        Dispatcher(backend, lambda *lease: asyncio.to_thread(worker.render, *lease), capacity=lambda: 1).start()
        await server.serve()

    thread = threading.Thread(target=lambda: asyncio.run(dispatch()), daemon=True)
    thread.start()
    person, pose = make_media(folder, frames=9)
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}/v1", timeout=60)
    while not server.started:
        time.sleep(0.1)
    files = [
        client.post("/files", files={"file": (path.name, path.read_bytes())}, data={"purpose": "x"}).json()["id"]
        for path in (person, pose)
    ]
    moments, steps, freed, answered = random.Random(5), [], [], []
    for number in range(cancels):
        wish = {
            "prompt": "a figure", "input_reference": {"file_id": files[0]}, "pose_video": {"file_id": files[1]},
            "num_frames": 9, "size": "64x96", "num_inference_steps": 100, "seed": number
        }  # fmt: skip
        video_id = client.post("/videos", json=wish).raise_for_status().json()["id"]
        while (backend.store.many([video_id])[video_id].step or 0) < 3:
            time.sleep(0.02)
        time.sleep(moments.uniform(0.2, 0.8))
        seen = [event for event in backend.store.events(video_id, 0) if event.step]
        steps.append((seen[-1].at - seen[0].at) / ((seen[-1].step or 1) - (seen[0].step or 0)))
        began = time.perf_counter()
        answer: list[float] = []
        post = threading.Thread(target=_cancel, args=(client, video_id, began, answer))
        post.start()
        while worker._at_work is not None:
            time.sleep(0.001)
        freed.append(time.perf_counter() - began)
        post.join()
        answered.append(answer[0])
        status = backend.store.many([video_id])[video_id].status
        assert status == "cancelled", status
    beyond = [free - step for free, step in zip(freed, steps, strict=True)]
    print(f"{cancels} cancels, {model}, {'PostgreSQL' if postgres else 'SQLite'}, {os.cpu_count()} cores, load "
          f"{os.getloadavg()[0]:.1f}")  # fmt: skip
    for name, values in (("one step", steps), ("cancel to free worker", freed), ("beyond one step", beyond),
                         ("cancel to its answer", answered)):  # fmt: skip
        print(f"| {name} | median {statistics.median(values):.3f} s | longest {max(values):.3f} s |")
    server.should_exit = True
    thread.join(20)
    worker.leave()


def _cancel(client: httpx.Client, video_id: str, began: float, answer: list[float]) -> None:
    client.post(f"/videos/{video_id}/cancel").raise_for_status()
    answer.append(time.perf_counter() - began)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cancels", type=int, default=20)
    parser.add_argument("--model", default="mini/dynamictrl")
    parser.add_argument("--postgres", action="store_true")
    wish = parser.parse_args()
    server = LocalPostgres() if wish.postgres else None
    if server:
        server.start()
    try:
        main(wish.cancels, wish.model, server)
    finally:
        if server:
            server.remove()
