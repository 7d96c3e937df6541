"""A service in the foreground: from its start to its drain."""

from __future__ import annotations

import logging
import os
import signal
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable

import ray
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig

from dynamictrl.errors import CheckpointError, DynamiCtrlError
from serving.backend import Backend, open_backend
from serving.cluster.app import APP, DRAIN_MARGIN_S, application
from serving.config import Service
from serving.jobs.readiness import readiness

logger = logging.getLogger(__name__)


def run(service: Service, announce: Callable[[str], None]) -> None:
    """Serves in the foreground until Ctrl-C or a termination signal, then drains.

    A second signal ends at once: running jobs go back to the queue when their lease runs out. Raises ConfigError where
    the data folder or the job store cannot be opened, and, on a Ray of its own, CheckpointError where the first engine
    cannot load the model.
    """
    backend = open_backend(service)
    started_here = "RAY_ADDRESS" not in os.environ
    _connect(service)
    try:
        if started_here:
            backend.presence.forget_all()
        serve.start(
            proxy_location="HeadOnly",
            http_options=HTTPOptions(
                host=service.host,
                port=service.port,
                request_timeout_s=None,
                ssl_certfile=service.ssl_certfile or None,
                ssl_keyfile=service.ssl_keyfile or None,
            ),  # fmt: skip
        )
        quiet = LoggingConfig(enable_access_log=False)  # /metrics counts requests; a line for each would bury the rest
        target = serve.RunTarget(application(service), name=APP, route_prefix="/", logging_config=quiet)
        serve.run_many([target], wait_for_applications_running=False)
        _wait_until_it_answers(backend, must_load=started_here)
        # Only now: Ray's start sets handlers of its own, and until here Ctrl-C may simply end us.
        stop = _stop_on_signals()
        announce(f"{service.scheme}://{service.host}:{service.port}")
        stop.wait()
        _drain(service)
    finally:
        serve.delete(APP) if not started_here else serve.shutdown()
        ray.shutdown()


def _connect(service: Service) -> None:
    if "RAY_ADDRESS" in os.environ:
        ray.init(log_to_driver=True)
        return
    # For the controller: after three missed checks a dead proxy is started anew. By default they are ten seconds apart.
    os.environ.setdefault("RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S", "1")
    # And one that takes long to start, on a busy machine, is not killed over it again and again.
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
    # Uploads pass through many threads; with an arena of memory for each of them, what one frees another cannot use.
    os.environ.setdefault("MALLOC_ARENA_MAX", "2")
    # "local" starts one of its own; without it Ray would join whatever else runs on this machine, a curation say.
    ray.init(address="local", num_cpus=service.num_cpus, include_dashboard=False, log_to_driver=True)


def _wait_until_it_answers(backend: Backend, *, must_load: bool) -> None:
    while not _answers(backend.service):
        application = serve.status().applications.get(APP)
        if application is not None and application.status == "DEPLOY_FAILED":
            raise DynamiCtrlError(f"Ray Serve could not start the service: {application.message}")
        state = readiness(backend)
        if must_load and state.status == "failing":
            raise CheckpointError(
                f"no engine could load the model ({', '.join(state.why)}); the log above has the whole message",
                code="model_not_loaded",
                param="model",
            )
        time.sleep(0.2)


def _answers(service: Service) -> bool:
    try:
        url = f"{service.scheme}://{_reachable(service.host)}:{service.port}/readyz"
        # The certificate is for the name that clients use, not for this address.
        itself = ssl._create_unverified_context() if service.scheme == "https" else None
        with urllib.request.urlopen(url, timeout=5, context=itself):
            return True
    except OSError:
        return False


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)


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
