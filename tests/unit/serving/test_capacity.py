"""How many engines a queue deserves, and which of them a job may be sent to."""

from typing import Any

import pytest

from dynamictrl.errors import ConfigError
from serving.cluster.capacity import engines_wanted, from_post, to_post
from serving.cluster.seats import Seats
from serving.cluster.starting import LONGEST_PAUSE_S, pause_before
from serving.config import Scaling, Service
from serving.jobs.workload import Workload, seconds_left

SCALING = Scaling(clear_within_s=60, shrink_margin=0.7)


def wanted(
    queued: int, running: int = 0, *, each: float = 40.0, current: int = 1, least: int = 0, most: int = 8
) -> int:
    work = Workload(queued, running, queued * each, running * each)
    return engines_wanted(work, current, SCALING, least, most)


def test_a_burst_gets_as_many_engines_as_do_it_in_time():
    assert wanted(8) == 6  # 320 s of work in 60 s


def test_long_jobs_get_an_engine_each_and_no_more():
    assert wanted(8, each=1000.0, most=20) == 8


def test_many_short_jobs_share_an_engine():
    assert wanted(20, each=1.0) == 1


def test_no_work_needs_no_engine_and_the_first_job_one():
    assert wanted(0) == 0
    assert wanted(1, each=0.1, current=0) == 1


def test_the_bounds_hold():
    assert wanted(0, least=2) == 2
    assert wanted(50, each=1000.0, most=4) == 4


def test_there_are_never_fewer_engines_than_running_jobs():
    assert wanted(0, 5, each=1.0, current=5) == 5
    # Not even where the limit has been lowered in between: Serve cuts to its limit, and drains.
    assert wanted(0, 5, each=1.0, current=5, most=3) == 5


@pytest.mark.parametrize(("seconds", "engines"), [(125.0, 3), (110.0, 3), (84.5, 3), (83.0, 2), (41.0, 1)])
def test_an_engine_is_given_up_only_where_the_rest_have_room_to_spare(seconds: float, engines: int):
    work = Workload(queued=10, running=0, queued_seconds=seconds)
    assert engines_wanted(work, 3, SCALING, 0, 8) == engines


def test_a_job_that_overstays_its_estimate_still_counts():
    assert seconds_left(40.0, 10.0) == 30.0
    assert seconds_left(40.0, 400.0) == 4.0


def test_what_is_posted_is_what_is_read():
    work = Workload(3, 1, 90.0, 12.5, 1)
    assert from_post(to_post(work, 7)) == (7, work)


def test_a_job_fits_on_each_open_engine_and_a_draining_one_takes_none():
    seats = Seats()
    assert not seats.known
    seats.opened(["a", "b", "c"])
    assert seats.count() == 3
    seats.taken("job 1", "a")
    seats.opened(["b", "c"])  # a drains, with job 1 on it
    assert seats.count() == 3  # job 1 and two more
    seats.freed("job 1")
    assert seats.count() == 2
    seats.closed("b")
    assert seats.count() == 1


def test_an_engine_that_cannot_start_waits_longer_each_time():
    assert [pause_before(attempt) for attempt in range(5)] == [0, 5, 10, 20, 40]
    assert pause_before(60) == LONGEST_PAUSE_S


@pytest.mark.parametrize(
    "change",
    [{"min_engines": 2}, {"min_engines": -1}, {"min_engines": 0, "max_engines": 0}, {"gpus_per_engine": 1.5}],
)
def test_engines_that_cannot_be_are_refused(change: dict[str, Any]):
    with pytest.raises(ConfigError):
        Service(**change)
