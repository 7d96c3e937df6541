"""The service on Ray Serve: an HTTP ingress, a dispatcher, and model replicas that it calls through their handle.

So running work is a Serve request: autoscaling counts it, a drain waits for it, and a dead replica raises in the
dispatcher at once. Media and clips never pass through Serve's handles; they lie in the data folder. The only file of
`serving` that imports Ray.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from dynamictrl.errors import ConfigError
from serving.backend import open_backend
from serving.config import Service
from serving.dispatcher import Dispatcher
from serving.recipes import RECIPES

logger = logging.getLogger(__name__)

APP = "dynamictrl"
DRAIN_MARGIN_S = 30.0
"""Seconds over the longest job that Serve grants a replica before it is killed."""


class Renderer:
    """One model replica: a Worker behind a Serve request."""

    def __init__(self, service: Service):
        # Imported here: the ingress and the dispatcher need no torch.
        from serving.worker import Worker

        self._worker = Worker(open_backend(service))

    async def render(self, video_id: str, token: int) -> str:
        """Renders one leased job, in a thread: Serve's health checks go on meanwhile."""
        return await asyncio.to_thread(self._worker.render, video_id, token)

    def __del__(self):
        with suppress(AttributeError):  # the model could not be loaded
            self._worker.leave()


class Dispatch:
    """The one that takes jobs from the store to the renderers."""

    def __init__(self, service: Service, renderer: DeploymentHandle):
        self._service = service
        self._renderer = renderer
        self._dispatcher: Dispatcher | None = None
        self._starting = asyncio.get_running_loop().create_task(self._start())

    async def _start(self) -> None:
        async def render(video_id: str, token: int) -> str:
            return await self._renderer.render.remote(video_id, token)

        self._dispatcher = Dispatcher(await asyncio.to_thread(open_backend, self._service), render)
        self._dispatcher.start()

    async def drain(self, seconds: float) -> int:
        """Stops taking jobs; returns how many had to go back to the queue after `seconds`."""
        return await self._dispatcher.drain(seconds) if self._dispatcher else 0

    def check_health(self) -> None:
        """Serve replaces a replica that could not start, or whose loop has ended."""
        if self._starting.done():
            self._starting.result()
        if self._dispatcher is not None and not self._dispatcher.is_alive and not self._dispatcher.is_draining:
            raise RuntimeError("the dispatcher has stopped")

    async def __del__(self):
        await self.drain(self._service.longest_job_s)


def application(service: Service) -> serve.Application:
    """The Serve application of one service."""
    grace = service.longest_job_s + DRAIN_MARGIN_S
    renderer = serve.deployment(
        name="renderer",
        num_replicas=service.engines,
        max_ongoing_requests=1,
        graceful_shutdown_timeout_s=grace,
        ray_actor_options={"num_cpus": service.cpus_per_engine, "num_gpus": service.gpus_per_engine},
    )(Renderer).bind(service)
    dispatch = serve.deployment(
        name="dispatcher",
        graceful_shutdown_timeout_s=grace,
        ray_actor_options={"num_cpus": 0},
    )(Dispatch).bind(service, renderer)
    return serve.deployment(
        name="ingress",
        max_ongoing_requests=100,
        graceful_shutdown_timeout_s=service.limits.wait_seconds + DRAIN_MARGIN_S,
        ray_actor_options={"num_cpus": 0},
    )(serve.ingress(_api_builder(service))(Front)).bind(dispatch)


class Front:
    """The HTTP ingress; its routes are `api.build_api`'s. It holds the dispatcher so that Serve deploys it too."""

    def __init__(self, dispatch: DeploymentHandle):
        self._dispatch = dispatch


def _api_builder(service: Service) -> Callable[[], Any]:
    def build_asgi_app() -> Any:  # noqa: ANN401 - Serve evaluates its return type
        from serving.api import build_api

        return build_api(service)

    return build_asgi_app


def build(args: dict[str, str]) -> serve.Application:
    """For Serve config files (`infra/kuberay/serve.yaml`): `recipe` and any plain field of it, as text.

    Raises ConfigError for a recipe or field that is not there, and for a value out of its range.
    """
    words = dict(args)
    recipe = words.pop("recipe", "production")
    if recipe not in RECIPES:
        raise ConfigError(f"there is no recipe {recipe!r}; there are {', '.join(RECIPES)}", code="recipe")
    service = RECIPES[recipe]()
    changes: dict[str, Any] = {}
    for name, text in words.items():
        current = getattr(service, name, None)
        if not isinstance(current, (str, int, float, Path, tuple)):
            raise ConfigError(f"{name!r} is no plain field of a service; see serving/config.py", code="unknown_field")
        changes[name] = tuple(text.split(",")) if isinstance(current, tuple) else type(current)(text)
    return application(replace(service, **changes))


def run(service: Service, announce: Callable[[str], None]) -> None:
    """Serves in the foreground until Ctrl-C or a termination signal, then drains.

    A second signal ends at once: running jobs go back to the queue when their lease runs out. Raises ConfigError where
    the data folder or the job store cannot be opened.
    """
    backend = open_backend(service)
    started_here = "RAY_ADDRESS" not in os.environ
    _connect(service)
    try:
        if started_here:
            backend.presence.forget_all()
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": service.host, "port": service.port, "request_timeout_s": None},
        )
        quiet = LoggingConfig(enable_access_log=False)  # /metrics counts requests; a line for each would bury the rest
        serve.run(application(service), name=APP, route_prefix="/", logging_config=quiet)
        # Only now: Ray's start sets handlers of its own, and until here Ctrl-C may simply end us.
        stop = _stop_on_signals()
        announce(f"http://{service.host}:{service.port}")
        stop.wait()
        _drain(service)
    finally:
        serve.delete(APP) if not started_here else serve.shutdown()
        ray.shutdown()


def _connect(service: Service) -> None:
    if "RAY_ADDRESS" in os.environ:
        ray.init(log_to_driver=True)
        return
    ray.init(num_cpus=service.num_cpus, include_dashboard=False, log_to_driver=True)


def _drain(service: Service) -> None:
    handle = serve.get_deployment_handle("dispatcher", APP)
    given_back = handle.drain.remote(service.drain_s).result(timeout_s=service.drain_s + DRAIN_MARGIN_S)
    if given_back:
        logger.warning("%d running jobs went back to the queue; the next start takes them up", given_back)


def _stop_on_signals() -> threading.Event:
    """Set by the first SIGINT or SIGTERM; the second one acts as it would without us."""
    stop = threading.Event()

    def first(number: int, _frame: object) -> None:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, first)
    return stop
