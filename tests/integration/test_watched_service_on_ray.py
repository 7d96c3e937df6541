"""A service on local Ray as its operators see it: one trace a job over all processes, one page of numbers, JSON log
lines, a signed webhook; and a key made and revoked while it runs."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

ROOT = Path(__file__).parents[2]
PROMPT = "words that no log and no trace may hold"


class Listener:
    """An OTLP collector and a webhook receiver in one: keeps every POST by its path."""

    def __init__(self):
        self.got: dict[str, list[tuple[bytes, dict[str, str]]]] = {}
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                listener.got.setdefault(self.path, []).append((body, headers))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def spans(self) -> list[tuple[str, str, Any]]:
        """Role of the process, name, and span of all that was exported."""
        found = []
        for body, _ in list(self.got.get("/v1/traces", [])):
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                facts = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
                for scope in resource.scope_spans:
                    found += [(facts["process.role"], span.name, span) for span in scope.spans]
        return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Service:
    def __init__(self, model: Path, folder: Path, listener: Listener):
        self.folder, self.port, self.log = folder, free_port(), folder / "log"
        words = ["up", "mini", "--model", model, "--port", self.port, "--data-folder", folder / "data",
                 "--defaults.width", 64, "--defaults.height", 96, "--drain-s", 1, "--person-check", "render",
                 "--private-hosts", listener.address]  # fmt: skip
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://{listener.address}"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "serving", *map(str, words)], cwd=ROOT, env=environment, stdout=log, stderr=log
            )
        try:
            wait_for(lambda: f"ready: {self.url}" in self.log.read_text() and self.ready(), 240)
        except AssertionError as problem:
            self.process.kill()
            raise AssertionError(self.log.read_text()[-3000:]) from problem

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=2):
                return True
        except OSError:
            return False

    def get(self, path: str, key: str = "") -> tuple[int, str]:
        request = urllib.request.Request(f"{self.url}{path}", headers={"authorization": f"Bearer {key}"} if key else {})
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refusal:
            return refusal.code, refusal.read().decode()

    def command(self, *words: str) -> list[Any]:
        """What an operator's command says, run beside the service."""
        done = subprocess.run(
            [sys.executable, "-m", "serving", *words, "--data-folder", self.folder / "data", "--json"], cwd=ROOT,
            capture_output=True, text=True, timeout=60, check=True
        )  # fmt: skip
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.server.shutdown()


@pytest.fixture(scope="module")
def service(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, listener: Listener) -> Iterator[Service]:
    service = Service(tiny_model, tmp_path_factory.mktemp("watched"), listener)
    yield service
    service.process.send_signal(signal.SIGINT)
    service.process.wait(90)


def wait_for(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(0.2)


def rendered(service: Service, media: tuple[Path, Path], key: str, **extra: Any) -> openai.types.Video:
    person, pose = media
    client = openai.OpenAI(base_url=f"{service.url}/v1", api_key=key)
    file = client.files.create(file=pose, purpose="user_data")
    return client.videos.create_and_poll(
        prompt=PROMPT, input_reference=person, size="64x96",  # type: ignore[arg-type]
        extra_body={"pose_video": {"file_id": file.id}, "num_frames": 5, "num_inference_steps": 2, **extra}
    )  # fmt: skip


def test_a_job_leaves_one_trace_a_webhook_numbers_and_log_lines_with_its_id(
    service: Service, listener: Listener, person_and_pose: tuple[Path, Path]
):
    ((secret,),) = (service.command("webhook", "secret"),)
    video = rendered(service, person_and_pose, "none", webhook_url=f"http://{listener.address}/hook")
    assert video.status == "completed"

    wait_for(lambda: listener.got.get("/hook"))
    ((body, headers),) = listener.got["/hook"]
    event = openai.OpenAI(api_key="n").webhooks.unwrap(body, headers, secret=secret["secret"])
    assert (event.type, event.data.id) == ("video.completed", video.id)  # type: ignore[union-attr]

    def mine() -> list[tuple[str, str, Any]]:
        """The spans of the job's trace: of the POST that made it, and all that came of it."""
        known = listener.spans()
        (trace,) = {span.trace_id for _, name, span in known if name == "render"}
        return [entry for entry in known if entry[2].trace_id == trace]

    expected = {
        ("ingress", "POST /v1/videos"), ("dispatcher", "queue"), ("dispatcher", "attempt"), ("worker", "render"),
        ("worker", "denoise"), ("worker", "decode"), ("worker", "write"), ("worker", "commit"),
        ("dispatcher", "webhook")
    }  # fmt: skip
    wait_for(lambda: any(name == "render" for _, name, _ in listener.spans()))
    wait_for(lambda: expected <= {(role, name) for role, name, _ in mine()})
    spans = {name: span for _, name, span in mine()}
    assert spans["denoise"].parent_span_id == spans["render"].span_id
    assert spans["render"].parent_span_id == spans["POST /v1/videos"].span_id
    assert spans["queue"].start_time_unix_nano < spans["render"].start_time_unix_nano
    assert spans["denoise"].end_time_unix_nano <= spans["decode"].start_time_unix_nano + 1e6
    exported = b"".join(body for body, _ in listener.got["/v1/traces"])
    assert PROMPT.encode() not in exported

    def shown() -> str:
        return service.get("/metrics")[1]

    wait_for(
        lambda: re.search(r'stage_seconds_count\{process="worker-\w+",quality="exact",stage="denoise"\} 1', shown())
    )
    wait_for(lambda: re.search(r'attempts_total\{outcome="completed",process="dispatcher-\w+"\} 1', shown()))
    page = shown()
    assert 'dynamictrl_jobs_ended_total{model="dynamictrl",outcome="completed",quality="exact"} 1' in page
    assert re.search(r'dynamictrl_gpu_seconds_total\{tenant="local"\} \d', page)
    assert re.search(r'webhook_tries_total\{process="dispatcher-\w+",result="delivered"\} 1', page)
    assert 'dynamictrl_processes{role="worker"} 1' in page

    trace_id = spans["render"].trace_id.hex()
    lines = [json.loads(found) for found in re.findall(r"\{.*\}", service.log.read_text()) if '"job"' in found]
    about = [line for line in lines if line["job"] == video.id]
    assert {"dispatcher", "worker"} <= {line["process"] for line in about}
    assert {line["trace_id"] for line in about} == {trace_id}
    assert PROMPT not in service.log.read_text()


def test_a_key_made_and_revoked_while_the_service_runs_counts_within_seconds(service: Service):
    assert service.get("/v1/videos")[0] == 200
    (made,) = service.command("key", "create", "--tenant", "acme", "--scopes", "videos:read")
    wait_for(lambda: service.get("/v1/videos")[0] == 401, 6)
    status, text = service.get("/v1/videos", made["key"])
    assert (status, json.loads(text)["data"]) == (200, [])  # the clip of before is another tenant's
    assert service.get("/metrics", made["key"])[0] == 403
    assert service.get("/v1/files", made["key"])[0] == 403
    service.command("key", "revoke", "--id", made["id"])
    wait_for(lambda: service.get("/v1/videos", made["key"])[0] == 401, 6)
    actions = [(row["action"], row["status"], row["code"]) for row in service.command("audit", "--tenant", "acme")]
    assert actions[0] == ("key.create", 0, "")
    assert ("GET /v1/files", 403, "insufficient_scope") in [(a, s, c) for a, s, c in actions]
    assert actions[-1] == ("key.revoke", 0, "")
