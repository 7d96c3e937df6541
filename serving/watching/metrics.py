"""Every number for Prometheus, with its labels. GET /metrics of any ingress replica shows all of them.

What comes from the store is read there and the same from every replica, restarts or not. What a process counts itself
is published to the store every few seconds (`processes.py`), and shown with a label `process`: so the one replica that
a scrape happens to reach shows what all of them, the dispatcher and the workers have counted. Sum over `process`.

| metric | kind | labels | meaning |
|---|---|---|---|
| `jobs` | gauge | status | jobs in the store |
| `jobs_queued` | gauge | model, quality | jobs that wait |
| `jobs_running` | gauge | model, quality | jobs that a worker has |
| `queue_oldest_age_seconds` | gauge | model, quality | age of the job that has waited longest |
| `running_oldest_age_seconds` | gauge | | time since the oldest running attempt began |
| `leases_overdue` | gauge | | running jobs whose lease has run out and that nobody has taken up yet |
| `jobs_retried` | gauge | | unfinished jobs that have lost a worker |
| `jobs_ended_total` | counter | model, quality, outcome | ended jobs since the store was made |
| `gpu_seconds_total` | counter | tenant | GPU seconds of ended jobs since the store was made |
| `gpu_cost_total` | counter | tenant | the same at `gpu_hour_price`, in its currency |
| `gpu_budget_used_ratio` | gauge | tenant | used share of the month's GPU seconds, where a tenant has a budget |
| `stored_bytes` | gauge | tenant | bytes of files, inputs and clips |
| `workers_warm` | gauge | | workers that gave a sign of life in the last seconds |
| `webhooks_pending` | gauge | | events that still have to be delivered |
| `webhooks_dead` | gauge | | events that nobody took for a day |
| `webhook_oldest_pending_age_seconds` | gauge | | age of the oldest of the pending |
| `store_up` | gauge | | 1 where the job store answers; 0 hides everything above |
| `processes` | gauge | role | processes that published lately |
| `http_requests_total` | counter | method, route, status, process | answered requests |
| `http_request_seconds` | histogram | method, route, process | time to the first byte of an answer |
| `queue_wait_seconds` | histogram | quality, process | from a job's arrival to its lease |
| `stage_seconds` | histogram | stage, quality, process | time of each stage of rendering |
| `attempts_total` | counter | outcome, process | attempts of workers: completed, failed, cancelled, lost, released |
| `leases_expired_total` | counter | process | jobs taken up again after their worker or dispatcher fell silent |
| `cache_lookups_total` | counter | cache, result, process | hits and misses of the engine's caches |
| `webhook_tries_total` | counter | result, process | deliveries: delivered, refused, unreachable |
| `media_opened_total` | counter | question, outcome, process | files opened: `ok`, or the code of the refusal |
| `media_seconds` | histogram | question, process | time that opening a file took |
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

PREFIX = "dynamictrl_"
PROCESS = CollectorRegistry()
"""What this process counts itself."""

_HTTP_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
_JOB_BUCKETS = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1800.0, 3600.0)


def _counter(name: str, help_: str, *labels: str) -> Counter:
    return Counter(PREFIX + name, help_, labels, registry=PROCESS)


def _histogram(name: str, help_: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
    return Histogram(PREFIX + name, help_, labels, buckets=buckets, registry=PROCESS)


HTTP_REQUESTS = _counter("http_requests", "Answered requests.", "method", "route", "status")
HTTP_SECONDS = _histogram("http_request_seconds", "Time to an answer's first byte.", _HTTP_BUCKETS, "method", "route")
QUEUE_WAIT = _histogram("queue_wait_seconds", "From a job's arrival to its lease.", _JOB_BUCKETS, "quality")
STAGE_SECONDS = _histogram("stage_seconds", "Time of each stage of rendering.", _JOB_BUCKETS, "stage", "quality")
ATTEMPTS = _counter("attempts", "Attempts of workers by how they ended.", "outcome")
LEASES_EXPIRED = _counter("leases_expired", "Jobs taken up again after their worker or dispatcher fell silent.")
CACHE_LOOKUPS = _counter("cache_lookups", "Hits and misses of the engine's caches.", "cache", "result")
MEDIA_OPENED = _counter("media_opened", "Strangers' files opened, by what came of it.", "question", "outcome")
MEDIA_SECONDS = _histogram("media_seconds", "Time that opening a file took.", _HTTP_BUCKETS, "question")
WEBHOOK_TRIES = _counter("webhook_tries", "Deliveries of events by how they ended.", "result")


def cache_looked_up(cache: str, *, hit: bool) -> None:
    """For the engine's caches: `cache` is one of a few names, such as pose_latents or prompts."""
    CACHE_LOOKUPS.labels(cache, "hit" if hit else "miss").inc()
