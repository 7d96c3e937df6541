"""What the HTTP side costs: submission under load, the endpoint over the bare engine, memory under large inputs.

    python tests/benchmarks/serving_load.py submit [--ray]      50 clients name files sent ahead; nothing is rendered
    python tests/benchmarks/serving_load.py overhead            20 pairs: a clip over HTTP, the same clip by the engine
    python tests/benchmarks/serving_load.py memory [--ray]      1,000 jobs with 20 MB inputs; resident memory meanwhile

Prints one table; ratios of one run are what to compare. --ray goes through Ray Serve's proxy, else plain uvicorn serves
the same application in a process of its own. The client runs beside it, on the same cores.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]
SERVE = """
import sys, logging, uvicorn
from dataclasses import replace
from pathlib import Path
from serving.config import Defaults, Limits
from serving.recipes import mini
from serving.web.api import build_api
model, data, port = sys.argv[1:]
service = replace(mini(), model=model, data_folder=Path(data), person_check="render", threads=1,
                  defaults=Defaults(width=64, height=96, num_inference_steps=2))
uvicorn.run(build_api(service), port=int(port), log_level="warning", access_log=False)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def plain(model: Path, data: Path) -> Iterator[tuple[str, int]]:
    """The application under uvicorn; its address and process."""
    port = free_port()
    words = [sys.executable, "-c", SERVE, str(model), str(data), str(port)]
    with running(words, port, "/healthz", data.parent / "plain.log") as pid:
        yield f"http://127.0.0.1:{port}", pid


@contextmanager
def through_ray(model: Path, data: Path) -> Iterator[tuple[str, int]]:
    """The service as `python -m serving up` starts it."""
    port = free_port()
    words = [
        sys.executable, "-m", "serving", "up", "mini", "--model", model, "--port", port, "--data-folder", data,
        "--defaults.width", 64, "--defaults.height", 96, "--person-check", "render", "--drain-s", 1, "--threads", 1
    ]  # fmt: skip
    with running([str(word) for word in words], port, "/readyz", data.parent / "ray.log") as pid:
        yield f"http://127.0.0.1:{port}", pid


@contextmanager
def running(words: list[str], port: int, ready: str, log: Path) -> Iterator[int]:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = str(ROOT)
    with log.open("wb") as out:
        process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=out, stderr=out, start_new_session=True)
    try:
        for _ in range(1200):
            assert process.poll() is None, log.read_text()[-3000:]
            try:
                if httpx.get(f"http://127.0.0.1:{port}{ready}", timeout=5).status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
        yield process.pid
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def sent_ahead(url: str, person: Path, pose: Path) -> dict[str, object]:
    """The body of a job whose media lie with the service."""
    ids = [
        httpx.post(f"{url}/v1/files", files={"file": path.open("rb")}, timeout=60).json()["id"]
        for path in (person, pose)
    ]
    return {"input_reference": {"file_id": ids[0]}, "pose_video": {"file_id": ids[1]}, "num_frames": 5}


async def submit(url: str, clients: int, seconds: float, pause_s: float, media: dict[str, object]) -> list[float]:
    """Milliseconds from request to answer, of clients that pause for `pause_s` (mean) between two jobs."""
    taken: list[float] = []
    loop, until = asyncio.get_running_loop(), time.monotonic() + seconds

    async def one(number: int) -> None:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        chance = random.Random(number)
        if pause_s:
            await asyncio.sleep(chance.uniform(0, pause_s))
        while time.monotonic() < until:
            body = json.dumps({"prompt": f"client {number}", "seed": chance.randrange(2**31), **media}).encode()
            head = f"POST /v1/videos HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/json\r\n"
            began = loop.time()
            writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            status = await reader.readline()
            if not status:
                # The server has closed an idle connection, as it may: a client opens another one.
                writer.close()
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
                status = await reader.readline()
            length = 0
            while (line := await reader.readline()) not in (b"\r\n", b""):
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            answer = await reader.readexactly(length)
            taken.append((loop.time() - began) * 1000)
            assert b" 200 " in status, (status, answer[:300])
            if pause_s:
                await asyncio.sleep(chance.expovariate(1 / pause_s))
        writer.close()

    await asyncio.gather(*(one(number) for number in range(clients)))
    return taken


def cpu_seconds(pid: int) -> float:
    """User and system time of a process with all its descendants that live."""
    times, parents = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(folder.name)] = int(words[1])
        times[int(folder.name)] = (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
    total = 0.0
    for one, used in times.items():
        ancestor = one
        while ancestor > 1 and ancestor != pid:
            ancestor = parents.get(ancestor, 0)
        total += used if ancestor == pid else 0.0
    return total


def measure_submit(url: str, pid: int, media: dict[str, object], seconds: float, clients: int) -> None:
    print(f"{'clients':>8} {'pause':>8} {'jobs/s':>8} {'p50 ms':>8} {'p95 ms':>8} {'p99 ms':>8} {'CPU ms a job':>13}")
    asyncio.run(submit(url, 4, 3.0, 0.0, media))
    for pause_s in (2.0, 1.0, 0.5, 0.0):
        before = cpu_seconds(pid)
        taken = sorted(asyncio.run(submit(url, clients, seconds, pause_s, media)))
        cpu = (cpu_seconds(pid) - before) / len(taken) * 1000
        at = [taken[int(len(taken) * share)] for share in (0.5, 0.95, 0.99)]
        print(
            f"{clients:>8} {pause_s:>7.1f}s {len(taken) / seconds:>8.1f} {at[0]:>8.1f} {at[1]:>8.1f} {at[2]:>8.1f} "
            f"{cpu:>13.1f}",
            flush=True,
        )


def measure_overhead(model: Path, folder: Path, person: Path, pose: Path, pairs: int) -> None:
    """Pairs in one process: a job through the HTTP surface, dispatcher and worker; the same job by the bare engine."""
    sys.path.insert(0, str(ROOT))
    import importlib.util
    from dataclasses import replace

    from serving.backend import open_backend
    from serving.config import Defaults
    from serving.jobs.job import AnimationJob
    from serving.recipes import mini

    spec = importlib.util.spec_from_file_location("served", ROOT / "tests" / "conformance" / "served.py")
    assert spec is not None
    assert spec.loader is not None
    served = importlib.util.module_from_spec(spec)
    sys.modules["served"] = served
    spec.loader.exec_module(served)
    service = replace(
        mini(), model=str(model), data_folder=folder / "data", person_check="render", threads=1,
        defaults=Defaults(width=64, height=96, num_frames=17, num_inference_steps=12, guidance_scale=2.0)
    )  # fmt: skip
    backend = open_backend(service)
    over_http, bare, busy, fields = [], [], [], {"prompt": "p", "wait": "60"}
    with served.rendering(backend) as worker, served.listening(backend) as url, httpx.Client(base_url=url) as client:
        for number in range(pairs + 2):
            fields["seed"] = str(number)
            files = {"input_reference": person.open("rb"), "pose_video": pose.open("rb")}
            began, used = time.perf_counter(), time.process_time()
            made = client.post("/v1/videos", data=fields, files=files, timeout=120).json()
            data = client.get(f"/v1/videos/{made['id']}/content").content
            over_http.append(time.perf_counter() - began)
            used = time.process_time() - used
            assert made["status"] == "completed", made
            assert data[4:8] == b"ftyp"
            stored = backend.store.get(made["id"])
            assert stored is not None
            job = AnimationJob(settings=replace(stored.settings, seed=number + 1000), image=person, pose_video=pose)
            began, alone = time.perf_counter(), time.process_time()
            worker.engine.animate(job)
            bare.append(time.perf_counter() - began)
            busy.append((used - (time.process_time() - alone)) * 1000)
    more = [(one - other) * 1000 for one, other in zip(over_http[2:], bare[2:], strict=True)]
    deciles = statistics.quantiles(more, n=10)
    print(f"pairs {pairs}: over HTTP p50 {statistics.median(over_http[2:]) * 1000:.0f} ms, bare engine p50 "
          f"{statistics.median(bare[2:]) * 1000:.0f} ms")  # fmt: skip
    print(f"endpoint minus engine: p50 {statistics.median(more):.0f} ms, p10 {deciles[0]:.0f}, p90 {deciles[8]:.0f} "
          f"ms; of this process's CPU time p50 {statistics.median(busy[2:]):.0f} ms")  # fmt: skip


def resident(pid: int) -> dict[str, float]:
    """Resident MiB by role of a process and its descendants."""
    parents, found = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
            parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
            memory = re.search(r"VmRSS:\s+(\d+)", (folder / "status").read_text())
            title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            found[int(folder.name)] = (title, int(memory[1]) / 1024 if memory else 0.0)
        except OSError:
            continue
    roles: dict[str, float] = {}
    for one, (title, size) in found.items():
        ancestor = one
        while ancestor > 1 and ancestor != pid:
            ancestor = parents.get(ancestor, 0)
        role = re.search(r"ServeReplica:dynamictrl:(\w+)|(Proxy)Actor|(haproxy)", title)
        if one == pid:
            roles["main"] = size
        elif ancestor == pid and role:
            name = next(word for word in role.groups() if word)
            roles[name] = roles.get(name, 0.0) + size
    return roles


def measure_memory(url: str, pid: int, jobs: int, megabytes: int, person: Path, pose: Path) -> None:
    """Jobs one behind the other on four connections; each carries its media and is deleted at once."""
    filler = os.urandom(2**20) * megabytes
    # Behind an mp4's last box a player reads on in a box of any kind: `free` is skipped.
    heavy = pose.read_bytes() + len(filler + b"12345678").to_bytes(4, "big") + b"free" + filler
    done = 0

    async def go() -> None:
        nonlocal done
        limits = httpx.Limits(max_connections=4)
        async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:

            async def one(number: int) -> None:
                nonlocal done
                while done < jobs:
                    done += 1
                    mine = done
                    tag = base64.b64encode(os.urandom(6))
                    files = {"input_reference": ("p.png", person.read_bytes()), "pose_video": ("m.mp4", heavy + tag)}
                    answer = await client.post("/v1/videos", data={"prompt": "p", "num_frames": "5"}, files=files)
                    assert answer.status_code == 200, answer.text
                    await client.delete(f"/v1/videos/{answer.json()['id']}")
                    if mine % (jobs // 10) == 0:
                        sizes = "  ".join(f"{role} {size:.0f}" for role, size in sorted(resident(pid).items()))
                        print(f"after {mine:>5} jobs, MiB: {sizes}", flush=True)

            await asyncio.gather(*(one(number) for number in range(4)))

    sizes = "  ".join(f"{role} {size:.0f}" for role, size in sorted(resident(pid).items()))
    print(f"before, MiB: {sizes}", flush=True)
    began = time.monotonic()
    asyncio.run(go())
    print(f"{jobs} jobs of {megabytes} MB in {time.monotonic() - began:.0f} s")


def media(folder: Path) -> tuple[Path, Path, Path]:
    """A tiny model, a picture and a pose video."""
    import numpy as np
    from PIL import Image

    from dynamictrl.media.video import write_video
    from dynamictrl.mini.marionettes import sample_clip
    from dynamictrl.mini.tiny import write_tiny_model
    from dynamictrl.poses.pose_drawing import draw_pose

    clip = sample_clip(np.random.default_rng(1), num_frames=17, height=96, width=64, fps=12)
    write_video(folder / "pose.mp4", draw_pose(clip.pose, 96, 64), 12)
    Image.fromarray(clip.frames[0]).save(folder / "person.png")
    return write_tiny_model(folder / "model"), folder / "person.png", folder / "pose.mp4"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["submit", "overhead", "memory"])
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--megabytes", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=20)
    wish = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="serving-load-") as name:
        folder = Path(name)
        model, person, pose = media(folder)
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {'Ray Serve' if wish.ray else 'uvicorn'}")
        if wish.what == "overhead":
            measure_overhead(model, folder, person, pose, wish.pairs)
            return
        with (through_ray if wish.ray else plain)(model, folder / "data") as (url, pid):
            if wish.what == "submit":
                measure_submit(url, pid, sent_ahead(url, person, pose), wish.seconds, wish.clients)
            else:
                measure_memory(url, pid, wish.jobs, wish.megabytes, person, pose)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
