"""The tables of the job store, and how a database is opened. SQLite for one node, PostgreSQL for more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    false,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, OperationalError

from dynamictrl.errors import ConfigError
from serving.jobs.upgrading import upgrade

METADATA = MetaData()
"""Every table of the service; the rooms' own are registered by `serving/jobs/schema.py`."""

PATIENCE_S = 15
"""Seconds after which a database that does not answer counts as away."""

videos = Table(
    "videos",
    METADATA,
    Column("place", Integer, primary_key=True, autoincrement=True),  # order of arrival; what cursors walk along
    Column("id", String(64), nullable=False, unique=True),
    Column("status", String(16), nullable=False),
    Column("stage", String(32), nullable=False),
    Column("progress", Integer, nullable=False, default=0),
    Column("step", Integer),  # denoising steps done, and in all, of the attempt that runs
    Column("steps", Integer),
    Column("version", Integer, nullable=False, default=1),  # +1 at every change: the id of its event
    Column("created_at", Float, nullable=False),
    Column("started_at", Float),
    Column("completed_at", Float),
    Column("expires_at", Float),
    Column("model", String(200), nullable=False),
    Column("model_version", String(200)),
    Column("target_version", String(200)),  # the version that alone may render it, where a canary decision was made
    Column("settings", Text, nullable=False),  # JSON of jobs.Settings
    Column("inputs", Text, nullable=False),  # JSON: medium -> sha256
    Column("remixed_from", String(64)),
    Column("error_code", String(64)),
    Column("error_message", Text),
    Column("tenant", String(64), nullable=False, server_default="local"),
    Column("priority", Integer, nullable=False, server_default="0"),  # higher first, among one tenant's jobs
    Column("rank", Float, nullable=False, server_default="0"),  # created_at less what its priority is worth
    Column("not_before", Float),
    Column("queue_deadline_at", Float),
    Column("deadline_at", Float),
    Column("gpu_seconds_estimate", Float),
    Column("gpu_seconds", Float),  # of all attempts
    Column("traceparent", String(64)),
    Column("webhook_url", Text),
    Column("manifest", Text),  # JSON from which the clip can be rendered again
    Column("idempotency_key", String(256), unique=True),  # hash of tenant and key
    Column("by_retry", Boolean, nullable=False, server_default=false()),  # an SDK's retry came before what it retries
    Column("content_hash", String(64), nullable=False),
    Column("cancel_requested", Boolean, nullable=False, default=False),
    Column("attempts", Integer, nullable=False, default=0),
    Column("lease_owner", String(64)),
    Column("lease_token", Integer, nullable=False, default=0),  # the fencing token: only its latest holder may write
    Column("lease_expires_at", Float),
    Column("result_token", Integer),  # which attempt's files are the result
    Column("stored_bytes", BigInteger, nullable=False, server_default="0"),  # of its inputs and its result
    Index("videos_by_status", "status", "place"),
    Index("videos_by_content", "content_hash", "created_at"),
    Index("videos_by_queue", "status", "tenant", "rank"),
    Index("videos_by_tenant", "tenant", "place"),
    Index("videos_by_stored_bytes", "tenant", "stored_bytes"),
    Index("videos_by_deadline", "status", "deadline_at"),
    Index("videos_by_queue_deadline", "status", "queue_deadline_at"),
    Index("videos_by_end", "status", "completed_at"),
)

files = Table(
    "files",
    METADATA,
    Column("place", Integer, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("filename", String(512), nullable=False),
    Column("purpose", String(64), nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("tenant", String(64), nullable=False, server_default="local"),
    Index("files_by_tenant", "tenant", "place"),
)

workers = Table(
    "workers",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("model", String(200), nullable=False),
    Column("model_version", String(200), nullable=False),
    Column("mini", Boolean, nullable=False),
    Column("seen_at", Float, nullable=False),
    Column("state", String(16), nullable=False, server_default="warm"),  # warm, or starting: it has no model yet
    Column("why", String(64)),  # its last attempt to load the model failed
)


def open_database(url: str) -> Engine:
    """A connection pool on the job store, whose tables are made or brought up to date.

    Raises ConfigError where the URL is none, or the database cannot be reached.
    """
    try:
        parsed = make_url(url)
        if parsed.drivername.startswith("sqlite") and parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(parsed, pool_pre_ping=True, **_pool(parsed))
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", _prepare_sqlite)
        upgrade(engine)
    except (ArgumentError, OperationalError, ImportError, OSError) as problem:
        raise ConfigError(
            f"the job store {_without_password(url)!r} cannot be opened ({type(problem).__name__}: {problem}). Give an "
            "SQLAlchemy URL such as sqlite:////srv/jobs.db or postgresql+psycopg://user@host/name, whose driver is "
            "installed",
            code="database",
            param="database",
        ) from problem
    return engine


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that may read first and write then: what it has read still holds when it writes.

    On PostgreSQL its reads must say FOR UPDATE; on SQLite it is alone with its writes from the start.
    """
    with engine.begin() as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        yield connection


def _pool(url: URL) -> dict[str, Any]:
    """Sizes and time limits: a database that hangs must not hang the service."""
    if not url.drivername.startswith("postgresql"):
        return {}
    limits = {
        "connect_timeout": 5,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": PATIENCE_S * 1000,
        "options": f"-c statement_timeout={PATIENCE_S}s -c lock_timeout={PATIENCE_S}s "
        f"-c idle_in_transaction_session_timeout={2 * PATIENCE_S}s",
        "application_name": "dynamictrl",
    }
    # One process asks from few threads at once, but there are many processes: PostgreSQL allows 100 by default.
    return {"pool_size": 4, "max_overflow": 8, "pool_recycle": 900, "pool_timeout": PATIENCE_S, "connect_args": limits}


def _prepare_sqlite(connection, _record) -> None:  # noqa: ANN001 - SQLAlchemy's listener signature
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={PATIENCE_S * 1000}")
    cursor.execute("PRAGMA journal_mode=WAL")  # readers go on while one process writes
    cursor.execute("PRAGMA synchronous=FULL")  # an answered job survives a power cut
    cursor.close()


def _without_password(url: str) -> str:
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return url
