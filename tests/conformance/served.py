"""A whole service in this process for stock clients to drive: uvicorn, the real store, dispatcher and worker."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import uvicorn

from serving.backend import Backend, open_backend
from serving.config import Defaults, Limits
from serving.jobs.dispatcher import Dispatcher
from serving.media.safe_connect import Reach
from serving.recipes import mini
from serving.rendering.worker import Worker
from serving.tenants.keyring import Keyring
from serving.tenants.tenant import SCOPES
from serving.web.api import build_api
from serving.webhooks.deliverer import Deliverer
from serving.webhooks.outbox import Outbox
from serving.webhooks.signing import WebhookSecrets


@dataclass(frozen=True)
class Served:
    """Where the service is, and what a client needs to use it."""

    url: str
    key: str
    reading_key: str
    """May look, and change nothing."""
    hasty_key: str
    """Of a tenant with one request a minute."""
    other_key: str
    """Of another tenant."""
    webhook_secret: str
    broken_url: str
    """A service whose job store is gone."""
    person: str
    pose: str
    figure: str
    """A video in which the pose model sees a person."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@contextmanager
def listening(backend: Backend) -> Iterator[str]:
    """The HTTP surface of one service on a free port."""
    server = uvicorn.Server(uvicorn.Config(build_api(backend.service, backend), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        threading.Event().wait(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(20)


@contextmanager
def rendering(backend: Backend) -> Iterator[Worker]:
    """A dispatcher and one worker, as on Ray, on an event loop of their own."""
    worker, loop = Worker(backend), asyncio.new_event_loop()

    async def render(video_id: str, token: int) -> str:
        return await asyncio.to_thread(worker.render, video_id, token)

    dispatcher = Dispatcher(backend, render)
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    loop.call_soon_threadsafe(dispatcher.start)
    yield worker
    asyncio.run_coroutine_threadsafe(dispatcher.drain(10), loop).result(20)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    worker.leave()


@contextmanager
def served(model: Path, folder: Path, person: Path, pose: Path, figure: Path) -> Iterator[Served]:
    """Everything, with keys of several kinds."""
    service = replace(
        mini(), model=str(model), data_folder=folder / "data", threads=1, require_keys=True,
        defaults=Defaults(width=64, height=96, num_frames=9, num_inference_steps=2, guidance_scale=1.0),
        person_check="render", limits=Limits(body_bytes=3_000_000, media_bytes=1_000_000),
        private_hosts=("127.0.0.1",)
    )  # fmt: skip
    backend = open_backend(service)
    keyring, secrets = Keyring(backend.store.engine), WebhookSecrets(backend.store.engine)
    keyring.set_quotas("hasty", {"requests_per_minute": 1, "burst": 1})
    deliverer = Deliverer(Outbox(backend.store.engine), secrets, Reach(service.private_hosts))
    deliverer.start()
    broken = open_backend(replace(service, data_folder=folder / "broken"))
    broken_key, _ = keyring.create("ada", SCOPES)
    with rendering(backend), listening(backend) as url, listening(broken) as broken_url:
        broken.store.engine.dispose()
        (folder / "broken" / "jobs.db").write_bytes(b"no database any more" * 1000)
        yield Served(
            url=f"{url}/v1", key=broken_key, reading_key=keyring.create("ada", ("videos:read",))[0],
            hasty_key=keyring.create("hasty", SCOPES)[0], other_key=keyring.create("bob", SCOPES)[0],
            webhook_secret=secrets.rotate("ada"), broken_url=f"{broken_url}/v1", person=str(person), pose=str(pose),
            figure=str(figure)
        )  # fmt: skip
    deliverer.stop(5)
