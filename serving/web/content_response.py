"""Stored bytes as an HTTP answer: whole, one range of them, or just their headers; the same for a folder and a bucket.

Several ranges in one request are answered with the whole, as RFC 9110 allows: no player asks for them, and they are a
known way to make a server work hard.
"""

from __future__ import annotations

import re
from email.utils import formatdate, parsedate_to_datetime

from fastapi import Request
from fastapi.responses import RedirectResponse, Response, StreamingResponse

from serving.results.storage import Storage, Stored
from serving.web import http_errors

_RANGE = re.compile(r"bytes=\s*(\d*)\s*-\s*(\d*)\s*", re.ASCII | re.IGNORECASE)


def stored_response(
    request: Request, storage: Storage, stored: Stored, *, media_type: str, filename: str, attachment: bool = False
) -> Response:
    """The answer to a GET or HEAD of `stored`; 304, 206 or 416 where the request's headers ask for it."""
    headers = {
        "accept-ranges": "bytes",
        # A clip is its sender's: a shared cache may not keep it, a browser asks each time whether it still is.
        "cache-control": "private, no-cache",
        "content-disposition": f'{"attachment" if attachment else "inline"}; filename="{filename}"',
        "etag": stored.etag,
        "last-modified": formatdate(stored.modified, usegmt=True),
        "x-content-type-options": "nosniff",
    }
    if _is_known(request, stored):
        return Response(status_code=304, headers={k: v for k, v in headers.items() if not k.startswith("content-")})
    span = wanted_range(request.headers.get("range", ""), stored.size)
    if span is None or not _may_use_range(request, stored):
        span, status = (0, stored.size), 200
    elif span[0] >= span[1]:
        refusal = http_errors.response(
            416,
            "range_not_satisfiable",
            f"the content has {stored.size} bytes; the range asks for none of them",
            "Range",
        )
        refusal.headers["content-range"] = f"bytes */{stored.size}"
        return refusal
    else:
        status = 206
        headers["content-range"] = f"bytes {span[0]}-{span[1] - 1}/{stored.size}"
    headers["content-length"] = str(span[1] - span[0])
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=media_type)
    pieces = storage.read(stored, *span) if span[1] > span[0] else iter(())
    return StreamingResponse(pieces, status_code=status, headers=headers, media_type=media_type)


def redirect(url: str) -> Response:
    """To a signed URL: not to be kept by anyone, since it lets its holder in."""
    return RedirectResponse(url, status_code=307, headers={"cache-control": "private, no-store"})


def wanted_range(header: str, size: int) -> tuple[int, int] | None:
    """Start and end (exclusive) of the one range asked for; None to ignore it, an empty one where nothing is there."""
    match = _RANGE.fullmatch(header.strip())
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        return max(0, size - int(last)), size
    start, end = int(first), int(last) + 1 if last else size
    if last and end <= start:
        return None  # backwards: invalid, and so ignored
    return start, min(end, size)


def _is_known(request: Request, stored: Stored) -> bool:
    given = request.headers.get("if-none-match")
    if given is not None:
        return given.strip() == "*" or stored.etag in [tag.strip().removeprefix("W/") for tag in given.split(",")]
    since = _time(request.headers.get("if-modified-since"))
    return since is not None and int(stored.modified) <= since


def _may_use_range(request: Request, stored: Stored) -> bool:
    condition = request.headers.get("if-range")
    if condition is None:
        return True
    return condition == stored.etag or _time(condition) == int(stored.modified)


def _time(text: str | None) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp() if text else None
    except (TypeError, ValueError):
        return None
