"""`python -m serving key | tenant | usage | audit | webhook`: what operators do in the job store, while services run.

Each command is a dataclass, its options, and yields the lines that it has to say. Changes are rows of the audit log.
"""

from __future__ import annotations

import getpass
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamictrl.errors import ConfigError
from serving.tenants.tenant import DEFAULT, LOCAL, Quotas

if TYPE_CHECKING:
    from sqlalchemy import Engine

USUAL_SCOPES = ("videos:read", "videos:write", "files")


@dataclass(frozen=True, kw_only=True)
class Store:
    """Where the service keeps its jobs; the same as for `up`."""

    data_folder: Path = Path("serving-data")
    """The service's data folder."""
    database: str = ""
    """SQLAlchemy URL of the job store; empty means SQLite inside `data_folder`."""
    json: bool = False
    """One JSON object a line, for programs."""

    @contextmanager
    def opened(self) -> Iterator[Engine]:
        """The store's database, which must be there: a mistyped folder must not become an empty store."""
        from serving.jobs.database import open_database

        file = self.data_folder / "jobs.db"
        if not self.database and not file.is_file():
            raise ConfigError(
                f"there is no job store at {file}; name the service's with --data-folder or --database, or start the "
                "service once",
                code="no_store",
                param="data_folder",
            )
        engine = open_database(self.database or f"sqlite:///{file.absolute()}")
        try:
            yield engine
        finally:
            engine.dispose()

    def record(self, engine: Engine, action: str, *, tenant: str, target: str = "") -> None:
        from serving.tenants.audit import AuditLog, Entry

        AuditLog(engine).add([Entry(tenant=tenant, action=action, target=target, address=f"shell:{_user()}"[:64])])

    def told(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
        """Rows as JSON lines, or as a table under their names."""
        found = list(rows)
        if self.json or not found:
            yield from (json.dumps(row, default=str) for row in found)
            return
        table = [list(found[0]), *([_word(name, value) for name, value in row.items()] for row in found)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for line in table:
            yield "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip()


@dataclass(frozen=True, kw_only=True)
class KeyCreate(Store):
    """Makes a key for a tenant, and shows it this once."""

    tenant: str
    """Whose it is; a name of a-z, 0-9, dot, dash and underscore."""
    scopes: tuple[str, ...] = USUAL_SCOPES
    """What it opens: videos:read, videos:write, files, metrics, admin (all of them)."""
    note: str = ""
    """What it is for."""
    expires_days: float = 0.0
    """Days for which it is good; 0 is until it is revoked."""

    def run(self) -> Iterator[str]:
        from serving.tenants.keyring import Keyring

        with self.opened() as engine:
            scopes = tuple(word for scope in self.scopes for word in scope.split(",") if word)
            expires_at = time.time() + self.expires_days * 86400 if self.expires_days else None
            key, row = Keyring(engine).create(self.tenant, scopes, note=self.note, expires_at=expires_at)
            self.record(engine, "key.create", tenant=self.tenant, target=row.id)
        shown = {"key": key, "id": row.id, "tenant": row.tenant, "scopes": ",".join(row.scopes)}
        if self.json:
            yield json.dumps(shown)
            return
        yield f"key (give it to one client, it is not kept): {key}"
        yield f"id {row.id}, tenant {row.tenant}, scopes {', '.join(row.scopes)}"


@dataclass(frozen=True, kw_only=True)
class KeyList(Store):
    """Shows keys, without what would open the door."""

    tenant: str | None = None
    """Only this tenant's."""

    def run(self) -> Iterator[str]:
        from serving.tenants.keyring import Keyring

        with self.opened() as engine:
            yield from self.told(
                {**asdict(key), "scopes": ",".join(key.scopes)} for key in Keyring(engine).list(self.tenant)
            )


@dataclass(frozen=True, kw_only=True)
class KeyRevoke(Store):
    """Ends a key; running services refuse it within two seconds."""

    id: str
    """Its id: `key list` shows it, and it stands in the key after dc_."""

    def run(self) -> Iterator[str]:
        from serving.tenants.keyring import Keyring

        with self.opened() as engine:
            if not Keyring(engine).revoke(self.id):
                raise ConfigError(f"there is no good key {self.id!r}; see `key list`", code="no_such_key", param="id")
            (row,) = [key for key in Keyring(engine).list() if key.id == self.id]
            self.record(engine, "key.revoke", tenant=row.tenant, target=self.id)
        yield f"revoked {self.id} of {row.tenant}"


@dataclass(frozen=True, kw_only=True)
class TenantSet(Store):
    """Sets what one tenant may use; what is not given stays. 0 is no bound."""

    tenant: str
    """Whose."""
    requests_per_minute: int | None = None
    """Requests to /v1 a minute."""
    burst: int | None = None
    """Requests that may come at once after a pause."""
    jobs_at_once: int | None = None
    """Jobs that may be queued or running at once."""
    jobs_running: int | None = None
    """Jobs that may be rendered at once."""
    gpu_seconds_per_month: float | None = None
    """GPU seconds a calendar month (UTC)."""
    body_bytes: int | None = None
    """Bytes of one request."""
    storage_bytes: int | None = None
    """Bytes of files, inputs and clips."""
    keep_clips_s: float | None = None
    """Seconds for which a finished clip can be downloaded; 0 takes the service's."""

    def run(self) -> Iterator[str]:
        from serving.tenants.keyring import Keyring

        given = {field.name: getattr(self, field.name) for field in fields(Quotas)}
        changes = {name: value for name, value in given.items() if value is not None}
        with self.opened() as engine:
            quotas = Keyring(engine).set_quotas(self.tenant, changes)
            self.record(engine, "tenant.set", tenant=self.tenant)
        yield from self.told([{"tenant": self.tenant, **asdict(quotas)}])


@dataclass(frozen=True, kw_only=True)
class Usage(Store):
    """Shows GPU seconds and jobs by tenant, month, model, quality and outcome."""

    tenant: str | None = None
    """Only this tenant's."""
    month: str | None = None
    """Only this month's, such as 2026-11."""

    def run(self) -> Iterator[str]:
        from serving.tenants import ledger

        with self.opened() as engine:
            yield from self.told(ledger.report(engine, tenant=self.tenant, month=self.month))


@dataclass(frozen=True, kw_only=True)
class Audit(Store):
    """Shows who did what, when, from where, and what came of it; oldest first."""

    tenant: str | None = None
    """Only this tenant's."""
    action: str = ""
    """Only actions that hold this, such as DELETE or key."""
    hours: float = 24.0
    """So far back."""
    limit: int = 1000
    """Rows at most, the latest."""

    def run(self) -> Iterator[str]:
        from serving.tenants.audit import AuditLog

        since = time.time() - self.hours * 3600
        with self.opened() as engine:
            log = AuditLog(engine)
            found = log.read(tenant=self.tenant, action=self.action, since=since, limit=self.limit)
            yield from self.told({"at": entry.at, **asdict(entry)} for entry in found)


@dataclass(frozen=True, kw_only=True)
class WebhookSecret(Store):
    """Makes the secret that signs a tenant's webhooks, and shows it this once; the one before signs a day more."""

    tenant: str = LOCAL.id
    """Whose; `local` is who asks without keys, `default` the holders of configured hashes."""

    def run(self) -> Iterator[str]:
        from serving.webhooks.signing import WebhookSecrets

        with self.opened() as engine:
            secret = WebhookSecrets(engine).rotate(self.tenant)
            self.record(engine, "webhook.secret", tenant=self.tenant)
        yield (
            json.dumps({"secret": secret, "tenant": self.tenant})
            if self.json
            else (f"secret (give it to the receiver, it is not shown again): {secret}")
        )


@dataclass(frozen=True, kw_only=True)
class WebhookList(Store):
    """Shows events, newest first."""

    tenant: str | None = None
    """Only this tenant's."""
    status: str | None = None
    """pending, delivered or dead."""
    limit: int = 100
    """Rows at most."""

    def run(self) -> Iterator[str]:
        from serving.webhooks.outbox import Outbox

        shown = ("created_at", "id", "tenant", "video_id", "event", "status", "tries", "next_at", "last_status",
                 "last_error", "host")  # fmt: skip
        with self.opened() as engine:
            events = Outbox(engine).list(tenant=self.tenant, status=self.status, limit=self.limit)
            yield from self.told({name: getattr(event, name) for name in shown} for event in events)


@dataclass(frozen=True, kw_only=True)
class WebhookReplay(Store):
    """Delivers events once more, with the ids that they had: one, a video's, or a tenant's dead ones."""

    id: str | None = None
    """One event, evt_..."""
    video: str | None = None
    """A video's events."""
    tenant: str | None = None
    """All dead events of a tenant."""

    def run(self) -> Iterator[str]:
        from serving.webhooks.outbox import Outbox

        if self.id is None and self.video is None and self.tenant is None:
            raise ConfigError("say which: --id, --video or --tenant", code="nothing_named", param="id")
        with self.opened() as engine:
            only_dead = self.id is None and self.video is None
            count = Outbox(engine).replay(
                tenant=self.tenant, video_id=self.video, event_id=self.id, only_dead=only_dead
            )  # fmt: skip
            self.record(
                engine, "webhook.replay", tenant=self.tenant or DEFAULT, target=self.id or self.video or ""
            )  # fmt: skip
        yield f"{count} events are due again"


COMMANDS: dict[str, dict[str, type[Any]]] = {
    "key": {"create": KeyCreate, "list": KeyList, "revoke": KeyRevoke},
    "tenant": {"set": TenantSet},
    "usage": {"": Usage},
    "audit": {"": Audit},
    "webhook": {"secret": WebhookSecret, "list": WebhookList, "replay": WebhookReplay},
}
"""Command, then subcommand, to its options."""


def _word(name: str, value: Any) -> str:  # noqa: ANN401
    if value is None or value == "":
        return "-"
    if name == "at" or name.endswith("_at"):
        return datetime.fromtimestamp(float(value), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return f"{value:g}" if isinstance(value, float) else str(value)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"
