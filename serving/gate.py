"""What every request passes before its route: its id, its key, its length. Plain ASGI, so that streams stay streams."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections import Counter
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import http_errors
from serving.config import Service, is_loopback

GUARDED = ("/v1/", "/metrics")


class Gate:
    """Checks keys and origins, bounds bodies, names and counts requests."""

    def __init__(self, app: ASGIApp, service: Service, answered: Counter[tuple[str, int]]):
        self.app = app
        self._hashes = service.api_key_hashes
        self._limit = service.limits.body_bytes
        self._answered = answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = f"req_{secrets.token_hex(12)}"
        started = False

        async def named(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self._answered[scope["method"], message["status"]] += 1
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        headers = Headers(scope=scope)
        refused = self._refusal(scope["path"], headers)
        if refused is not None:
            await _answer(named, *refused)
            return
        try:
            await self.app(scope, self._bounded(receive), named)
        except _TooLongError:
            if not started:
                await _answer(named, 413, "body_too_large", f"the request has more than {self._limit} bytes")

    def _refusal(self, path: str, headers: Headers) -> tuple[int, str, str] | None:
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self._limit:
            return 413, "body_too_large", f"the request has {length} bytes; at most {self._limit} are taken"
        if not path.startswith(GUARDED):
            return None
        if self._hashes:
            return self._key_refusal(headers.get("authorization", ""))
        return _stranger_refusal(headers)

    def _key_refusal(self, authorization: str) -> tuple[int, str, str] | None:
        kind, _, key = authorization.partition(" ")
        digest = hashlib.sha256(key.strip().encode()).hexdigest()
        known = [hmac.compare_digest(digest, accepted) for accepted in self._hashes]
        if kind.lower() == "bearer" and any(known):
            return None
        return 401, "invalid_api_key", "send a valid API key as `Authorization: Bearer KEY`"

    def _bounded(self, receive: Receive) -> Receive:
        received = 0

        async def bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                raise _TooLongError
            return message

        return bounded


class _TooLongError(Exception):
    """A body without a stated length passed the limit."""


def _stranger_refusal(headers: Headers) -> tuple[int, str, str] | None:
    """Without keys only this machine may ask; a web page of elsewhere, in a browser on it, may not."""
    hosts = [headers.get("host", "")]
    if "origin" in headers:
        hosts.append(urlsplit(headers["origin"]).netloc)
    if all(is_loopback(urlsplit(f"//{host}").hostname or "") for host in hosts):
        return None
    return 403, "loopback_only", "without API keys the service answers to this machine alone (127.0.0.1, localhost)"


async def _answer(send: Send, status: int, code: str, message: str) -> None:
    content = json.dumps(http_errors.body(status, code, message)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
