"""Bodies for the OpenAPI document: they are read by hand (`http_body.py`), so FastAPI cannot know them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from serving.jobs.job import MEDIA, Medium

_BINARY = {"type": "string", "format": "binary"}
_REFERENCE = {
    "type": "object",
    "properties": {
        "file_id": {"type": "string", "description": "A file of /v1/files, or a character."},
        "url": {"type": "string", "description": "A data: URL, or an http(s) URL where the service fetches such."},
    },
}
_JOB = {"type": "object", "required": ["id"], "properties": {"id": {"type": "string", "description": "A job's id."}}}


def in_json(model: type[BaseModel]) -> dict[str, Any]:
    """A body of plain fields, as JSON."""
    return _body({"application/json": model.model_json_schema()})


def with_media(model: type[BaseModel], media: tuple[Medium, ...] = MEDIA, *, video: str = "") -> dict[str, Any]:
    """A body of plain fields and media, as form or JSON; `video` is "", "clip" or "job" (a clip or a job's id)."""
    schema = model.model_json_schema()
    parts: dict[str, list[dict[str, Any]]] = {medium: [_REFERENCE] for medium in media}
    if video:
        parts["video"] = [_REFERENCE, _JOB] if video == "job" else [_REFERENCE]
        schema["required"] = [*schema.get("required", []), "video"]
    kinds = {"multipart/form-data": [_BINARY], "application/json": []}
    return _body(
        {
            kind: {
                **schema,
                "properties": {**schema["properties"], **{name: {"anyOf": [*more, *of]} for name, of in parts.items()}},
            }
            for kind, more in kinds.items()
        }
    )


def _body(schemas: dict[str, dict[str, Any]]) -> dict[str, Any]:
    content = {kind: {"schema": schema} for kind, schema in schemas.items()}
    return {"requestBody": {"required": True, "content": content}}
