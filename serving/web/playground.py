"""The playground: static files of `serving/playground/`, by name; nothing else of the disk can be asked for."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

from serving.web.http_errors import ApiError

FOLDER = Path(__file__).parents[1] / "playground"
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".webp": "image/webp", ".mp4": "video/mp4"}
HEADERS = {
    # What a client sent is shown as text and as blobs alone; nothing of another site is loaded or run.
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def playground_routes() -> APIRouter:
    """`/` and the files that its page names."""
    files = {path.name: path for path in FOLDER.iterdir() if path.suffix in KINDS}
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    def page() -> FileResponse:
        return _sent(files["index.html"])

    @router.get("/playground/{name}")
    def file(name: str) -> FileResponse:
        if name not in files:
            raise ApiError(404, "not_found", f"the playground has no file {name[:60]!r}", "name")
        return _sent(files[name])

    return router


def _sent(path: Path) -> FileResponse:
    return FileResponse(path, media_type=KINDS[path.suffix], headers=HEADERS)
