"""Numbers for Prometheus, in its text format. What comes from the store outlives restarts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from serving.backend import Backend


def render(backend: Backend, answered: Counter[tuple[str, int]]) -> str:
    """The page of GET /metrics."""
    return "\n".join([*_jobs(backend), *_requests(answered)]) + "\n"


def _jobs(backend: Backend) -> Iterator[str]:
    yield "# HELP dynamictrl_jobs Jobs in the store by status."
    yield "# TYPE dynamictrl_jobs gauge"
    for status, count in backend.store.counts().items():
        yield f'dynamictrl_jobs{{status="{status.value}"}} {count}'
    yield "# HELP dynamictrl_workers_warm Workers that gave a sign of life in the last seconds."
    yield "# TYPE dynamictrl_workers_warm gauge"
    yield f"dynamictrl_workers_warm {backend.presence.count()}"
    past = backend.store.render_seconds()
    if past:
        yield "# HELP dynamictrl_render_seconds_mean Mean seconds from lease to result over the last 20 clips."
        yield "# TYPE dynamictrl_render_seconds_mean gauge"
        yield f"dynamictrl_render_seconds_mean {sum(past) / len(past):.3f}"


def _requests(answered: Counter[tuple[str, int]]) -> Iterator[str]:
    yield "# HELP dynamictrl_http_requests_total Requests that this replica has answered."
    yield "# TYPE dynamictrl_http_requests_total counter"
    for (method, status), count in sorted(answered.items()):
        yield f'dynamictrl_http_requests_total{{method="{method}",status="{status}"}} {count}'
