"""Writes of many threads in one transaction: all or nothing for each, and nobody is told before it is on disk."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Connection, event, insert, select

from serving.jobs.database import open_database, workers
from serving.jobs.grouping import Grouped


def row(name: str) -> dict[str, object]:
    return {"id": name, "model": "m", "model_version": "v", "mini": True, "seen_at": 0.0}


def test_threads_that_wait_for_a_commit_share_the_next_one(tmp_path: Path):
    engine = open_database(f"sqlite:///{tmp_path / 'jobs.db'}")
    grouped, commits, gate = Grouped(engine), [], threading.Event()
    event.listen(engine, "commit", lambda connection: commits.append(connection))

    def write(number: int) -> str:
        def work(connection: Connection) -> str:
            if number == 0:
                assert gate.wait(10)
            connection.execute(insert(workers).values(**row(f"w{number}")))
            if number == 7:
                raise ValueError("refused after writing")
            return f"wrote {number}"

        return grouped.run(work)

    with ThreadPoolExecutor(21) as pool:
        first = pool.submit(write, 0)
        others = [pool.submit(write, number) for number in range(1, 21)]
        while len(grouped._waiting) < 20:
            assert not first.done()
        gate.set()
        assert first.result(10) == "wrote 0"
        with pytest.raises(ValueError, match="refused"):
            others[6].result(10)
        assert [one.result(10) for one in others[:6]] == [f"wrote {number}" for number in range(1, 7)]
        assert all(one.result(10) for one in others[7:])
    assert len(commits) == 2
    with engine.connect() as connection:
        found = set(connection.execute(select(workers.c.id)).scalars())
    assert found == {f"w{number}" for number in range(21) if number != 7}


def test_a_commit_that_fails_fails_for_all_of_its_group(tmp_path: Path):
    engine = open_database(f"sqlite:///{tmp_path / 'jobs.db'}")
    grouped = Grouped(engine)

    def fail(_connection: object) -> None:
        raise OSError("the disk is full")

    event.listen(engine, "commit", fail)
    with pytest.raises(OSError, match="disk"):
        grouped.run(lambda connection: connection.execute(insert(workers).values(**row("a"))).rowcount)
    event.remove(engine, "commit", fail)
    with engine.connect() as connection:
        assert connection.execute(select(workers.c.id)).all() == []
    assert grouped.run(lambda connection: connection.execute(insert(workers).values(**row("a"))).rowcount) == 1
