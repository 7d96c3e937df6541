"""What the job store costs with many jobs waiting: a lease, a report, a look at the queue, a client's place in it.

python -m tests.benchmarks.serving_queue [--jobs 10000] [--tenants 50]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles

from sqlalchemy import insert

from serving.jobs.database import open_database, videos
from serving.jobs.job import Settings
from serving.jobs.store import JobStore, new_video_id
from tests.postgres import LocalPostgres

SETTINGS = Settings(
    prompt="p", width=64, height=96, num_frames=9, fps=12.0, resample=False, num_inference_steps=3, guidance_scale=3.0,
    seed=1
)  # fmt: skip
TIMES = 100


def measure(name: str, url: str, jobs: int, tenants: int) -> None:
    engine = open_database(url)
    store = JobStore(engine)
    store.add(video_id=new_video_id(), model="m", settings=SETTINGS, inputs={"pose_video": "0"}, content_hash="c")
    with engine.begin() as connection:
        row = connection.execute(videos.select()).mappings().one()
        same = {column: value for column, value in row.items() if column not in ("place", "id", "tenant", "rank")}
        rows = [
            {**same, "id": f"v{n}", "tenant": f"t{n % tenants:04}", "rank": 1.0 * n, "gpu_seconds_estimate": 30.0}
            for n in range(jobs)
        ]
        connection.execute(insert(videos), rows)
    leases = []
    told = {"a lease": _times(lambda: leases.append(store.lease("owner", 60, 3)))}
    lease = leases[0]
    told["a report of progress"] = _times(
        lambda: store.report(lease.video.id, lease.token, stage="denoising", progress=5)
    )
    told["may it go on"] = _times(lambda: store.verdict(lease.video.id, lease.token))
    told["the queue read (twice a second at most)"] = _times(store.queue._read, 10)
    last = store.get(f"v{jobs - 1}")
    assert last is not None
    told["the last job's place and ETA from it"] = _times(lambda: (store.queue_position(last), store.eta_s(last)), 10)
    for what, (wall, processor) in told.items():
        print(f"| {name} | {what} | {median(wall):.2f} ms p50 | {quantiles(wall, n=20)[18]:.2f} ms p95 | "
              f"{median(processor):.2f} ms of our processor time |")  # fmt: skip
    engine.dispose()


def _times(call: Callable[[], object], times: int = TIMES) -> tuple[list[float], list[float]]:
    wall, processor = [], []
    for _ in range(times):
        began, used = time.perf_counter(), time.process_time()
        call()
        wall.append(1e3 * (time.perf_counter() - began))
        processor.append(1e3 * (time.process_time() - used))
    return wall, processor


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--tenants", type=int, default=50)
    wish = parser.parse_args()
    print(f"{wish.jobs} jobs of {wish.tenants} tenants wait; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        measure("SQLite", f"sqlite:///{Path(folder) / 'jobs.db'}", wish.jobs, wish.tenants)
    server = LocalPostgres()
    server.start()
    try:
        measure("PostgreSQL", server.new_database("queue"), wish.jobs, wish.tenants)
    finally:
        server.remove()
