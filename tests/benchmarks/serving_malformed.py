"""What broken and hostile requests cost a service: seconds each, memory of its processes, and its health afterwards.

    python -m tests.benchmarks.serving_malformed [--rounds 3]

A real server (uvicorn, a process of its own) takes the corpus of `tests/unit/serving/malformed` over loopback, once a
round; in the first no file is known yet, later ones find most of them remembered. The memory of the server, of its
prober and of the largest process that opened a file is read. Then clients that drip: how long each is listened to.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median

import httpx

from tests.benchmarks.curation_pieces import environment, machine
from tests.unit.serving.malformed.case import Case, Good
from tests.unit.serving.malformed.corpus import cases
from tests.unit.serving.malformed.pictures import person
from tests.unit.serving.malformed.videos import video

MIB = 2**20
SLOW = {"body_idle_s": 2.0, "body_rate": 1000, "body_seconds": 6.0}


def serve(folder: Path, port: int, slow: bool) -> None:
    """The server's process."""
    import uvicorn

    from serving.config import Limits
    from serving.recipes import mini
    from serving.web.api import build_api

    limits = replace(Limits(fetch_urls="always"), **(SLOW if slow else {}))
    service = replace(mini(), data_folder=folder, limits=limits)
    uvicorn.run(build_api(service), host="127.0.0.1", port=port, log_level="error")


@contextmanager
def served(*, slow: bool = False) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "tests.benchmarks.serving_malformed", "--serve", folder, "--port", str(port)]
        process = subprocess.Popen([*words, *(["--slow"] if slow else [])], env=environment())
        try:
            _wait_for(port)
            yield process, port
        finally:
            process.terminate()
            process.wait()


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            httpx.get(f"http://127.0.0.1:{port}/healthz").raise_for_status()
            return
        except httpx.HTTPError:
            time.sleep(0.2)
    raise SystemExit("the server did not start")


class Memory:
    """Resident MiB of a process and of its children and grandchildren, watched from a thread."""

    def __init__(self, root: int):
        self._root = root
        self.largest_fork = 0.0
        self._over = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def now(self) -> tuple[float, float]:
        """Of the server, and of all of its children together."""
        return resident(self._root), sum(map(resident, children(self._root)))

    def stop(self) -> None:
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(0.01):
            for prober in children(self._root):
                for fork in children(prober):
                    self.largest_fork = max(self.largest_fork, resident(fork))


def resident(process: int) -> float:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)


def children(process: int) -> list[int]:
    try:
        threads = list(Path(f"/proc/{process}/task").iterdir())
        return [int(word) for thread in threads for word in (thread / "children").read_text().split()]
    except OSError:
        return []


def attack(client: httpx.Client, good: Good, every: tuple[Case, ...]) -> tuple[dict[str, list[float]], list[str]]:
    """Seconds by class, and what went wrong."""
    seconds: dict[str, list[float]] = defaultdict(list)
    wrong: list[str] = []
    for case in every:
        request = case.request(good)
        began = time.perf_counter()
        answer = client.request(**request)
        seconds[case.kind].append(time.perf_counter() - began)
        error = (answer.json().get("error") or {}) if answer.content else {}
        if not case.is_met_by(answer.status_code, error.get("code"), error.get("param")):
            wrong.append(f"{case.kind}: {case.name}: {answer.status_code} {error}")
    return seconds, wrong


def drip(port: int, path: str, head: str, piece: bytes, pause: float, longest: float = 30.0) -> tuple[float, str]:
    """How long a client is listened to that sends `piece` every `pause` seconds, and how it is told."""
    began, said = time.perf_counter(), b""
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{head}".encode())
        client.settimeout(pause)
        while time.perf_counter() - began < longest:
            try:
                client.sendall(piece)
                got = client.recv(4096)
                said += got
                if not got:
                    break
            except TimeoutError:
                continue
            except OSError:
                break
    return time.perf_counter() - began, said.split(b"\r\n")[0].decode() or "no answer"


def measure(rounds: int) -> None:
    every = cases()
    print(f"{len(every)} requests a round, {machine()}")
    good_person, pose = person(), video(frames=17)
    with served() as (process, port), httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        sent = client.post("/v1/files", files={"file": ("m.mp4", pose)}).json()["id"]
        good = Good(good_person, pose, sent)
        assert client.post("/v1/videos", data=good.fields(), files=good.files()).status_code == 200
        memory = Memory(process.pid)
        seconds: dict[str, list[float]] = defaultdict(list)
        levels = [memory.now()]
        for number in range(rounds):
            took, wrong = attack(client, good, every)
            levels.append(memory.now())
            print(f"round {number + 1}: {len(wrong)} not refused as they should be", *wrong, sep="\n  ")
            for kind, values in took.items():
                seconds[kind] += values
        memory.stop()
        healthy = client.get("/healthz").status_code == 200
        began = time.perf_counter()
        well = client.post("/v1/videos", data=good.fields(), files=good.files()).status_code == 200
        last = time.perf_counter() - began
    print("\n| class | requests | median s | slowest s |\n|---|---|---|---|")
    for kind, values in seconds.items():
        print(f"| {kind} | {len(values) // rounds} | {median(values):.3f} | {max(values):.3f} |")
    print(f"slowest of all: {max(max(values) for values in seconds.values()):.3f} s")
    for number, (ingress, probers) in enumerate(levels):
        print(f"after round {number}: server {ingress:.0f} MiB, prober {probers:.0f} MiB")
    print(f"largest process of one file: {memory.largest_fork:.0f} MiB")
    print(f"healthy: {healthy}; a good request afterwards: {well}, {last:.3f} s")


def measure_slow(port: int) -> None:
    """Prints how clients fare that drip."""
    form = "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 100000\r\n\r\n"
    form += '--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    stated = "Content-Type: application/json\r\nContent-Length: 100000\r\n\r\n"
    chunked = "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    for name, path, head, piece, pause in (
        ("a byte of JSON every 0.1 s", "/v1/videos", stated, b" ", 0.1),
        ("a byte of a file every 0.1 s", "/v1/files", form, b"a", 0.1),
        ("a chunk every 1.5 s", "/v1/videos", chunked, b"1\r\n \r\n", 1.5),
        ("nothing after the head", "/v1/videos", stated, b"", 0.5),
        ("5 kB/s for ever", "/v1/videos", chunked, b"200\r\n" + b" " * 512 + b"\r\n", 0.1),
        ("a quarter of a head", "/v1/videos", "Content-Ty", b"", 0.5),
    ):
        took, said = drip(port, path, head, piece, pause)
        print(f"  {name}: ended after {took:.1f} s, {said}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--drip-at", type=int, help="only drip, at the service that runs on this port of loopback")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--slow", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.port, options.slow)
        return
    if options.drip_at:
        measure_slow(options.drip_at)
        return
    measure(options.rounds)
    print(f"\nclients that drip, with {SLOW}, each for 30 s at most:")
    with served(slow=True) as (_, port):
        measure_slow(port)


if __name__ == "__main__":
    main()
