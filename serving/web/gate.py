"""What every request passes before its route: its id, its key, its right, its rate, its length. And behind it: what it
came to, counted, traced, and written down. Plain ASGI, so that streams stay streams.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.backend import Backend
from serving.config import is_loopback
from serving.tenants.audit import AuditLog, AuditWriter, Entry
from serving.tenants.keyring import KeyCache, Keyring
from serving.tenants.rates import FREE, Allowance, RateLimiter
from serving.tenants.tenant import Tenant, tenant_of
from serving.watching import logs, tracing
from serving.watching.metrics import HTTP_REQUESTS, HTTP_SECONDS
from serving.web import http_errors

logger = logging.getLogger(__name__)

GUARDED = ("/v1/", "/metrics")
METHODS = frozenset(("GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS"))
UNKNOWN_ROUTE = "(none)"
STRANGERS = 1000
"""Addresses of refused keys that are remembered, so that one of them fills at most a row of the audit log a second."""


class Refusal(Exception):
    """A request that does not come to its route."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status, self.code, self.headers = status, code, dict(headers or {})


class Gate:
    """Checks keys, scopes, rates and origins, bounds bodies; names, counts, traces and records requests."""

    def __init__(self, app: ASGIApp, backend: Backend):
        service, engine = backend.service, backend.store.engine
        self.app = app
        self._limit = service.limits.body_bytes
        self._proxies = frozenset(service.trusted_proxies)
        keyring = Keyring(engine, quotas=service.quotas)
        self._keys = KeyCache(keyring, service.api_key_hashes, required=service.require_keys)
        self._rates = RateLimiter(engine)
        self._audit = AuditWriter(AuditLog(engine))
        self._refused_at: dict[str, float] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        visit = _Visit(scope)
        try:
            if scope["path"].startswith("/v1/") and scope["method"] not in ("GET", "HEAD", "OPTIONS"):
                with tracing.span(scope["method"], parent=visit.headers.get("traceparent"), kind="server") as span:
                    await self._let_in(visit, receive, send)
                    span.rename(visit.action)
                    span.set(tenant=visit.tenant_id, status=visit.status, request_id=visit.request_id)
            else:
                await self._let_in(visit, receive, send)
        finally:
            method = scope["method"] if scope["method"] in METHODS else "(other)"
            HTTP_REQUESTS.labels(method, visit.route, str(visit.status)).inc()
            HTTP_SECONDS.labels(method, visit.route).observe((visit.answered_at or time.monotonic()) - visit.came_at)

    async def _let_in(self, visit: _Visit, receive: Receive, send: Send) -> None:
        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                await self._answering(visit, message)
            await send(message)

        try:
            most = await self._check(visit)
        except Refusal as refusal:
            await _answer(named, refusal)
            return
        with logs.bind(tenant=visit.tenant_id, request_id=visit.request_id):
            try:
                await self.app(visit.scope, _bounded(receive, most), named)
            except _TooLongError:
                if visit.answered_at is None:
                    await _answer(named, Refusal(413, "body_too_large", f"the request has more than {most} bytes"))

    async def _check(self, visit: _Visit) -> int:
        """Bytes that the request may have; Refusal where it may not come in."""
        length = visit.headers.get("content-length", "0")
        _check_length(length, self._limit)
        path = visit.scope["path"]
        if not path.startswith(GUARDED):
            return self._limit
        tenant = await self._tenant(visit)
        visit.scope.setdefault("state", {})["tenant"] = tenant
        needed = scope_for(visit.scope["method"], path)
        if needed is not None and not tenant.may(needed):
            raise Refusal(
                403, "insufficient_scope", f"this key may not do that: it lacks the scope {needed}",
                {"x-should-retry": "false"}
            )  # fmt: skip
        if path.startswith("/v1/"):
            visit.allowance = self._rates.try_locally(tenant) or await asyncio.to_thread(self._ask_rate, tenant)
            if not visit.allowance.is_granted:
                wait = visit.allowance.wait_s
                raise Refusal(429, "rate_limited", f"at most {visit.allowance.limit} requests a minute are answered; "
                                                   f"the next one in {wait:.1f} s")  # fmt: skip
        most = min(self._limit, tenant.quotas.body_bytes or self._limit)
        _check_length(length, most)
        return most

    def _ask_rate(self, tenant: Tenant) -> Allowance:
        try:
            return self._rates.ask(tenant)
        except Exception:
            # Whatever needs the database will say so itself; what does not need it shall not wait for a rate.
            logger.warning("the rate of %s could not be asked", tenant.id, exc_info=True)
            return FREE

    async def _tenant(self, visit: _Visit) -> Tenant:
        kind, _, key = visit.headers.get("authorization", "").partition(" ")
        key = key.strip() if kind.lower() == "bearer" else ""
        known, tenant = self._keys.remembered(key)
        if not known:
            try:
                tenant = await asyncio.to_thread(self._keys.find, key)
            except Exception as problem:
                logger.exception("the job store cannot be asked about a key")
                raise Refusal(503, "store_unavailable", "the job store does not answer; try again soon",
                              {"retry-after": "2"}) from problem  # fmt: skip
        if not self._keys.keys_are_required:
            _check_stranger(visit.headers)
        if tenant is None:
            raise Refusal(
                401, "invalid_api_key", "send a valid API key as `Authorization: Bearer KEY`",
                {"www-authenticate": "Bearer"}
            )  # fmt: skip
        return tenant

    async def _answering(self, visit: _Visit, message: Message) -> None:
        """The moment at which an answer's status is known and nothing of it is sent."""
        visit.answered_at, visit.status = time.monotonic(), message["status"]
        headers = MutableHeaders(scope=message)
        headers["x-request-id"] = visit.request_id
        for name, value in visit.allowance.headers().items():
            headers[name] = value
        if self._is_recorded(visit):
            await self._audit.add(
                Entry(
                    tenant=visit.tenant_id, action=visit.action[:64], key_id=visit.key_id, target=visit.target[:64],
                    address=self._address(visit), status=visit.status, code=headers.get("x-error-code", ""),
                    request_id=visit.request_id
                )
            )  # fmt: skip

    def _is_recorded(self, visit: _Visit) -> bool:
        path, method = visit.scope["path"], visit.scope["method"]
        if not path.startswith(GUARDED):
            return False
        if visit.status == 401:
            return self._first_this_second(self._address(visit))
        changes = method not in ("GET", "HEAD", "OPTIONS") and not path.endswith("/preflight")
        return visit.status != 429 and (changes or visit.status == 403 or path.endswith("/content"))

    def _first_this_second(self, address: str) -> bool:
        now = time.monotonic()
        if now - self._refused_at.get(address, -1.0) < 1.0:
            return False
        if len(self._refused_at) >= STRANGERS:
            self._refused_at.clear()
        self._refused_at[address] = now
        return True

    def _address(self, visit: _Visit) -> str:
        """Who sent it, as far as can be known: a proxy's word counts only where the proxy is ours."""
        address = (visit.scope.get("client") or ("", 0))[0]
        if address in self._proxies:
            address = visit.headers.get("x-forwarded-for", address).rpartition(",")[2].strip()
        return address[:64]


class _Visit:
    """One request on its way."""

    def __init__(self, scope: Scope):
        self.scope = scope
        self.headers = Headers(scope=scope)
        self.request_id = f"req_{secrets.token_hex(12)}"
        self.allowance: Allowance = FREE
        self.came_at = time.monotonic()
        self.answered_at: float | None = None
        self.status = 500

    @property
    def route(self) -> str:
        """The route's template: ids in paths would make labels without end."""
        route = self.scope.get("route")
        return getattr(route, "path", UNKNOWN_ROUTE)

    @property
    def action(self) -> str:
        return f"{self.scope['method'][:8]} {self.route if self.route != UNKNOWN_ROUTE else self.scope['path']}"

    @property
    def target(self) -> str:
        """The id that it was about: of the path, or what the route said it made."""
        made = self.scope.get("state", {}).get("made", "")
        return made or next((str(v) for v in self.scope.get("path_params", {}).values()), "")

    @property
    def tenant_id(self) -> str:
        return tenant_of(self.scope).id if "tenant" in self.scope.get("state", {}) else ""

    @property
    def key_id(self) -> str:
        return tenant_of(self.scope).key_id


def scope_for(method: str, path: str) -> str | None:
    """The scope that a request needs; None where every good key will do."""
    reads = method in ("GET", "HEAD", "OPTIONS")
    if path.startswith("/metrics"):
        return "metrics"
    if path.startswith("/v1/files"):
        return "files"
    if path.startswith("/v1/models") and reads:
        return None
    return "videos:read" if reads else "videos:write"


class _TooLongError(Exception):
    """A body without a stated length passed the limit."""


def _bounded(receive: Receive, most: int) -> Receive:
    received = 0

    async def bounded() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > most:
            raise _TooLongError
        return message

    return bounded


def _check_length(length: str, most: int) -> None:
    if length.isdigit() and int(length) > most:
        raise Refusal(413, "body_too_large", f"the request has {length} bytes; at most {most} are taken")


def _check_stranger(headers: Headers) -> None:
    """Without keys only this machine may ask; a web page of elsewhere, in a browser on it, may not."""
    hosts = [headers.get("host", "")]
    if "origin" in headers:
        hosts.append(urlsplit(headers["origin"]).netloc)
    if all(is_loopback(urlsplit(f"//{host}").hostname or "") for host in hosts):
        return
    message = "without API keys the service answers to this machine alone (127.0.0.1, localhost)"
    raise Refusal(403, "loopback_only", message)


async def _answer(send: Send, refusal: Refusal) -> None:
    content = json.dumps(http_errors.body(refusal.status, refusal.code, str(refusal))).encode()
    given = {"content-type": "application/json", "content-length": str(len(content)), "x-error-code": refusal.code}
    headers = [(name.encode(), value.encode()) for name, value in {**given, **refusal.headers}.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
