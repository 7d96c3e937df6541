"""Request bodies within bounds: how long they may take, and how much of them is ever held in memory.

A file part goes to disk as it comes; text (fields, data URLs, JSON) is held, so its sum is bounded as each piece is.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.datastructures import FormData, Headers
from starlette.formparsers import FormParser, MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.config import Limits
from serving.web import http_errors
from serving.web.http_errors import ApiError

MAX_FILES = 8
MAX_FIELDS = 64
MOST_SIGNS = 50_000
"""Commas and brackets of one JSON text: some thousands in the longest prompt, and one in each data URL."""
MEDIA_AS_TEXT = 4
"""Media of one request that may all be data URLs."""


def text_bytes(limits: Limits) -> int:
    """Bytes of text that one request may hold: its data URLs, and a megabyte for all else."""
    return MEDIA_AS_TEXT * limits.data_url_bytes + 2**20


async def read_form(
    request: Request, limits: Limits, *, max_files: int = MAX_FILES, max_fields: int = MAX_FIELDS
) -> FormData:
    """A multipart or urlencoded form; ApiError 400 `bad_form`, 413 `text_too_long`."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        async with aclosing(request.stream()) as stream:
            if kind == "multipart/form-data":
                return await _Multipart(
                    request.headers, stream, text_bytes(limits), limits.data_url_bytes, max_files, max_fields
                ).parse()
            body = await _collected(stream, text_bytes(limits))
            return await FormParser(
                request.headers, _once(body), max_fields=max_fields, max_part_size=limits.data_url_bytes
            ).parse()
    except MultiPartException as problem:
        raise ApiError(400, "bad_form", f"the form cannot be read: {problem.message}") from problem
    except (ValueError, LookupError) as problem:
        raise ApiError(400, "bad_form", f"the form cannot be read ({type(problem).__name__})") from problem


async def read_text(request: Request, limits: Limits) -> bytes:
    """A body that is held in memory, such as JSON; ApiError 413 `text_too_long`."""
    most, stated = text_bytes(limits), request.headers.get("content-length", "")
    if stated.isdigit() and len(stated) < 20 and int(stated) > most:
        raise _text_too_long(most)
    return await _collected(request.stream(), most)


def parsed(text: bytes | str) -> object:
    """JSON; ValueError where it is none, ApiError where it would become very many small things in memory.

    A few bytes ("[],") become a hundred, and long data URLs hold none of these signs.
    """
    signs = (b",", b"[", b"{") if isinstance(text, bytes) else (",", "[", "{")
    if sum(text.count(sign) for sign in signs) > MOST_SIGNS:  # pyright: ignore[reportArgumentType] - of its own kind
        raise ApiError(400, "json_too_complex", f"the JSON has more than {MOST_SIGNS} commas and brackets")
    try:
        return json.loads(text)
    except RecursionError as problem:
        raise ValueError("it is nested too deeply") from problem


async def _collected(stream: AsyncGenerator[bytes, None], most: int) -> bytes:
    body = bytearray()
    async for chunk in stream:
        if len(body) + len(chunk) > most:
            raise _text_too_long(most)
        body += chunk
    return bytes(body)


async def _once(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body


def _text_too_long(most: int) -> ApiError:
    return ApiError(
        413, "text_too_long",
        f"the request has more than {most} bytes of text; send media as file parts, or ahead through /v1/files"
    )  # fmt: skip


class _Multipart(MultiPartParser):
    """Starlette's, which bounds each field, with a bound on their sum."""

    def __init__(
        self,
        headers: Headers,
        stream: AsyncGenerator[bytes, None],
        max_text: int,
        max_part_size: int,
        max_files: int,
        max_fields: int,
    ):
        super().__init__(headers, stream, max_files=max_files, max_fields=max_fields, max_part_size=max_part_size)
        self._text, self._max_text = 0, max_text

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._current_part.file is None:
            self._text += end - start
            if self._text > self._max_text:
                raise _text_too_long(self._max_text)
        super().on_part_data(data, start, end)


class PacedBody:
    """Ends requests whose body comes too slowly, with a 408: a client that drips cannot hold a place for long.

    Plain ASGI, so that streams stay streams. Behind Ray Serve it works as well: the proxy hands a body on as it comes,
    and an answer given early closes the connection. A slow request *line* or header never gets as far as here.
    """

    def __init__(self, app: ASGIApp, limits: Limits):
        self.app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        paced = _Paced(receive, send, self._limits)
        try:
            await self.app(scope, paced.receive, paced.send)
        except _TooSlowError:
            await paced.refuse()


class _TooSlowError(Exception):
    """A body came too slowly."""


class _Paced:
    """One request. Each byte buys time, so that a large body may take long and a dripping one may not."""

    def __init__(self, receive: Receive, send: Send, limits: Limits):
        self._receive, self._send, self._limits = receive, send, limits
        self._began: float | None = None
        self._received = 0
        self._complete = self._started = self._slow = self._refused = False

    async def receive(self) -> Message:
        if self._complete:
            return await self._receive()
        if self._slow:
            raise _TooSlowError
        try:
            message = await asyncio.wait_for(self._receive(), self._patience())
        except TimeoutError:
            self._slow = True
            raise _TooSlowError from None
        self._received += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        return message

    def _patience(self) -> float:
        """Seconds for the next piece."""
        limits, now = self._limits, asyncio.get_running_loop().time()
        self._began = now if self._began is None else self._began
        whole = min(limits.body_seconds, limits.body_idle_s + self._received / limits.body_rate)
        return max(0.0, min(limits.body_idle_s, self._began + whole - now))

    async def send(self, message: Message) -> None:
        # A framework may have taken our error for a broken body and answer in its own words.
        if self._slow and not self._started:
            await self.refuse()
            return
        self._started = True
        await self._send(message)

    async def refuse(self) -> None:
        if self._started or self._refused:
            return
        self._refused = True
        limits = self._limits
        message = (
            f"the body came too slowly: at least {limits.body_rate} bytes a second are expected, no pause above "
            f"{limits.body_idle_s:g} s, and all of it within {limits.body_seconds:g} s"
        )
        content = json.dumps(http_errors.body(408, "body_too_slow", message)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode()),
                   (b"connection", b"close"), (b"x-error-code", b"body_too_slow")]  # fmt: skip
        await self._send({"type": "http.response.start", "status": 408, "headers": headers})
        await self._send({"type": "http.response.body", "body": content})
