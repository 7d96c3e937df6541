"""A whole service on a free port without Ray: the real HTTP application under uvicorn, and one worker beside it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn

from serving.backend import Backend, open_backend
from serving.config import Service
from serving.rendering.worker import Worker
from serving.web.api import build_api


@dataclass(frozen=True)
class LiveService:
    """Where it listens, and the store behind it."""

    url: str
    backend: Backend


@contextmanager
def serve(service: Service) -> Iterator[LiveService]:
    """Serves until the block ends; jobs are rendered one after the other."""
    backend, stop = open_backend(service), threading.Event()
    server = uvicorn.Server(uvicorn.Config(build_api(service, backend), port=0, log_level="warning"))
    web = threading.Thread(target=server.run, daemon=True)
    work = threading.Thread(target=_render, args=(backend, stop), daemon=True)
    web.start()
    work.start()
    try:
        while not (server.started and backend.presence.count()):
            time.sleep(0.05)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield LiveService(f"http://127.0.0.1:{port}", backend)
    finally:
        stop.set()
        server.should_exit = True
        work.join(60)
        web.join(60)


def _render(backend: Backend, stop: threading.Event) -> None:
    worker = Worker(backend)
    while not stop.wait(0.05):
        while lease := backend.store.lease("live", 60.0, 3):
            worker.render(lease.video.id, lease.token)
    worker.leave()
