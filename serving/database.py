"""The tables of the job store, and how a database is opened. SQLite for one node, PostgreSQL for more."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import (
    Boolean,
    Column,
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
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, OperationalError

from dynamictrl.errors import ConfigError

_METADATA = MetaData()

videos = Table(
    "videos",
    _METADATA,
    Column("place", Integer, primary_key=True, autoincrement=True),  # order of arrival; what cursors walk along
    Column("id", String(64), nullable=False, unique=True),
    Column("status", String(16), nullable=False),
    Column("stage", String(32), nullable=False),
    Column("progress", Integer, nullable=False, default=0),
    Column("version", Integer, nullable=False, default=1),  # +1 at every change: the id of its event
    Column("created_at", Float, nullable=False),
    Column("started_at", Float),
    Column("completed_at", Float),
    Column("expires_at", Float),
    Column("model", String(200), nullable=False),
    Column("model_version", String(200)),
    Column("settings", Text, nullable=False),  # JSON of jobs.Settings
    Column("inputs", Text, nullable=False),  # JSON: medium -> sha256
    Column("remixed_from", String(64)),
    Column("error_code", String(64)),
    Column("error_message", Text),
    Column("idempotency_key", String(256), unique=True),
    Column("content_hash", String(64), nullable=False),
    Column("cancel_requested", Boolean, nullable=False, default=False),
    Column("attempts", Integer, nullable=False, default=0),
    Column("lease_owner", String(64)),
    Column("lease_token", Integer, nullable=False, default=0),  # the fencing token: only its latest holder may write
    Column("lease_expires_at", Float),
    Column("result_token", Integer),  # which attempt's files are the result
    Index("videos_by_status", "status", "place"),
    Index("videos_by_content", "content_hash", "created_at"),
)

files = Table(
    "files",
    _METADATA,
    Column("place", Integer, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("filename", String(512), nullable=False),
    Column("purpose", String(64), nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
)

workers = Table(
    "workers",
    _METADATA,
    Column("id", String(64), primary_key=True),
    Column("model", String(200), nullable=False),
    Column("model_version", String(200), nullable=False),
    Column("mini", Boolean, nullable=False),
    Column("seen_at", Float, nullable=False),
)


def open_database(url: str) -> Engine:
    """A connection pool on the job store; its tables are made where they are missing.

    Raises ConfigError where the URL is none, or the database cannot be reached.
    """
    try:
        parsed = make_url(url)
        if parsed.drivername.startswith("sqlite") and parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(parsed, pool_pre_ping=True)
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", _prepare_sqlite)
        _METADATA.create_all(engine)
    except (ArgumentError, OperationalError, ImportError, OSError) as problem:
        raise ConfigError(
            f"the job store {_without_password(url)!r} cannot be opened ({type(problem).__name__}: {problem}). Give an "
            "SQLAlchemy URL such as sqlite:////srv/jobs.db or postgresql+psycopg://user@host/name, whose driver is "
            "installed",
            code="database",
            param="database",
        ) from problem
    return engine


def _prepare_sqlite(connection, _record) -> None:  # noqa: ANN001 - SQLAlchemy's listener signature
    cursor = connection.cursor()
    cursor.execute("PRAGMA busy_timeout=15000")
    cursor.execute("PRAGMA journal_mode=WAL")  # readers go on while one process writes
    cursor.execute("PRAGMA synchronous=FULL")  # an answered job survives a power cut
    cursor.close()


def _without_password(url: str) -> str:
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return url
