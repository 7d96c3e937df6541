"""The dispatcher's router on Serve: no job waits behind a busy engine while another idles, and seats are known."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator

import pytest
from ray import serve
from ray.serve.handle import DeploymentHandle

from serving.cluster.routing import any_free_replica
from serving.cluster.seats import SEATS

ENGINES, SECONDS = 4, 2.0


class Sleeper:
    """Takes its time, and says who it is."""

    async def work(self, fail: bool) -> int:
        await asyncio.sleep(SECONDS)
        if fail:
            raise ValueError("as it was told")
        return os.getpid()


@pytest.fixture(scope="module")
def handle(local_ray: None) -> Iterator[DeploymentHandle]:
    serve.start(proxy_location="Disabled")
    deployment = serve.deployment(
        num_replicas=ENGINES,
        max_ongoing_requests=1,
        request_router_config=any_free_replica(),
        ray_actor_options={"num_cpus": 0},
    )(Sleeper)
    yield serve.run(deployment.bind(), name="sleepers", route_prefix=None).options(method_name="work")
    serve.shutdown()


def test_as_many_jobs_as_engines_are_done_at_once_and_leave_their_seats(handle: DeploymentHandle):
    answers = [handle.remote(False) for _ in range(ENGINES)]
    workers = {answer.result(timeout_s=60) for answer in answers}
    assert len(workers) == ENGINES
    assert SEATS.count() == ENGINES
    assert all_seats_are_left()


def test_a_job_that_fails_leaves_its_seat_too(handle: DeploymentHandle):
    answer = handle.remote(True)
    with pytest.raises(ValueError, match="as it was told"):
        answer.result(timeout_s=60)
    assert all_seats_are_left()


def all_seats_are_left() -> bool:
    deadline = time.monotonic() + 10
    while SEATS._taken and time.monotonic() < deadline:
        time.sleep(0.05)
    return not SEATS._taken
