"""A request's body, multipart or JSON, taken apart into plain fields and media; no byte of a medium is believed yet.

The stock SDK writes a dict as bracket keys (`pose_video[file_id]`), and turns bytes in `extra_body` silently into their
repr: both are known here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches

from starlette.datastructures import UploadFile
from starlette.requests import Request

from serving.blobs import is_id
from serving.config import Limits
from serving.http_errors import ApiError
from serving.jobs import MEDIA, Medium
from serving.wire import VideoRequest

ALIASES: dict[str, Medium] = {"control_reference": "pose_video", "video_reference": "driving_video"}
"""What other servers of this API call our media."""
NOT_OFFERED = {
    "webhook_url": "webhooks are not offered: poll GET /v1/videos/{id}, or follow GET /v1/videos/{id}/events",
    "webhook_secret": "webhooks are not offered: poll GET /v1/videos/{id}, or follow GET /v1/videos/{id}/events",
}
MAX_FIELDS = 64

_BRACKETS = re.compile(r"(\w+)\[(\w*)\]")
_REPR = re.compile(r"""b['"]|bytearray\(b['"]|<_io\.|<tempfile\.|PosixPath\(""")


@dataclass(frozen=True)
class FileId:
    """A medium sent ahead through /v1/files."""

    id: str


@dataclass(frozen=True)
class DataUrl:
    """A small medium written into the request."""

    text: str


Source = UploadFile | FileId | DataUrl


@dataclass(frozen=True)
class Body:
    """A request taken apart."""

    fields: dict[str, object] = field(default_factory=dict)
    media: dict[Medium, Source] = field(default_factory=dict)


async def read_body(request: Request, limits: Limits) -> Body:
    """Reads POST /v1/videos; ApiError for what is no form and no JSON, for unknown fields and unusable references."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return sort_fields((await read_json(request)).items(), limits)
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        form = await request.form(max_files=8, max_fields=MAX_FIELDS, max_part_size=limits.data_url_bytes)
        return sort_fields(form.multi_items(), limits)
    raise ApiError(
        415, "content_type", f"content-type is {kind or 'missing'!r}; send multipart/form-data or application/json"
    )


async def read_json(request: Request) -> dict[str, object]:
    """The JSON object that a request holds."""
    try:
        value = json.loads(await request.body())
    except (ValueError, RecursionError) as problem:
        raise ApiError(400, "invalid_json", f"the body is no JSON ({problem})"[:300]) from problem
    if not isinstance(value, dict):
        raise ApiError(400, "invalid_json", f"the body is a JSON {type(value).__name__}; it must be an object")
    return value


def sort_fields(items: Iterable[tuple[str, object]], limits: Limits) -> Body:
    """Tells media from plain fields, and refuses what is neither."""
    body, seen = Body(), set[str]()
    references: dict[Medium, dict[str, object]] = {}
    for key, value in items:
        if key in seen:
            raise ApiError(400, "repeated_parameter", f"{key} was given more than once", key)
        seen.add(key)
        match = _BRACKETS.fullmatch(key)
        name = match[1] if match else key
        medium = _medium(name)
        if medium is None:
            _keep_field(body, key, value)
        elif match:
            references.setdefault(medium, {})[match[2]] = value
        elif value is not None and value != "":
            _keep_medium(body, medium, to_source(value, medium, limits))
    for medium, reference in references.items():
        _keep_medium(body, medium, to_source(reference, medium, limits))
    return body


def to_source(value: object, param: str, limits: Limits) -> Source:
    """Where a medium's bytes are; ApiError with advice where they cannot be had."""
    if isinstance(value, UploadFile):
        return value
    if isinstance(value, dict):
        return _of_reference(value, param, limits)
    if not isinstance(value, str):
        raise ApiError(400, "bad_media_reference", f"{param} is a {type(value).__name__}; {_ADVICE}", param)
    if _REPR.match(value):
        raise ApiError(
            400,
            "bytes_as_text",
            f"{param} arrived as the text of Python bytes or of a file object: the SDK does that to media in "
            "extra_body. Send it ahead with client.files.create(...) and pass {'file_id': ...}",
            param,
        )
    if value.startswith("data:"):
        if len(value) > limits.data_url_bytes:
            raise ApiError(
                400, "data_url_too_long",
                f"{param}'s data URL has {len(value)} characters; at most {limits.data_url_bytes} are taken: send it "
                "ahead through /v1/files", param
            )  # fmt: skip
        return DataUrl(value)
    if re.match(r"(?i)[a-z][a-z0-9+.-]*://", value):
        raise ApiError(
            400, "url_not_enabled",
            f"{param} is a URL and this service fetches none: send the file as a form part, or ahead through "
            "/v1/files", param
        )  # fmt: skip
    if is_id(value, "file"):
        return FileId(value)
    raise ApiError(400, "bad_media_reference", f"{param} is {value[:40]!r}; {_ADVICE}", param)


_ADVICE = "give a file part, {'file_id': ...} of /v1/files, or a data: URL"


def _of_reference(reference: dict[str, object], param: str, limits: Limits) -> Source:
    given = {key: value for key, value in reference.items() if value is not None}
    if len(given) == 1:
        ((key, value),) = given.items()
        if key == "file_id" and isinstance(value, str):
            return FileId(value)
        if key in ("url", "image_url", "video_url") and isinstance(value, str):
            return to_source(value, param, limits)
    raise ApiError(
        400, "bad_media_reference", f"{param} has the keys {sorted(map(str, given))[:5]}; give one of file_id and url",
        param
    )  # fmt: skip


def _medium(name: str) -> Medium | None:
    for medium in MEDIA:
        if medium == name:
            return medium
    return ALIASES.get(name)


def _keep_medium(body: Body, medium: Medium, source: Source) -> None:
    if medium in body.media:
        raise ApiError(400, "repeated_parameter", f"{medium} was given more than once", medium)
    body.media[medium] = source


def _keep_field(body: Body, key: str, value: object) -> None:
    if key in NOT_OFFERED:
        raise ApiError(400, "not_offered", NOT_OFFERED[key], key)
    if key == "control_type":
        if value != "pose":
            raise ApiError(400, "control_type", f"control_type is {str(value)[:40]!r}; only 'pose' is known", key)
        return
    if key not in VideoRequest.model_fields:
        near = get_close_matches(key, [*VideoRequest.model_fields, *MEDIA], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ApiError(400, "unknown_parameter", f"{key[:60]!r} is no parameter of this call{hint}", key[:60])
    if isinstance(value, UploadFile):
        raise ApiError(400, "invalid_value", f"{key} is a file; it must be a plain value", key)
    body.fields[key] = value
