"""API keys: made, listed and revoked in the job store's database, and looked up by the gate.

A key is `dc_ID_SECRET`. ID is public and finds the row; SECRET has 256 random bits. What is kept is the sha256 of the
whole. A slow, salted hash (argon2, bcrypt) is for words that people choose: nobody guesses 256 bits, whatever a guess
costs, and each request would pay for it. Hashes are compared in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from sqlalchemy import Engine, delete, insert, select, update

from dynamictrl.errors import ConfigError
from serving.tenants.tables import api_keys, tenant_quotas
from serving.tenants.tenant import DEFAULT, LOCAL, Quotas, Tenant, check_name, check_scopes

FRESH_S = 2.0
"""Seconds for which a looked-up key is believed: a revoked one is refused after this at the latest."""
REMEMBERED = 10_000
"""Keys kept in memory; beyond it all are forgotten, so that a flood of wrong ones takes no memory."""

_KEY = re.compile(r"dc_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, kw_only=True)
class KeyRow:
    """A key as it is kept: without what would open the door."""

    id: str
    tenant: str
    scopes: tuple[str, ...]
    note: str
    created_at: float
    expires_at: float | None
    revoked_at: float | None


class Keyring:
    """The api_keys and tenant_quotas tables."""

    def __init__(self, engine: Engine, *, quotas: Quotas | None = None, clock: Callable[[], float] = time.time):
        self.engine = engine
        self.clock = clock
        self._quotas = quotas or Quotas()

    def create(
        self, tenant: str, scopes: tuple[str, ...], *, note: str = "", expires_at: float | None = None
    ) -> tuple[str, KeyRow]:
        """A fresh key, shown this once, and its row. ConfigError for a bad name or scope."""
        check_name(tenant)
        if tenant == LOCAL.id:
            raise ConfigError(f"{tenant!r} is who asks without keys; give the tenant another name", code="bad_tenant")
        key_id = secrets.token_hex(6)
        key = f"dc_{key_id}_{secrets.token_urlsafe(32)}"
        row = {"id": key_id, "tenant": tenant, "scopes": ",".join(check_scopes(scopes)), "note": note[:200],
               "created_at": self.clock(), "expires_at": expires_at, "revoked_at": None}  # fmt: skip
        with self.engine.begin() as connection:
            connection.execute(insert(api_keys).values(hash=digest(key), **row))
        return key, _shown(row)

    def list(self, tenant: str | None = None) -> list[KeyRow]:
        query = select(api_keys).order_by(api_keys.c.created_at)
        if tenant is not None:
            query = query.where(api_keys.c.tenant == tenant)
        with self.engine.connect() as connection:
            return [_shown(dict(row)) for row in connection.execute(query).mappings()]

    def revoke(self, key_id: str) -> bool:
        """Whether there was such a key that was still good."""
        good = (api_keys.c.id == key_id) & api_keys.c.revoked_at.is_(None)
        with self.engine.begin() as connection:
            return connection.execute(update(api_keys).where(good).values(revoked_at=self.clock())).rowcount == 1

    def has_keys(self) -> bool:
        """Whether a key was ever made: from then on nobody is served without one."""
        with self.engine.connect() as connection:
            return connection.execute(select(api_keys.c.id).limit(1)).first() is not None

    def find(self, key: str) -> Tenant | None:
        """The tenant whose good key this is."""
        match = _KEY.fullmatch(key)
        if match is None:
            return None
        # One question for both: it is what a request with a new key waits for.
        both = api_keys.outerjoin(tenant_quotas, api_keys.c.tenant == tenant_quotas.c.tenant)
        query = select(*api_keys.c, tenant_quotas.c.quotas).select_from(both).where(api_keys.c.id == match[1])
        with self.engine.connect() as connection:
            row = connection.execute(query).mappings().first()
        # Compared also where there is none: how long it takes says nothing about what there is.
        same = hmac.compare_digest(digest(key), row["hash"] if row else "0" * 64)
        if row is None or not same or row["revoked_at"] is not None:
            return None
        if row["expires_at"] is not None and row["expires_at"] <= self.clock():
            return None
        scopes = frozenset(row["scopes"].split(","))
        return Tenant(id=row["tenant"], scopes=scopes, key_id=row["id"], quotas=self._over(row["quotas"]))

    def quotas(self, tenant: str) -> Quotas:
        """What a tenant may use: the service's own where nothing else was said for it."""
        with self.engine.connect() as connection:
            text = connection.execute(
                select(tenant_quotas.c.quotas).where(tenant_quotas.c.tenant == tenant)
            ).scalar()  # fmt: skip
        return self._over(text)

    def _over(self, text: str | None) -> Quotas:
        return replace(self._quotas, **json.loads(text)) if text else self._quotas

    def set_quotas(self, tenant: str, changes: dict[str, Any]) -> Quotas:
        """Keeps what differs from the service's own; ConfigError for a bad value."""
        check_name(tenant)
        with self.engine.begin() as connection:
            here = tenant_quotas.c.tenant == tenant
            text = connection.execute(select(tenant_quotas.c.quotas).where(here)).scalar()
            kept = {**(json.loads(text) if text else {}), **changes}
            changed = replace(self._quotas, **kept)
            connection.execute(delete(tenant_quotas).where(here))
            row = {"tenant": tenant, "quotas": json.dumps(kept), "changed_at": self.clock()}
            connection.execute(insert(tenant_quotas).values(row))
        return changed

    def default_tenant(self) -> Tenant:
        """Who holds a key of the service's own configuration."""
        return Tenant(id=DEFAULT, key_id="config", quotas=self.quotas(DEFAULT))

    def local_tenant(self) -> Tenant:
        return replace(LOCAL, quotas=self.quotas(LOCAL.id))


class RunningCap:
    """How many of a tenant's jobs may be rendered at once, for the store's lease; asked anew every FRESH_S."""

    def __init__(self, keyring: Keyring):
        self._keyring = keyring
        self._known: dict[str, tuple[float, int]] = {}

    def __call__(self, tenant: str) -> int | None:
        at, cap = self._known.get(tenant, (-FRESH_S, 0))
        if time.monotonic() - at > FRESH_S:
            cap = self._keyring.quotas(tenant).jobs_running
            self._known[tenant] = (time.monotonic(), cap)
        return cap or None


class KeyCache:
    """A keyring that asks the database about one key once in FRESH_S. Threads may share it."""

    def __init__(self, keyring: Keyring, hashes: tuple[str, ...] = (), *, required: bool = False):
        self._keyring = keyring
        self._hashes = hashes
        self._required = required or bool(hashes)
        self._known: dict[str, tuple[float, Tenant | None]] = {}
        self._checked_at = -FRESH_S

    def remembered(self, key: str) -> tuple[bool, Tenant | None]:
        """Whether the answer of `find` is at hand, and the answer: costs a microsecond, never the database."""
        found = self._known.get(digest(key))
        if found is None or time.monotonic() - found[0] > FRESH_S:
            return False, None
        return True, found[1]

    def find(self, key: str) -> Tenant | None:
        """The tenant of a key, of the configuration or of the database; with an empty key, of who asks without one."""
        known, tenant = self.remembered(key)
        if known:
            return tenant
        tenant = self._look_up(key)
        if len(self._known) >= REMEMBERED:
            self._known.clear()
        self._known[digest(key)] = (time.monotonic(), tenant)
        return tenant

    @property
    def keys_are_required(self) -> bool:
        """Whether strangers are turned away; as fresh as the last `find`."""
        return self._required

    def _look_up(self, key: str) -> Tenant | None:
        if not self._required and time.monotonic() - self._checked_at > FRESH_S:
            self._checked_at = time.monotonic()
            self._required = self._keyring.has_keys()
        if not self._required:
            return self._keyring.local_tenant()
        hashed = digest(key)
        # All are compared, so that the time taken does not say which one it was.
        if any([hmac.compare_digest(hashed, accepted) for accepted in self._hashes]):
            return self._keyring.default_tenant()
        return self._keyring.find(key)


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def quota_names() -> tuple[str, ...]:
    return tuple(asdict(Quotas()))


def _shown(row: dict[str, Any]) -> KeyRow:
    names = ("id", "tenant", "note", "created_at", "expires_at", "revoked_at")
    return KeyRow(scopes=tuple(row["scopes"].split(",")), **{name: row[name] for name in names})
