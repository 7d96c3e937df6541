"""Brings a job store up to this version's tables: at most one query where they are, Alembic where they are not.

A revision is a file `migrations/versions/NNNN_what.py` whose revision id is `NNNN`; the chain is linear. A store from
before there were revisions has tables but no `alembic_version`: it is taken for revision 0001.
"""

from __future__ import annotations

import logging
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text
from sqlalchemy.exc import DatabaseError

from dynamictrl.errors import ConfigError

logger = logging.getLogger(__name__)

MIGRATIONS = Path(__file__).parent / "migrations"
FIRST = "0001"
LOCK = 0x44594E43
"""PostgreSQL's number of the lock under which one process upgrades."""


def newest() -> str:
    """The revision that this code was written for."""
    return max(path.name.partition("_")[0] for path in (MIGRATIONS / "versions").glob("[0-9]*_*.py"))


def upgrade(engine: Engine) -> None:
    """Makes the tables, or brings them up to date, under a lock: several processes may start at once.

    All revisions go in one transaction, so that a kill in the middle leaves the store as it was. Raises ConfigError
    where the store belongs to a newer version of the service.
    """
    if _revision(engine) == newest():
        return
    with engine.begin() as connection:
        _lock(connection)
        known = inspect(connection)
        at = None
        if known.has_table("alembic_version"):
            at = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        elif known.has_table("videos"):
            at = FIRST
            _stamp(connection, at)
        if at == newest():
            return
        _refuse_newer(at)
        logger.info("the job store goes from revision %s to %s", at or "none", newest())
        _run_alembic(connection)


def _revision(engine: Engine) -> str | None:
    try:
        with engine.connect() as connection:
            return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    except DatabaseError:
        # There is no such table, or no database: the upgrade finds out which.
        return None


def _lock(connection: Connection) -> None:
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        # Whoever waits here waits for another process's whole upgrade.
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(text("SET LOCAL lock_timeout = 0"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})


def _stamp(connection: Connection, revision: str) -> None:
    connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"))
    connection.execute(text("INSERT INTO alembic_version VALUES (:revision)"), {"revision": revision})


def _refuse_newer(at: str | None) -> None:
    if at is not None and at > newest():
        raise ConfigError(
            f"the job store is of revision {at}, and this version of the service knows revisions up to {newest()}; "
            "start the version that it belongs to",
            code="database_newer",
            param="database",
        )


def _run_alembic(connection: Connection) -> None:
    # Imported here: most processes find the tables up to date.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
