"""The routes of /v1/files and /v1/models."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from serving.backend import Backend
from serving.results.blobs import file_key
from serving.results.uploads import Upload
from serving.tenants.tenant import Tenant
from serving.web.answers import FileDeleted, FileList, FileObject, ModelList, ModelObject, to_file, to_model
from serving.web.bounded_body import read_form
from serving.web.content_response import stored_response
from serving.web.http_errors import ApiError
from serving.web.intake import Intake
from serving.web.job_views import Asker

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
    async def create(request: Request, tenant: Asker) -> FileObject:
        """Keeps an image, video or mask for jobs to come."""
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise ApiError(415, "content_type", "send multipart/form-data with a part named file")
        form = await read_form(request, backend.service.limits, max_files=2, max_fields=8)
        part, purpose = form.get("file"), form.get("purpose", "user_data")
        if not isinstance(part, UploadFile):
            raise ApiError(400, "missing_parameter", "file is required, as a file part", "file")
        if not isinstance(purpose, str) or not 0 < len(purpose) <= 64:
            raise ApiError(400, "invalid_value", "purpose must be a word of 1 to 64 characters", "purpose")
        upload = await run_in_threadpool(intake.receive_upload, part, purpose, tenant)
        request.state.made = upload.id
        return to_file(upload)

    @router.get("")
    def page(
        tenant: Asker,
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
        order: Literal["asc", "desc"] = "desc",
        purpose: str | None = None,
    ) -> FileList:
        """Files, newest first unless `order` is asc."""
        try:
            found, more = backend.uploads.page(
                after=after, limit=limit, descending=order == "desc", purpose=purpose, tenant=tenant.id
            )
        except KeyError as problem:
            raise ApiError(400, "unknown_cursor", f"after is {after!r}; there is no such file", "after") from problem
        data = [to_file(upload) for upload in found]
        ends = (data[0].id, data[-1].id) if data else (None, None)
        return FileList(data=data, first_id=ends[0], last_id=ends[1], has_more=more)

    @router.get("/{file_id}")
    def retrieve(file_id: str, tenant: Asker) -> FileObject:
        """One file's facts."""
        return to_file(_must_have(backend, file_id, tenant))

    @router.head("/{file_id}/content", include_in_schema=False)
    @router.get("/{file_id}/content", response_class=Response)
    def content(request: Request, file_id: str, tenant: Asker) -> Response:
        """One file's bytes."""
        upload = _must_have(backend, file_id, tenant)
        stored = backend.blobs.storage.look(file_key(upload.id))
        if stored is None:
            raise ApiError(404, "file_not_found", f"the bytes of {upload.id} are gone", "file_id")
        # Never a type that a browser would run as a page of ours.
        kind = "application/octet-stream"
        return stored_response(
            request, backend.blobs.storage, stored, media_type=kind, filename=upload.id, attachment=True
        )

    @router.delete("/{file_id}")
    def delete(file_id: str, tenant: Asker) -> FileDeleted:
        """Forgets a file and removes its bytes."""
        _must_have(backend, file_id, tenant)
        backend.uploads.delete(file_id)
        return FileDeleted(id=file_id)

    return router


def model_routes(backend: Backend) -> APIRouter:
    """GET /v1/models: what the warm workers serve."""
    router = APIRouter(prefix="/v1/models", tags=["models"])
    loras = list(backend.service.named_loras)

    @router.get("")
    def page() -> ModelList:
        """The models that are served now; a small one says `"family": "mini"`."""
        return ModelList(data=[to_model(model, loras) for model in backend.presence.models()])

    @router.get("/{model_id:path}")
    def retrieve(model_id: str) -> ModelObject:
        """One served model."""
        for model in backend.presence.models():
            if model.name == model_id:
                return to_model(model, loras)
        raise ApiError(404, "model_not_found", f"model {model_id[:60]!r} is not served", "model")

    return router


def _must_have(backend: Backend, file_id: str, tenant: Tenant) -> Upload:
    upload = backend.uploads.get(file_id, tenant.id)
    if upload is None:
        raise ApiError(404, "file_not_found", f"there is no file {file_id[:60]!r}", "file_id")
    return upload
