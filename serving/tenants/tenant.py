"""Who a request comes from. The gate finds it out; every route, store and log takes it from the request's state."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dynamictrl.errors import ConfigError

SCOPES = ("videos:read", "videos:write", "files", "metrics", "admin")
"""What a key may do: look at clips, make and change them, keep files, read /metrics; `admin` is all of these."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


@dataclass(frozen=True, kw_only=True)
class Quotas:
    """What one tenant may use; 0 means no bound."""

    requests_per_minute: int = 0
    """Requests to /v1 a minute, over all ingress replicas."""
    burst: int = 0
    """Requests that may come at once after a pause; 0 takes a sixth of `requests_per_minute`."""
    jobs_at_once: int = 0
    """Jobs that may be queued or running at once."""
    jobs_running: int = 0
    """Jobs that may be rendered at once; the others of the tenant wait."""
    gpu_seconds_per_month: float = 0.0
    """GPU seconds a calendar month (UTC): estimated when a job is sent, settled with what it used."""
    body_bytes: int = 0
    """Bytes of one request, below the service's own limit."""
    storage_bytes: int = 0
    """Bytes of files kept by /v1/files and of jobs' inputs and clips."""
    keep_clips_s: float = 0.0
    """Seconds for which a finished clip can be downloaded; 0 takes the service's `expires_after_s`."""

    def __post_init__(self):
        for name, value in vars(self).items():
            if value < 0:
                raise ConfigError(f"{name} is {value}; give 0 (no bound) or more", code=name, param=name)


@dataclass(frozen=True, kw_only=True)
class Tenant:
    """One customer as a request shows it: `request.state.tenant`."""

    id: str
    """What the rows of its videos and files say."""
    scopes: frozenset[str] = frozenset(SCOPES)
    key_id: str = ""
    """The public part of the key that was shown; empty without keys."""
    quotas: Quotas = field(default_factory=Quotas)

    def may(self, scope: str) -> bool:
        return scope in self.scopes or "admin" in self.scopes


LOCAL = Tenant(id="local")
"""Whoever asks a service without keys: this machine's own user."""
DEFAULT = "default"
"""The tenant of the keys in `api_key_hashes`."""


def tenant_of(scope: Mapping[str, Any]) -> Tenant:
    """The tenant of an ASGI scope (or of `request.scope`); the local one where no gate stood before."""
    return scope.get("state", {}).get("tenant", LOCAL)


def check_name(name: str) -> str:
    """A tenant's name, or ConfigError: it stands in metrics, logs and paths of the object store."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"the tenant {name[:80]!r} is no name: use 1 to 63 of a-z, 0-9, dot, dash and underscore, beginning with a "
            "letter or digit",
            code="bad_tenant",
            param="tenant",
        )
    return name


def check_scopes(scopes: tuple[str, ...]) -> tuple[str, ...]:
    """ConfigError where one of them is no scope."""
    unknown = [scope for scope in scopes if scope not in SCOPES]
    if unknown or not scopes:
        raise ConfigError(
            f"the scopes {', '.join(scopes) or '(none)'} hold {', '.join(unknown) or 'nothing'}; there are "
            f"{', '.join(SCOPES)}",
            code="bad_scopes",
            param="scopes",
        )
    return tuple(sorted(set(scopes)))
