"""What keys, rates and the audit log cost a request: the gate before an application that does nothing; and a scrape.

    python -m tests.benchmarks.serving_gate [--requests 2000]

On SQLite and on a local PostgreSQL (both on this machine's disk, PostgreSQL without fsync). Ratios of one run count:
times are of whatever else the machine does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import secrets
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import insert

from serving.backend import Backend, open_backend
from serving.jobs.database import videos
from serving.recipes import mini
from serving.tenants.audit import AuditLog
from serving.tenants.keyring import Keyring
from serving.watching import page
from serving.watching.processes import Publisher
from serving.web.gate import Gate
from tests.postgres import LocalPostgres


async def nothing(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def ask(app: Any, method: str = "GET", key: str = "") -> float:
    """Seconds of one request."""
    headers = [(b"host", b"127.0.0.1")] + ([(b"authorization", f"Bearer {key}".encode())] if key else [])
    scope = {"type": "http", "method": method, "path": "/v1/videos", "headers": headers, "client": ("127.0.0.1", 1),
             "query_string": b""}  # fmt: skip

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            assert message["status"] == 200, message

    began = time.perf_counter()
    await app(scope, receive, send)
    return time.perf_counter() - began


async def in_turn(one: Callable[[], Awaitable[float]], count: int) -> list[float]:
    return [await one() for _ in range(count)]


def told(what: str, seconds: list[float]) -> None:
    ranked = sorted(seconds)
    p50, p95 = statistics.median(ranked), ranked[int(len(ranked) * 0.95)]
    print(f"| {what} | {len(ranked)} | {p50 * 1e3:.3f} ms | {p95 * 1e3:.3f} ms |", flush=True)


async def measure(name: str, backend: Backend, count: int) -> None:
    keyring, gate = Keyring(backend.store.engine), Gate(nothing, backend)
    keyring.set_quotas("bench", {"requests_per_minute": 6_000_000, "burst": 1_000_000})
    key, _ = keyring.create("bench", ("admin",))
    bounded = Gate(nothing, backend)
    await ask(bounded, key=key)
    told(f"{name}: GET through no gate", await in_turn(lambda: ask(nothing), count))
    told(f"{name}: GET with a key, counted, rate-limited", await in_turn(lambda: ask(bounded, key=key), count))

    async def looked_up() -> float:
        fresh, _ = keyring.create("bench", ("admin",))
        return await ask(gate, key=fresh)

    told(f"{name}: GET with a key that is looked up", await in_turn(looked_up, count // 10))
    told(f"{name}: POST, on record", await in_turn(lambda: ask(bounded, "POST", key), count // 10))
    before = len(AuditLog(backend.store.engine).read(limit=1_000_000))
    together = [await asyncio.gather(*(ask(bounded, "POST", key) for _ in range(50))) for _ in range(count // 100)]
    told(f"{name}: POST, on record, 50 at once", [seconds for round_ in together for seconds in round_])
    assert len(AuditLog(backend.store.engine).read(limit=1_000_000)) - before == 50 * (count // 100)


def scrape(name: str, backend: Backend, jobs: int) -> None:
    """The page of /metrics over a store that holds so many jobs, a fiftieth of them queued, of thirty tenants."""
    settings = json.dumps({"quality": "exact", "prompt": "x" * 300})
    common = {"stage": "x", "progress": 0, "version": 1, "model": "m", "settings": settings, "inputs": "{}",
              "content_hash": "c", "stored_bytes": 5_000_000}  # fmt: skip
    with backend.store.engine.begin() as connection:
        for start in range(0, jobs, 1000):
            rows = [
                {**common, "id": f"v{i}", "status": "completed" if i % 50 else "queued", "created_at": time.time(),
                 "tenant": f"t{i % 30}"}
                for i in range(start, start + 1000)
            ]  # fmt: skip
            connection.execute(insert(videos), rows)
    publisher, seconds = Publisher(backend.store.engine, "ingress"), []
    for _ in range(10):
        began = time.perf_counter()
        page.render(backend, publisher)
        seconds.append(time.perf_counter() - began)
    told(f"{name}: a page of /metrics with {jobs:,} jobs in the store", seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000, help="requests of the first rows; others take fewer")
    count = parser.parse_args().requests
    logging.disable(logging.INFO)
    print("| what | requests | p50 | p95 |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        sqlite = replace(mini(), data_folder=Path(folder) / "sqlite")
        asyncio.run(measure("SQLite", open_backend(sqlite), count))
        server = LocalPostgres()
        server.start()
        try:
            url = server.new_database(f"gate_{secrets.token_hex(4)}")
            postgres = replace(mini(), data_folder=Path(folder) / "postgresql", database=url)
            asyncio.run(measure("PostgreSQL", open_backend(postgres), count))
            for name, service in (("SQLite", sqlite), ("PostgreSQL", postgres)):
                scrape(name, open_backend(service), 100_000)
        finally:
            server.remove()


if __name__ == "__main__":
    main()
