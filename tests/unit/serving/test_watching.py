"""What operators see: one page of numbers for all processes, spans that reach a real collector, log lines that say what
they are about."""

import importlib.util
import json
import logging
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import event

from serving.backend import Backend, open_backend
from serving.jobs.job import Settings
from serving.jobs.store import new_video_id
from serving.recipes import mini
from serving.tenants.keyring import Keyring
from serving.tenants.tenant import Quotas
from serving.watching import attempts, logs, metrics, page, tracing
from serving.watching.from_store import OTHERS, _few
from serving.watching.processes import SHOWN_S, Publisher, dump, merge
from serving.webhooks.outbox import Outbox

SETTINGS = Settings(
    prompt='a "quality": "fast" wish', width=64, height=96, num_frames=9, fps=12.0, resample=False,
    num_inference_steps=3, guidance_scale=3.0, seed=1
)  # fmt: skip


@pytest.fixture(params=["sqlite", "postgresql"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    database = ""
    if request.param == "postgresql":
        database = request.getfixturevalue("postgres").new_database(f"watch_{secrets.token_hex(6)}", like="fresh")
    backend = open_backend(replace(mini(), data_folder=tmp_path, database=database, gpu_hour_price=3.6))
    yield backend
    backend.store.engine.dispose()


def add(backend: Backend, *, quality: str = "exact", tenant: str = "acme", **more: Any) -> str:
    video, _ = backend.store.add(
        video_id=new_video_id(), model="m", settings=replace(SETTINGS, quality=quality), inputs={},
        content_hash=secrets.token_hex(8), tenant=tenant, **more
    )  # fmt: skip
    return video.id


def numbers(backend: Backend, publisher: Publisher) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = page.render(backend, publisher).decode()
    return {
        (sample.name.removeprefix("dynamictrl_"), tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_page_tells_what_the_store_knows(backend: Backend):
    now = time.time()
    backend.store.clock = lambda: now
    Keyring(backend.store.engine).set_quotas("acme", {"gpu_seconds_per_month": 400})
    for quality in ("exact", "exact", "fast"):
        add(backend, quality=quality, webhook_url="http://receiver.example/hook", stored_bytes=5)
    lease = backend.store.lease("worker", 10.0, 3)
    assert lease is not None
    now += 100
    assert backend.store.complete(lease.video.id, lease.token, model_version="1", expires_at=now)
    lease = backend.store.lease("worker", 10.0, 3)
    assert lease is not None
    now += 50
    seen = numbers(backend, Publisher(backend.store.engine, "ingress"))
    waiting = {labels: value for (name, labels), value in seen.items() if name == "jobs_queued"}
    assert sum(waiting.values()) == 1
    assert seen["jobs_running", (("model", "m"), ("quality", lease.video.settings.quality))] == 1
    assert max(value for (name, _), value in seen.items() if name == "queue_oldest_age_seconds") == pytest.approx(150)
    assert seen["running_oldest_age_seconds", ()] == pytest.approx(50)
    assert seen["leases_overdue", ()] == 1
    assert seen["jobs_ended_total", (("model", "m"), ("outcome", "completed"), ("quality", "exact"))] == 1
    assert seen["gpu_seconds_total", (("tenant", "acme"),)] == pytest.approx(100)
    assert seen["gpu_cost_total", (("tenant", "acme"),)] == pytest.approx(0.1)
    assert seen["gpu_budget_used_ratio", (("tenant", "acme"),)] == pytest.approx(0.25)
    assert seen["stored_bytes", (("tenant", "acme"),)] == 15
    assert (seen["webhooks_pending", ()], seen["webhooks_dead", ()]) == (1, 0)
    assert seen["webhook_oldest_pending_age_seconds", ()] == pytest.approx(50)
    assert seen["store_up", ()] == 1
    (due,) = Outbox(backend.store.engine, clock=lambda: now).claim(most=1)
    Outbox(backend.store.engine).failed(due, status=410, error="gone", next_at=None)
    backend.store.sweep(3)
    seen = numbers(backend, Publisher(backend.store.engine, "ingress"))
    assert (seen["webhooks_pending", ()], seen["webhooks_dead", ()], seen["jobs_retried", ()]) == (0, 1, 1)


def test_what_the_documentation_lists_is_what_the_page_gives(backend: Backend):
    Keyring(backend.store.engine).set_quotas("acme", {"gpu_seconds_per_month": 400})
    add(backend, quality="fast", stored_bytes=1)
    for counter in set(metrics.PROCESS._names_to_collectors.values()):
        # One sample of each: a family that has counted nothing yet shows no labels.
        if names := getattr(counter, "_labelnames", ()):
            counter.labels(*["x"] * len(names))
    attempts.leased(video := backend.store.lease("w", 60.0, 3).video)  # type: ignore[union-attr]
    attempts.ended("completed", tracing.Span())
    with attempts.rendering(video, 1) as seen:
        seen.stages({"denoise": 1.0})
    metrics.cache_looked_up("prompts", hit=True)
    metrics.WEBHOOK_TRIES.labels("delivered").inc()
    metrics.HTTP_REQUESTS.labels("GET", "/", "200").inc()
    metrics.HTTP_SECONDS.labels("GET", "/").observe(0.1)
    backend.store.cancel(video.id)
    backend.store.delete(video.id)
    add(backend, stored_bytes=1)
    lease = backend.store.lease("w", 60.0, 3)
    assert lease is not None
    add(backend)
    text = page.render(backend, Publisher(backend.store.engine, "ingress")).decode()
    given: dict[str, tuple[str, set[str]]] = {}
    for family in text_string_to_metric_families(text):
        name = family.name.removeprefix("dynamictrl_") + ("_total" if family.type == "counter" else "")
        given[name] = (family.type, {label for sample in family.samples for label in sample.labels} - {"le"})
    listed = {}
    for line in (metrics.__doc__ or "").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("| `"):
            listed[cells[0].strip("`")] = (cells[1], {label for label in cells[2].split(", ") if label})
    assert given == listed


def test_one_replica_shows_what_every_process_has_counted(backend: Backend):
    now = time.time()
    publishers = []
    for role, count in (("ingress", 3), ("worker", 4)):
        registry = CollectorRegistry()
        Counter("dynamictrl_attempts", "h", ["outcome"], registry=registry).labels("completed").inc(count)
        Histogram("dynamictrl_stage_seconds", "h", ["stage"], registry=registry).labels("write").observe(count)
        publishers.append(Publisher(backend.store.engine, role, registry=registry, clock=lambda: now))
        publishers[-1].publish()
        publishers[-1].publish()
    backend.store.clock = lambda: now
    seen = numbers(backend, Publisher(backend.store.engine, "ingress"))
    counts = {labels[1][1]: value for (name, labels), value in seen.items() if name == "attempts_total" and value >= 3}
    assert {publisher.process: counts.get(publisher.process) for publisher in publishers} == {
        publishers[0].process: 3.0, publishers[1].process: 4.0
    }  # fmt: skip
    assert seen["stage_seconds_sum", (("process", publishers[1].process), ("stage", "write"))] == 4
    assert (seen["processes", (("role", "ingress"),)], seen["processes", (("role", "worker"),)]) == (2, 1)
    now += SHOWN_S + 1
    seen = numbers(backend, Publisher(backend.store.engine, "ingress"))
    assert ("processes", (("role", "worker"),)) not in seen


def test_without_the_store_a_replica_still_shows_its_own(backend: Backend):
    def away(*_: Any) -> None:
        from sqlalchemy.exc import OperationalError

        raise OperationalError("SELECT 1", {}, Exception("gone"))

    metrics.WEBHOOK_TRIES.labels("delivered").inc()
    publisher = Publisher(backend.store.engine, "ingress")
    event.listen(backend.store.engine, "before_cursor_execute", away)
    seen = numbers(backend, publisher)
    event.remove(backend.store.engine, "before_cursor_execute", away)
    assert seen["store_up", ()] == 0
    assert seen["webhook_tries_total", (("process", publisher.process), ("result", "delivered"))] >= 1


def test_tenants_make_labels_up_to_a_bound():
    few = _few({f"t{number}": float(number) for number in range(500)})
    assert len(few) == 201
    assert few[OTHERS] == sum(range(300))
    assert few["t499"] == 499


def test_a_published_registry_is_the_registry():
    registry = CollectorRegistry()
    histogram = Histogram("h", "help", ["a"], buckets=(1, 2), registry=registry)
    histogram.labels("x").observe(1.5)
    (family,) = merge([("p", dump(registry))])
    assert {(s.name, s.labels.get("le"), s.value) for s in family.samples} == {
        ("h_bucket", "1.0", 0), ("h_bucket", "2.0", 1), ("h_bucket", "+Inf", 1), ("h_count", None, 1),
        ("h_sum", None, 1.5)
    }  # fmt: skip


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """A real OTLP receiver; what it holds are spans."""
    spans: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
            spans.extend(s for r in sent.resource_spans for scope in r.scope_spans for s in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setattr(tracing, "_provider", None)
    yield spans
    if tracing._provider is not None:
        tracing._provider.shutdown()
    server.shutdown()
    server.server_close()


def test_spans_of_a_job_reach_a_collector_as_one_trace(collector: list[Any]):
    with tracing.span("POST", kind="server") as root:
        traceparent = root.traceparent
        assert tracing.current() == traceparent
    with suppress(ValueError), tracing.span("render", parent=traceparent, job="video_1"):
        tracing.record("denoise", 10.0, 12.5, parent=tracing.current())
        raise ValueError("a wish that must not be exported")
    tracing.flush()
    spans = {span.name: span for span in collector}
    assert {span.trace_id.hex() for span in collector} == {tracing.trace_id(traceparent)}
    assert spans["render"].parent_span_id == spans["POST"].span_id
    assert spans["denoise"].parent_span_id == spans["render"].span_id
    assert spans["denoise"].end_time_unix_nano - spans["denoise"].start_time_unix_nano == 2_500_000_000
    assert (spans["render"].status.code, spans["render"].status.message) == (2, "ValueError")
    assert "must not be" not in str(collector)
    assert {pair.key: pair.value.string_value for pair in spans["render"].attributes} == {"dynamictrl.job": "video_1"}


def test_a_callers_trace_goes_on_in_ours(collector: list[Any]):
    theirs = f"00-{'ab' * 16}-{'cd' * 8}-01"
    with tracing.span("POST", parent=theirs) as span:
        assert tracing.trace_id(span.traceparent) == "ab" * 16
    tracing.flush()
    assert collector[0].parent_span_id.hex() == "cd" * 8


def test_without_a_collector_nothing_of_opentelemetry_is_imported():
    code = (
        "import sys; from serving.watching import tracing, attempts, metrics\n"
        "with tracing.span('x', job='y') as s: assert s.traceparent is None and tracing.current() is None\n"
        "assert tracing.record('x', 1, 2, parent=None) is None\n"
        "assert not [m for m in sys.modules if m.startswith('opentelemetry')]"
    )
    environment = {"PYTHONPATH": str(Path(__file__).parents[3]), "PATH": ""}
    assert importlib.util.find_spec("opentelemetry") is not None
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_a_log_line_says_what_it_is_about_and_nothing_that_it_may_not():
    record = logging.LogRecord("serving.x", logging.INFO, "f", 1, "job %s ended", ("video_1",), None)
    with logs.bind(job="video_1", tenant="acme", trace_id=None), logs.bind(request_id="req_1"):
        logs._name_what_it_is_about(record)
    line = json.loads(logs._Json("worker").format(record))
    assert {"message": "job video_1 ended", "level": "info", "logger": "serving.x", "process": "worker",
            "job": "video_1", "tenant": "acme", "request_id": "req_1"}.items() <= line.items()  # fmt: skip
    assert "trace_id" not in line
    assert "[job=video_1 tenant=acme request_id=req_1]" in logs._Text("").format(record)
    logs._name_what_it_is_about(record)
    assert "job" not in json.loads(logs._Json("").format(record))


def test_quotas_default_to_no_bound():
    assert not any(vars(Quotas()).values())
