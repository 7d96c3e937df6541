"""The job store's tables through the versions: migrations come to the schema, an old store goes on, many may start."""

from __future__ import annotations

import json
import secrets
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect, text

from dynamictrl.errors import ConfigError
from serving.jobs import upgrading
from serving.jobs.database import open_database
from serving.jobs.job import Settings, Status
from serving.jobs.schema import METADATA
from serving.jobs.store import JobStore

SETTINGS = Settings(
    prompt="p", width=64, height=96, num_frames=9, fps=12.0, resample=False, num_inference_steps=3, guidance_scale=3.0,
    seed=1
)  # fmt: skip


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'jobs.db'}"
    return request.getfixturevalue("postgres").new_database(f"upgrade_{secrets.token_hex(6)}")


def make_old(url: str) -> None:
    """A store as it was before there were revisions, with a queued job and a finished one."""
    engine = create_engine(url)
    first = (upgrading.MIGRATIONS / "versions" / "0001_first_tables.py").read_text()
    with engine.begin() as connection:
        from alembic.operations import Operations

        with Operations.context(MigrationContext.configure(connection)):
            module: dict[str, object] = {}
            exec(first, module)
            module["upgrade"]()  # type: ignore[operator]
        for number, status in enumerate(("queued", "completed")):
            row = {
                "id": f"video_{status}", "status": status, "stage": status, "progress": 0, "version": 1,
                "created_at": 1000.0 + number, "model": "m", "settings": json.dumps(SETTINGS.to_dict()),
                "inputs": "{}", "content_hash": "c", "cancel_requested": False, "attempts": 0, "lease_token": 0,
                "idempotency_key": f"key-{status}"
            }  # fmt: skip
            names = ", ".join(row)
            connection.execute(text(f"INSERT INTO videos ({names}) VALUES (:{', :'.join(row)})"), row)
    engine.dispose()


def test_the_migrations_come_to_the_tables_that_the_code_names(url: str):
    engine = open_database(url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
        indexes = {index.name for table in METADATA.tables.values() for index in table.indexes}
        found = {index["name"] for table in METADATA.tables for index in inspect(connection).get_indexes(table)}
        assert indexes <= found
    engine.dispose()


def test_a_revisions_number_is_its_files_and_the_chain_has_one_end():
    scripts = ScriptDirectory.from_config(
        Config(attributes={}, config_args={"script_location": str(upgrading.MIGRATIONS)})
    )
    assert scripts.get_heads() == [upgrading.newest()]
    for revision in scripts.walk_revisions():
        assert Path(revision.path).name.partition("_")[0] == revision.revision


def test_an_old_store_goes_on_with_its_jobs(url: str):
    make_old(url)
    store = JobStore(open_database(url))
    found = store.find_by_key("key-completed", "c")
    assert found is not None
    assert (found.id, found.tenant, found.rank) == ("video_completed", "local", 1001.0)
    lease = store.lease("a", 10, 3)
    assert lease is not None
    assert (lease.video.id, lease.video.settings) == ("video_queued", SETTINGS)
    assert store.complete("video_queued", lease.token, model_version="v", expires_at=time.time() + 60)
    assert store.get("video_queued").status is Status.COMPLETED  # type: ignore[union-attr]
    store.engine.dispose()


def test_several_that_start_at_once_upgrade_an_old_store_once(url: str):
    make_old(url)
    with ThreadPoolExecutor(6) as threads:
        engines = list(threads.map(lambda _: open_database(url), range(6)))
    with engines[0].connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all() == [
            upgrading.newest()
        ]
    for engine in engines:
        engine.dispose()


def test_a_kill_in_the_middle_of_an_upgrade_leaves_the_store_as_it_was(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    make_old(url)
    script = (
        "import os, sys\n"
        "from alembic import op\n"
        "from serving.jobs import idempotency\n"
        "idempotency.key_of = lambda *_: os._exit(9)\n"
        "from serving.jobs.database import open_database\n"
        "open_database(sys.argv[1])\n"
    )
    root = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", script, url], cwd=root).returncode == 9
    with sqlite3.connect(tmp_path / "jobs.db") as connection:
        columns = {row[1] for row in connection.execute("PRAGMA table_info(videos)")}
        assert "tenant" not in columns
    connection.close()
    engine = open_database(url)
    assert JobStore(engine).get("video_queued") is not None
    engine.dispose()


def test_a_store_of_a_newer_version_is_refused(url: str):
    engine = open_database(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(ConfigError) as refused:
        open_database(url)
    assert refused.value.code == "database_newer"


def test_a_store_that_is_up_to_date_is_opened_without_alembic(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    open_database(url).dispose()
    script = (
        "import sys\nfrom serving.jobs.database import open_database\nopen_database(sys.argv[1])\n"
        "assert not [m for m in sys.modules if m.startswith('alembic')]\n"
    )
    root = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", script, url], cwd=root).returncode == 0
