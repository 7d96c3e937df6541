"""The HTTP surface as one ASGI application. It imports no Ray, no torch; `app.py` puts it behind Ray Serve."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse

import dynamictrl
from serving import http_errors, metrics
from serving.backend import Backend, open_backend
from serving.config import Service
from serving.gate import Gate
from serving.intake import Intake
from serving.media_guard import MediaGuard
from serving.routes_files import file_routes, model_routes
from serving.routes_videos import video_routes

PLAYGROUND = Path(__file__).parent / "playground" / "index.html"


def build_api(service: Service, backend: Backend | None = None) -> FastAPI:
    """The application for one service; its data folder is opened here, its media probers with the first medium."""
    backend = backend or open_backend(service)
    guard = MediaGuard(service.limits, service.pose_model)
    intake = Intake(backend, guard)
    answered: Counter[tuple[str, int]] = Counter()

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        warming = asyncio.get_running_loop().run_in_executor(None, guard.warm)
        yield
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
    app.add_middleware(Gate, service=service, answered=answered)
    for router in (video_routes(backend, intake), file_routes(backend, intake), model_routes(backend)):
        app.include_router(router)
    _add_service_routes(app, backend, answered)
    return app


def _add_service_routes(app: FastAPI, backend: Backend, answered: Counter[tuple[str, int]]) -> None:
    @app.get("/healthz", tags=["service"])
    def healthz() -> dict[str, str]:
        """Whether this process answers."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["service"])
    def readyz() -> JSONResponse:
        """200 once a worker is warm, else 503."""
        warm = backend.presence.count()
        content = {"status": "ready" if warm else "warming up", "workers": warm}
        return JSONResponse(content, status_code=200 if warm else 503)

    @app.get("/metrics", tags=["service"], response_class=PlainTextResponse)
    def numbers() -> PlainTextResponse:
        """Prometheus text."""
        text = metrics.render(backend, answered)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/", include_in_schema=False)
    def playground() -> FileResponse:
        return FileResponse(PLAYGROUND, media_type="text/html")
