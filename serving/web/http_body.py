"""A request's body, multipart or JSON, taken apart into plain fields and media; no byte of a medium is believed yet.

The stock SDK writes a dict as bracket keys (`pose_video[file_id]`), and turns bytes in `extra_body` silently into their
repr: both are known here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from starlette.datastructures import UploadFile
from starlette.requests import Request

from serving.config import Limits
from serving.jobs.job import MEDIA, Medium
from serving.results.blobs import is_id
from serving.tenants.tenant import LOCAL
from serving.web.bounded_body import parsed, read_form, read_text
from serving.web.http_errors import ApiError
from serving.web.requests import VideoRequest

ALIASES: dict[str, Medium] = {
    "control_reference": "pose_video",
    "control_video": "pose_video",
    "video_reference": "driving_video",
    "video_url": "driving_video",
    "image_reference": "input_reference",
    "image_url": "input_reference",
    "reference_url": "input_reference",
    "mask_reference": "mask",
}
"""What other servers of this API (vLLM-Omni, SGLang, FastVideo, TensorRT-LLM) call our media."""
NOT_OFFERED = {"webhook_secret": "events are signed with the tenant's own secret, which its operator makes"}
_SPELLINGS = ("width", "height", "n")

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


@dataclass(frozen=True)
class VideoId:
    """The clip of a job of ours."""

    id: str


@dataclass(frozen=True)
class Url:
    """A medium somewhere else, to be fetched."""

    text: str


Source = UploadFile | FileId | DataUrl | Url


@dataclass(frozen=True)
class Body:
    """A request taken apart."""

    fields: dict[str, object] = field(default_factory=dict)
    media: dict[Medium, Source] = field(default_factory=dict)
    video: Source | VideoId | None = None
    """What an edit, an extension or a character is made from."""


@dataclass(frozen=True)
class Call:
    """What one route takes."""

    fields: frozenset[str]
    media: tuple[Medium, ...] = MEDIA
    video: bool = False
    """Whether there is a `video` to start from: a clip or `{"id": ...}` of a job."""


CREATE = Call(frozenset(VideoRequest.model_fields))


async def read_body(request: Request, limits: Limits, call: Call = CREATE) -> Body:
    """Reads a request that may hold media; ApiError for no form and no JSON, unknown fields, unusable references."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        items: Iterable[tuple[str, object]] = (await read_json(request, limits)).items()
    elif kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        items = (await read_form(request, limits)).multi_items()
    else:
        raise ApiError(
            415, "content_type", f"content-type is {kind or 'missing'!r}; send multipart/form-data or application/json"
        )
    return _with_allowed_urls(request, sort_fields(items, limits, call), limits)


def _with_allowed_urls(request: Request, body: Body, limits: Limits) -> Body:
    """The body; ApiError where it names a URL and its sender may not."""
    tenant = request.scope.get("state", {}).get("tenant", LOCAL)
    if limits.fetch_urls == "always" or (limits.fetch_urls == "keys" and tenant != LOCAL):
        return body
    for param, source in (*body.media.items(), ("video", body.video)):
        if isinstance(source, Url):
            whom = "for requests with an API key only" if limits.fetch_urls == "keys" else "for nobody"
            raise ApiError(
                400, "url_not_enabled",
                f"{param} is a URL, which this service fetches {whom}: send the file as a form part, or ahead through "
                "/v1/files", param
            )  # fmt: skip
    return body


async def read_json(request: Request, limits: Limits) -> dict[str, object]:
    """The JSON object that a request holds."""
    try:
        value = parsed(await read_text(request, limits))
    except ValueError as problem:
        raise ApiError(400, "invalid_json", f"the body is no JSON ({problem})"[:300]) from problem
    if not isinstance(value, dict):
        raise ApiError(400, "invalid_json", f"the body is a JSON {type(value).__name__}; it must be an object")
    return value


def sort_fields(items: Iterable[tuple[str, object]], limits: Limits, call: Call = CREATE) -> Body:
    """Tells media from plain fields, and refuses what is neither."""
    fields, media = dict[str, object](), dict[Medium, Source]()
    video: Source | VideoId | None = None
    for key, value in _joined(items).items():
        if key == "video" and call.video:
            video = _to_video(value, limits)
            continue
        medium = _medium(key)
        if medium is None or medium not in call.media:
            _keep_field(fields, key, value, call)
        elif value is not None and value != "":
            if medium in media:
                raise ApiError(400, "repeated_parameter", f"{medium} was given more than once", medium)
            media[medium] = to_source(value, medium, limits)
    _join_size(fields)
    return Body(fields, media, video)


def _joined(items: Iterable[tuple[str, object]]) -> dict[str, object]:
    """The fields by name: bracket keys become one mapping, and JSON in a string what it says."""
    joined, seen = dict[str, Any](), set[str]()
    for key, value in items:
        match = _BRACKETS.fullmatch(key)
        name = match[1] if match else key
        if key in seen or (name in joined and not (match and isinstance(joined[name], dict))):
            raise ApiError(400, "repeated_parameter", f"{name} was given more than once", name)
        seen.add(key)
        if match:
            joined.setdefault(name, {})[match[2]] = value
        elif isinstance(value, str) and value.startswith("{") and (_medium(name) or name == "video"):
            joined[name] = _of_json(value, name)
        else:
            joined[name] = value
    return joined


def _of_json(text: str, name: str) -> object:
    try:
        return parsed(text)
    except ValueError as problem:
        raise ApiError(400, "bad_media_reference", f"{name} is {text[:40]!r}, which is no JSON; {_ADVICE}", name) from (
            problem
        )


def _join_size(fields: dict[str, object]) -> None:
    """Other servers take `width` and `height`; `n` is OpenAI's word for how many."""
    if "width" in fields or "height" in fields:
        width, height = fields.pop("width", None), fields.pop("height", None)
        if width is None or height is None or "size" in fields:
            raise ApiError(400, "bad_size", "give `size` as WIDTHxHEIGHT, or both of `width` and `height`", "size")
        fields["size"] = f"{width}x{height}"
    if str(fields.pop("n", 1)) != "1":
        raise ApiError(400, "invalid_value", "n must be 1: a job makes one clip", "n")


def _to_video(value: object, limits: Limits) -> Source | VideoId:
    """What an edit or an extension starts from: a job's id in one of three ways, or a clip."""
    if isinstance(value, str) and is_id(value.strip(), "video"):
        return VideoId(value.strip())
    if isinstance(value, dict) and list(value) == ["id"] and isinstance(value["id"], str):
        return VideoId(value["id"])
    return to_source(value, "video", limits)


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
        return Url(value)
    if is_id(value, "file"):
        return FileId(value)
    raise ApiError(400, "bad_media_reference", f"{param} is {value[:40]!r}; {_ADVICE}", param)


_ADVICE = "give a file part, {'file_id': ...} of /v1/files, {'url': ...}, or a data: URL"


def _of_reference(reference: dict[str, object], param: str, limits: Limits) -> Source:
    given = {key: value for key, value in reference.items() if value is not None}
    if len(given) == 1:
        ((key, value),) = given.items()
        if key in ("file_id", "character_id") and isinstance(value, str):
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


def _keep_field(fields: dict[str, object], key: str, value: object, call: Call) -> None:
    if key in NOT_OFFERED:
        raise ApiError(400, "not_offered", NOT_OFFERED[key], key)
    if key == "control_type":
        if value != "pose":
            raise ApiError(400, "control_type", f"control_type is {str(value)[:40]!r}; only 'pose' is known", key)
        return
    if key not in call.fields and key not in _SPELLINGS:
        near = get_close_matches(key, [*call.fields, *call.media], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ApiError(400, "unknown_parameter", f"{key[:60]!r} is no parameter of this call{hint}", key[:60])
    if isinstance(value, UploadFile):
        raise ApiError(400, "invalid_value", f"{key} is a file; it must be a plain value", key)
    fields[key] = value
