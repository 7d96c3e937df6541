"""The routes of /v1/files and /v1/models."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from serving.backend import Backend
from serving.http_errors import ApiError
from serving.intake import Intake
from serving.uploads import Upload
from serving.wire import FileDeleted, FileList, FileObject, ModelList, ModelObject, to_file, to_model

_UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "default": "user_data"},
                    },
                }
            }
        },
    }
}


def file_routes(backend: Backend, intake: Intake) -> APIRouter:
    """Every route under /v1/files."""
    router = APIRouter(prefix="/v1/files", tags=["files"])

    @router.post("", openapi_extra=_UPLOAD)
    async def create(request: Request) -> FileObject:
        """Keeps an image, video or mask for jobs to come."""
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise ApiError(415, "content_type", "send multipart/form-data with a part named file")
        form = await request.form(max_files=2, max_fields=8)
        part, purpose = form.get("file"), form.get("purpose", "user_data")
        if not isinstance(part, UploadFile):
            raise ApiError(400, "missing_parameter", "file is required, as a file part", "file")
        if not isinstance(purpose, str) or not 0 < len(purpose) <= 64:
            raise ApiError(400, "invalid_value", "purpose must be a word of 1 to 64 characters", "purpose")
        return to_file(await run_in_threadpool(intake.receive_upload, part, purpose))

    @router.get("")
    def page(
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
        order: Literal["asc", "desc"] = "desc",
        purpose: str | None = None,
    ) -> FileList:
        """Files, newest first unless `order` is asc."""
        try:
            found, more = backend.uploads.page(after=after, limit=limit, descending=order == "desc", purpose=purpose)
        except KeyError as problem:
            raise ApiError(400, "unknown_cursor", f"after is {after!r}; there is no such file", "after") from problem
        data = [to_file(upload) for upload in found]
        ends = (data[0].id, data[-1].id) if data else (None, None)
        return FileList(data=data, first_id=ends[0], last_id=ends[1], has_more=more)

    @router.get("/{file_id}")
    def retrieve(file_id: str) -> FileObject:
        """One file's facts."""
        return to_file(_must_have(backend, file_id))

    @router.get("/{file_id}/content", response_class=FileResponse)
    def content(file_id: str) -> FileResponse:
        """One file's bytes."""
        upload = _must_have(backend, file_id)
        # Never a type that a browser would run as a page of ours.
        return FileResponse(backend.blobs.file(upload.id), media_type="application/octet-stream", filename=upload.id)

    @router.delete("/{file_id}")
    def delete(file_id: str) -> FileDeleted:
        """Forgets a file and removes its bytes."""
        _must_have(backend, file_id)
        backend.uploads.delete(file_id)
        return FileDeleted(id=file_id)

    return router


def model_routes(backend: Backend) -> APIRouter:
    """GET /v1/models: what the warm workers serve."""
    router = APIRouter(prefix="/v1/models", tags=["models"])

    @router.get("")
    def page() -> ModelList:
        """The models that are served now; a small one says `"family": "mini"`."""
        return ModelList(data=[to_model(model) for model in backend.presence.models()])

    @router.get("/{model_id:path}")
    def retrieve(model_id: str) -> ModelObject:
        """One served model."""
        for model in backend.presence.models():
            if model.name == model_id:
                return to_model(model)
        raise ApiError(404, "model_not_found", f"model {model_id[:60]!r} is not served", "model")

    return router


def _must_have(backend: Backend, file_id: str) -> Upload:
    upload = backend.uploads.get(file_id)
    if upload is None:
        raise ApiError(404, "file_not_found", f"there is no file {file_id[:60]!r}", "file_id")
    return upload
