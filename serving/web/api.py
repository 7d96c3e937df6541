"""The HTTP surface as one ASGI application. It imports no Ray, no torch; `app.py` puts it behind Ray Serve."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio.to_thread
from fastapi import FastAPI
from fastapi.responses import JSONResponse, PlainTextResponse, Response

import dynamictrl
from serving.backend import Backend, open_backend
from serving.config import Service
from serving.jobs.readiness import readiness
from serving.media.media_guard import MediaGuard
from serving.results.certificates import provenance_word
from serving.watching import page
from serving.watching.processes import Publisher
from serving.web import http_errors
from serving.web.bounded_body import PacedBody
from serving.web.gate import Gate
from serving.web.intake import Intake
from serving.web.job_views import JobViews
from serving.web.playground import playground_routes
from serving.web.routes_files import file_routes, model_routes
from serving.web.routes_follow_ups import follow_up_routes
from serving.web.routes_videos import video_routes

THREADS = 128
"""Requests that may be in a thread at once: copying a body, asking the store, waiting for a medium's facts."""


def build_api(service: Service, backend: Backend | None = None) -> FastAPI:
    """The application for one service; its data folder is opened here, its media probers with the first medium."""
    backend = backend or open_backend(service)
    guard = MediaGuard(service.limits, service.pose_model)
    intake = Intake(backend, guard)
    publisher = Publisher(backend.store.engine, "ingress")

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        # Media that take long hold a thread each; the others must not wait for those.
        anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
        warming = asyncio.get_running_loop().run_in_executor(None, guard.warm)
        publisher.start()
        yield
        publisher.stop()
        await warming
        guard.close()

    app = FastAPI(
        title="DynamiCtrl",
        version=dynamictrl.__version__,
        description="OpenAI's Videos API for pose-guided human image animation.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    http_errors.install(app)
    app.add_middleware(PacedBody, limits=service.limits)
    app.add_middleware(Gate, backend=backend)
    views = JobViews(backend)
    # Before /v1/videos/{video_id}: edits, extensions and characters are no ids.
    app.include_router(follow_up_routes(intake, views), responses=http_errors.REFUSALS)
    for router in (video_routes(backend, intake, views), file_routes(backend, intake), model_routes(backend)):
        app.include_router(router, responses=http_errors.REFUSALS)
    app.include_router(playground_routes())
    _add_service_routes(app, backend, publisher)
    return app


def _add_service_routes(app: FastAPI, backend: Backend, publisher: Publisher) -> None:
    @app.get("/healthz", tags=["service"])
    def healthz() -> dict[str, str]:
        """Whether this process answers."""
        return {"status": "ok"}

    provenance = provenance_word(backend.service)

    @app.get("/readyz", tags=["service"])
    def readyz() -> JSONResponse:
        """200 once a worker is warm, or where one is started for the next job; else 503, with the reasons."""
        state = readiness(backend)
        return JSONResponse({**state.to_dict(), "provenance": provenance}, status_code=200 if state.ok else 503)

    @app.get("/metrics", tags=["service"], response_class=PlainTextResponse)
    def numbers() -> Response:
        """Prometheus text."""
        return Response(page.render(backend, publisher), media_type=page.CONTENT_TYPE)
