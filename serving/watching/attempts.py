"""What is seen of a job at work: its spans in the job's one trace, its times on /metrics, its id on every log line."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from serving.jobs.record import Video
from serving.watching import logs, tracing
from serving.watching.metrics import ATTEMPTS, QUEUE_WAIT, STAGE_SECONDS


def leased(video: Video) -> None:
    """For the dispatcher that has just got the job, which has waited until now."""
    now = time.time()
    if video.attempts <= 1:
        QUEUE_WAIT.labels(video.settings.quality).observe(max(0.0, now - video.created_at))
        tracing.record(
            "queue", video.created_at, now, parent=video.traceparent, job=video.id, tenant=video.tenant,
            quality=video.settings.quality
        )  # fmt: skip


@contextmanager
def dispatched(video: Video) -> Iterator[tracing.Span]:
    """Around one attempt, in the dispatcher: until a worker has said what came of it, or is lost."""
    about = {"job": video.id, "tenant": video.tenant, "trace_id": tracing.trace_id(video.traceparent)}
    with (
        logs.bind(**about),
        tracing.span("attempt", parent=video.traceparent, job=video.id, attempt=video.attempts) as span,
    ):
        yield span


def ended(outcome: str, span: tracing.Span) -> None:
    """How an attempt ended, in one of few words: completed, failed, cancelled, lost, put off, worker lost."""
    ATTEMPTS.labels(outcome).inc()
    span.set(outcome=outcome)
    if outcome in ("failed", "lost", "worker lost"):
        span.fail(outcome)


class Rendering:
    """One job in a worker's hands."""

    def __init__(self, video: Video):
        self._video = video
        self._at = time.time()

    def stages(self, seconds: Mapping[str, float]) -> None:
        """The engine's stages, one after the other, that have just ended."""
        at = time.time() - sum(seconds.values())
        for stage, length in seconds.items():
            STAGE_SECONDS.labels(stage, self._video.settings.quality).observe(length)
            # Under the span that is open here: the worker's.
            tracing.record(stage, at, at + length, parent=tracing.current(), job=self._video.id)
            at += length

    @contextmanager
    def stage(self, stage: str) -> Iterator[None]:
        """Around a stage of the worker's own: write, sign, commit."""
        began = time.perf_counter()
        with tracing.span(stage, job=self._video.id):
            yield
        STAGE_SECONDS.labels(stage, self._video.settings.quality).observe(time.perf_counter() - began)


@contextmanager
def rendering(video: Video, token: int) -> Iterator[Rendering]:
    """Around the whole of a worker's attempt."""
    about = {"job": video.id, "tenant": video.tenant, "trace_id": tracing.trace_id(video.traceparent)}
    settings = video.settings
    with (
        logs.bind(**about),
        tracing.span(
            "render", parent=video.traceparent, job=video.id, tenant=video.tenant, token=token, size=settings.size,
            frames=settings.num_frames, steps=settings.num_inference_steps, quality=settings.quality
        ),
    ):  # fmt: skip
        yield Rendering(video)
