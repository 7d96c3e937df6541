"""The kill matrix: jobs of several tenants in the real service while its processes are killed one after the other.

    python -m tests.benchmarks.serving_kills [--jobs 200] [--engines 2] [--kills worker,dispatcher,...] [--sqlite]

`python -m serving up mini` on a local Ray of its own, with a tiny model of the real classes and a real PostgreSQL; jobs
are sent over HTTP with keys of four tenants, each with an Idempotency-Key that its sender repeats until it is answered.
SIGKILL hits in turn: a worker replica at work, the dispatcher, the ingress, the proxy, the controller, the whole Ray
with its driver (the same command is given again), and PostgreSQL is stopped hard for five seconds.

Told: for each kill the seconds until HTTP answers again, until a job that was at work then is at work again or done,
and until the next job is done. At the end: jobs that were acknowledged and are not completed (lost), jobs with
more than one row or more than one end (doubled), jobs that are not over in time (stuck), and clips that cannot be read.
"""

from __future__ import annotations

import argparse
import itertools
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image
from sqlalchemy import Engine, create_engine, func, select
from sqlalchemy.exc import DBAPIError

from serving.jobs.database import videos
from serving.jobs.record import events
from serving.tenants.keyring import Keyring
from serving.tenants.tenant import SCOPES
from tests.postgres import LocalPostgres

ROOT = Path(__file__).parents[2]
TARGETS = ("worker", "dispatcher", "ingress", "proxy", "controller", "database", "ray")
TITLES = {
    "worker": "ServeReplica:dynamictrl:renderer", "dispatcher": "ServeReplica:dynamictrl:dispatcher",
    "ingress": "ServeReplica:dynamictrl:ingress", "proxy": "ray::ProxyActor", "controller": "ray::ServeController"
}  # fmt: skip
FINAL = ("completed", "failed", "cancelled")
AWAY_S = 5.0
"""Seconds for which the database is stopped."""


@dataclass
class Trial:
    """One service, its database and its clients."""

    folder: Path
    engines: int
    postgres: LocalPostgres | None
    mark: str = field(default_factory=lambda: f"kills-{secrets.token_hex(6)}")
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    keys: list[str] = field(default_factory=list)

    @property
    def database(self) -> str:
        return self.postgres.url() if self.postgres else f"sqlite:///{self.folder / 'jobs.db'}"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        words = [
            "-m", "serving", "up", "mini", "--model", self.folder / "model", "--port", self.port, "--data-folder",
            self.folder / "data", "--database", self.database, "--min-engines", self.engines, "--max-engines",
            self.engines, "--defaults.width", 64, "--defaults.height", 96, "--lease-s", 5, "--drain-s", 1,
            "--person-check", "render", "--num-cpus", self.engines + 1
        ]  # fmt: skip
        environment = {**os.environ, "KILLS_MARK": self.mark}
        environment.pop("RAY_ADDRESS", None)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, words)], cwd=ROOT, env=environment, stdout=log, stderr=log
            )

    def wait_ready(self, seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.process is not None
            if self.process.poll() is not None:
                raise RuntimeError((self.folder / "log").read_text()[-3000:])
            if _answers(f"{self.url}/readyz"):
                return
            time.sleep(0.3)
        raise TimeoutError((self.folder / "log").read_text()[-3000:])

    def processes(self, title: str = "") -> list[int]:
        """Ours, by the mark in their environment."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                ours = f"KILLS_MARK={self.mark}".encode() in (folder / "environ").read_bytes()
                if ours and title.encode() in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                continue
        return [pid for pid in found if pid != os.getpid()]

    def kill(self, target: str) -> int:
        """Kills one process of a kind, or the whole Ray; returns how many went."""
        if target == "database":
            assert self.postgres is not None
            self.postgres.stop()
            time.sleep(AWAY_S)
            self.postgres.start()
            return 1
        pids = self.processes(TITLES.get(target, ""))
        if target != "ray":
            pids = pids[:1]
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if target == "ray":
            assert self.process is not None
            self.process.wait()
            while self.processes():
                time.sleep(0.1)
            self.start()
        return len(pids)

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(60)
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        if self.postgres:
            self.postgres.remove()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def make_media(folder: Path, frames: int = 9) -> tuple[Path, Path]:
    """A picture and a pose video of the tiny size."""
    from dynamictrl.media.video import write_video
    from dynamictrl.mini.marionettes import sample_clip
    from dynamictrl.poses.pose_drawing import draw_pose

    clip = sample_clip(np.random.default_rng(0), num_frames=frames, height=96, width=64, fps=12)
    Image.fromarray(clip.frames[0]).save(folder / "person.png")
    write_video(folder / "pose.mp4", draw_pose(clip.pose, 96, 64), 12)
    return folder / "person.png", folder / "pose.mp4"


def _persist(client: httpx.Client, method: str, path: str, **what: Any) -> dict[str, Any]:
    """Sends until it is answered with a 200, as a patient client does."""
    while True:
        try:
            answer = client.request(method, path, timeout=30, **what)
        except httpx.HTTPError:
            time.sleep(0.5)
            continue
        if answer.status_code == 200:
            return answer.json()
        if answer.status_code < 500 and answer.status_code != 429:
            raise RuntimeError(f"{answer.status_code} {answer.text[:300]}")
        time.sleep(0.5)


def send(trial: Trial, jobs: int, steps: int) -> dict[str, str]:
    """Sends all jobs from 16 clients at once; returns idempotency key -> id of what was acknowledged."""
    person, pose = make_media(trial.folder)
    clients = [
        httpx.Client(base_url=f"{trial.url}/v1", headers={"authorization": f"Bearer {key}"}) for key in trial.keys
    ]
    files = []
    for client in clients:
        sent = [
            _persist(client, "POST", "/files", files={"file": (path.name, path.read_bytes())}, data={"purpose": "x"})
            for path in (person, pose)
        ]
        files.append([one["id"] for one in sent])
    acknowledged: dict[str, str] = {}

    def one(number: int) -> None:
        tenant = number % len(clients)
        image, motion = files[tenant]
        wish = {
            "prompt": f"job {number}", "input_reference": {"file_id": image}, "pose_video": {"file_id": motion},
            "size": "64x96", "num_frames": 5, "num_inference_steps": steps, "seed": number
        }  # fmt: skip
        key = f"{trial.mark}-{number}"
        answer = _persist(clients[tenant], "POST", "/videos", json=wish, headers={"idempotency-key": key})
        acknowledged[key] = answer["id"]

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(one, range(jobs)))
    return acknowledged


def _asked(engine: Engine, query: Any) -> list[Any]:
    """Rows, as soon as the database answers."""
    while True:
        try:
            with engine.connect() as connection:
                return list(connection.execute(query).all())
        except DBAPIError:
            time.sleep(0.1)


def _counts(engine: Engine) -> Counter[str]:
    return Counter(dict(_asked(engine, select(videos.c.status, func.count()).group_by(videos.c.status))))


def kill_and_watch(trial: Trial, engine: Engine, target: str, patience: float) -> dict[str, Any]:
    """One kill while a job is at work, and how long everything took to go on."""
    until = time.monotonic() + patience
    while not _counts(engine)["in_progress"]:
        # The first jobs are still on their way, or the last ones are done.
        if time.monotonic() > until:
            return {"target": target, "note": "no job was left"}
        time.sleep(0.05)
    hit = [row.id for row in _asked(engine, select(videos.c.id).where(videos.c.status == "in_progress"))]
    at = time.time()
    killed = trial.kill(target)
    told: dict[str, Any] = {"target": target, "killed": killed, "at_work": len(hit)}
    while time.time() - at < patience and not {"http", "again", "done"} <= told.keys():
        if "http" not in told and _answers(f"{trial.url}/healthz"):
            told["http"] = time.time() - at
        mine = events.c.video_id.in_(hit) & (events.c.at > at)
        on = _asked(engine, select(events.c.video_id).where(mine, events.c.stage != "queued").distinct())
        if "again" not in told and len(on) == len(hit):
            told["again"] = time.time() - at
        done = _asked(engine, select(func.min(events.c.at)).where(events.c.status == "completed", events.c.at > at))
        if "done" not in told and done[0][0] is not None:
            told["done"] = done[0][0] - at
        time.sleep(0.05)
    return told


def verdict(trial: Trial, engine: Engine, acknowledged: dict[str, str], sent: int) -> dict[str, int]:
    """What became of the jobs."""
    rows = {row.id: row for row in _asked(engine, select(videos))}
    ends = Counter(row.video_id for row in _asked(engine, select(events.c.video_id).where(events.c.status.in_(FINAL))))
    completed = [video_id for video_id, row in rows.items() if row.status == "completed"]
    sizes = [_clip_bytes(trial, video_id, rows[video_id].tenant) for video_id in completed]
    doubled_rows = len(rows) - len(set(acknowledged.values()))
    gone = [video_id for video_id in acknowledged.values() if video_id not in rows]
    return {
        "sent": sent,
        "acknowledged": len(acknowledged),
        "completed": len(completed),
        "lost": len(gone) + sum(row.status in FINAL[1:] for row in rows.values()),
        "doubled": doubled_rows + sum(count != 1 for count in ends.values()),
        "stuck": sum(row.status not in FINAL for row in rows.values()),
        "clips missing": sum(size < 500 for size in sizes),
        "attempts beyond the first": sum(row.attempts - 1 for row in rows.values()),
    }  # fmt: skip


def _clip_bytes(trial: Trial, video_id: str, tenant: str) -> int:
    key = trial.keys[int(tenant.removeprefix("tenant"))]
    path = f"{trial.url}/v1/videos/{video_id}/content"
    answer = httpx.get(path, headers={"authorization": f"Bearer {key}"}, timeout=30)
    return len(answer.content) if answer.status_code == 200 and answer.content[4:8] == b"ftyp" else 0


def run(jobs: int, engines: int, kills: list[str], *, sqlite: bool, steps: int, limit_s: float) -> int:
    from dynamictrl.mini.tiny import write_tiny_model

    folder = Path(tempfile.mkdtemp(prefix="serving-kills-"))
    write_tiny_model(folder / "model")
    trial = Trial(folder, engines, None if sqlite else LocalPostgres())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        trial.port = probe.getsockname()[1]
    if trial.postgres:
        trial.postgres.start()
    began = time.monotonic()
    try:
        trial.start()
        trial.wait_ready()
        engine = create_engine(trial.database, pool_pre_ping=True)
        ring = Keyring(engine)
        trial.keys = [ring.create(f"tenant{number}", SCOPES)[0] for number in range(4)]
        store, load = "SQLite" if sqlite else "PostgreSQL", os.getloadavg()[0]
        print(f"{jobs} jobs of 4 tenants, {engines} engines, {store}, {os.cpu_count()} cores, load {load:.1f}")
        print(f"ready after {time.monotonic() - began:.0f} s", flush=True)
        acknowledged: dict[str, str] = {}
        sender = threading.Thread(target=lambda: acknowledged.update(send(trial, jobs, steps)), daemon=True)
        sender.start()
        print(
            "| killed | HTTP answers after | interrupted jobs go on after | next clip done after |\n|---|---|---|---|"
        )
        for target in kills:
            told = kill_and_watch(trial, engine, target, patience=90)
            shown = [f"{told[name]:.1f} s" if name in told else "-" for name in ("http", "again", "done")]
            print(
                f"| {target} ({told.get('at_work', 0)} at work) | {' | '.join(shown)} | {told.get('note', '')}",
                flush=True,
            )
        sender.join(limit_s)
        deadline = time.monotonic() + limit_s
        for wait in itertools.count():
            open_jobs = sum(count for status, count in _counts(engine).items() if status not in FINAL)
            if not open_jobs or time.monotonic() > deadline:
                break
            if wait % 20 == 0:
                print(f"  {open_jobs} jobs are not done yet", flush=True)
            time.sleep(0.5)
        time.sleep(1.0)
        told = verdict(trial, engine, acknowledged, jobs)
        print(", ".join(f"{name} {count}" for name, count in told.items()), f"in {time.monotonic() - began:.0f} s")
        engine.dispose()
        bad = told["lost"] + told["doubled"] + told["stuck"] + told["clips missing"]
        return 1 if bad or told["completed"] != jobs else 0
    finally:
        shutil.copyfile(folder / "log", Path(tempfile.gettempdir()) / f"{trial.mark}.log")
        trial.end()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--engines", type=int, default=2)
    parser.add_argument("--kills", default=",".join(TARGETS))
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--limit", type=float, default=240.0, help="seconds for the rest of the jobs after the kills")
    parser.add_argument("--sqlite", action="store_true", help="no PostgreSQL; then its loss is not in the matrix")
    wish = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended on the way out
    kills = [target for target in wish.kills.split(",") if target and not (wish.sqlite and target == "database")]
    code = 1
    try:
        code = run(wish.jobs, wish.engines, kills, sqlite=wish.sqlite, steps=wish.steps, limit_s=wish.limit)
    finally:
        sys.stdout.flush()
        os._exit(code)  # clients that still repeat their requests must not keep us
