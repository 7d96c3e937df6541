"""What GET /readyz says: whether the jobs that are sent will be rendered."""

from __future__ import annotations

from serving.backend import Backend
from serving.jobs.presence import Readiness
from serving.jobs.workload import read_workload


def readiness(backend: Backend) -> Readiness:
    """`ready`, `asleep`, `starting` or `failing`, with reasons."""
    waits = read_workload(backend.store.engine).queued > 0
    return backend.presence.readiness(may_sleep=backend.service.min_engines == 0, jobs_wait=waits)
