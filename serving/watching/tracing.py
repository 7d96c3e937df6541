"""One OpenTelemetry trace a job, over every process that touches it, exported by OTLP.

Off, and next to free, unless OTEL_EXPORTER_OTLP_ENDPOINT (or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT) is set: nothing of
OpenTelemetry is imported then. Spans never hold a prompt, a key or a file's name.

    with tracing.span("commit", parent=video.traceparent, job=video.id) as span: ...
    tracing.record("queue", video.created_at, now, parent=video.traceparent)    # what is only known afterwards
    tracing.current()     # the traceparent to put into a row, a header, a message; None where nothing is traced
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

Kind = Literal["internal", "server", "client", "producer", "consumer"]
Value = str | int | float | bool

SERVICE = "dynamictrl-serving"
"""What traces call us, unless OTEL_SERVICE_NAME says otherwise."""
EXPORT_MS = 1000
"""Spans are sent this often, milliseconds: what a killed process has not sent is lost."""

_lock = threading.Lock()
_provider: Any = None
_process = ""


def is_on() -> bool:
    """Whether somebody wants traces."""
    return any(os.environ.get(f"OTEL_EXPORTER_OTLP_{name}ENDPOINT") for name in ("", "TRACES_"))


def set_up(process: str) -> None:
    """Names this process in its spans: ingress, dispatcher, worker."""
    global _process
    _process = process


class Span:
    """One stretch of work while it lasts. Without an exporter it is nobody's."""

    def __init__(self, traced: Any = None):  # noqa: ANN401 - opentelemetry's Span, which is not imported when off
        self._traced = traced

    def set(self, **attributes: Value | None) -> None:
        if self._traced is not None:
            self._traced.set_attributes(_named(attributes))

    def rename(self, name: str) -> None:
        if self._traced is not None:
            self._traced.update_name(name)

    def fail(self, reason: str) -> None:
        if self._traced is not None:
            from opentelemetry.trace import Status, StatusCode

            self._traced.set_status(Status(StatusCode.ERROR, reason))

    @property
    def traceparent(self) -> str | None:
        return None if self._traced is None else _traceparent(self._traced)


@contextmanager
def span(
    name: str, *, parent: str | None = None, kind: Kind = "internal", **attributes: Value | None
) -> Iterator[Span]:
    """A span around a block, under `parent` (a traceparent) or under the span that is open here.

    An exception that leaves the block marks it failed, by its type alone: a message may hold what a sender wrote.
    """
    if not is_on():
        yield Span()
        return
    from opentelemetry import trace

    context = _context(parent) if parent else None
    options: dict[str, Any] = {"record_exception": False, "set_status_on_exception": False}
    tracer = _tracer()
    with tracer.start_as_current_span(
        name, context, kind=trace.SpanKind[kind.upper()], attributes=_named(attributes), **options
    ) as traced:
        opened = Span(traced)
        try:
            yield opened
        except BaseException as problem:
            opened.fail(type(problem).__name__)
            raise


def record(
    name: str, start: float, end: float, *, parent: str | None, kind: Kind = "internal", **attributes: Value | None
) -> str | None:
    """A span of the past, from `start` to `end` in Unix seconds; its traceparent, for children of its own."""
    if not is_on() or parent is None:
        return None
    from opentelemetry import trace

    traced = _tracer().start_span(
        name, _context(parent), kind=trace.SpanKind[kind.upper()], attributes=_named(attributes),
        start_time=int(start * 1e9)
    )  # fmt: skip
    traced.end(end_time=int(max(start, end) * 1e9))
    return _traceparent(traced)


def current() -> str | None:
    """The open span as a W3C traceparent; None where there is none."""
    if not is_on():
        return None
    from opentelemetry import trace

    traced = trace.get_current_span()
    return _traceparent(traced) if traced.get_span_context().is_valid else None


def trace_id(traceparent: str | None) -> str | None:
    """The part of a traceparent that all spans of a job share."""
    parts = (traceparent or "").split("-")
    return parts[1] if len(parts) == 4 and len(parts[1]) == 32 else None


def flush(seconds: float = 5.0) -> None:
    """Sends what is still held here."""
    if _provider is not None:
        _provider.force_flush(int(seconds * 1000))


def _tracer() -> Any:  # noqa: ANN401
    global _provider
    with _lock:
        if _provider is None:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor

            name = os.environ.get("OTEL_SERVICE_NAME", SERVICE)
            _provider = TracerProvider(resource=Resource.create({"service.name": name, "process.role": _process}))
            _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=EXPORT_MS))
        return _provider.get_tracer("serving")


def _context(traceparent: str) -> Any:  # noqa: ANN401
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": traceparent})


def _traceparent(traced: Any) -> str:  # noqa: ANN401
    context = traced.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def _named(attributes: dict[str, Value | None]) -> dict[str, Value]:
    return {f"dynamictrl.{name}": value for name, value in attributes.items() if value is not None}
