"""The demo's service in a process of its own, and its client: the stock `openai` package, as a user has it."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def service(model: str, out: Path) -> Iterator[str]:
    """The Videos API in a process of its own; drained with Ctrl-C at the end."""
    port = free_port()
    words = ["serving", "up", "mini", "--model", model, "--port", str(port), "--data-folder", str(out / "serving")]
    print("      $ python -m " + " ".join(words), flush=True)
    with (out / "serving.log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", *words], stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_until_ready(f"http://127.0.0.1:{port}/readyz", process, out / "serving.log")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            sys.exit(f"demo: the service stopped; its log is {log}:\n" + "\n".join(log.read_text().splitlines()[-15:]))
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:
            if answer.status == 200:
                return
        time.sleep(0.5)
    sys.exit(f"demo: the service was not ready within {seconds:.0f} s; its log is {log}")


def request_clip(client: Any, photo: Path, size: str, prompt: str, fields: Mapping[str, Any]) -> bytes:
    """One clip: create, poll, download."""
    job = client.videos.create(
        prompt=prompt,
        input_reference=photo,
        size=size,
        extra_body=dict(fields),
    )
    started = time.monotonic()
    while job.status in ("queued", "in_progress"):
        print(f"\r      {job.id}: {job.status} {job.progress} % ({time.monotonic() - started:.0f} s)  ", end="")
        sys.stdout.flush()
        time.sleep(1)
        job = client.videos.retrieve(job.id)
    print(f"\r      {job.id}: {job.status} after {time.monotonic() - started:.0f} s          ")
    if job.status != "completed":
        sys.exit(f"demo: the job {job.status}: {job.error}")
    return client.videos.download_content(job.id).read()


def connect(base_url: str) -> Any:
    """The stock client on our service."""
    import warnings

    from openai import OpenAI

    # The client announces the end of its own vendor's service; the API lives on in services like this one.
    warnings.filterwarnings("ignore", message="The Sora API", category=DeprecationWarning)
    return OpenAI(base_url=base_url, api_key="not-needed-on-loopback")
