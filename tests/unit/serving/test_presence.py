"""What the workers table says of who is warm, who starts, and why not."""

from pathlib import Path
from typing import Any

import pytest

from serving.jobs.database import open_database
from serving.jobs.idempotency import LOCAL
from serving.jobs.job import Settings
from serving.jobs.presence import LOADING_SILENT_S, SILENT_S, Presence, ServedModel
from serving.jobs.store import JobStore, new_video_id
from serving.jobs.workload import GUESS_S, read_workload
from tests.unit.serving.conftest import Clock

MODEL = ServedModel("dynamictrl", "1", mini=True)


@pytest.fixture
def presence(tmp_path: Path, clock: Clock) -> Presence:
    return Presence(open_database(f"sqlite:///{tmp_path / 'jobs.db'}"), clock=clock)


def status(presence: Presence, *, may_sleep: bool = False, jobs_wait: bool = False) -> tuple[str, tuple[str, ...]]:
    state = presence.readiness(may_sleep=may_sleep, jobs_wait=jobs_wait)
    return state.status, state.why


def test_a_service_starts_then_is_ready(presence: Presence):
    assert status(presence) == ("starting", ())
    presence.starting("s")
    assert status(presence) == ("starting", ())
    assert (presence.count(), presence.models()) == (0, [])
    presence.leave("s")
    presence.beat("w", MODEL)
    assert status(presence) == ("ready", ())
    assert (presence.count(), presence.models()) == (1, [MODEL])


def test_an_idle_service_sleeps_until_a_job_waits(presence: Presence):
    assert status(presence, may_sleep=True) == ("asleep", ())
    assert status(presence, may_sleep=True, jobs_wait=True) == ("starting", ())


def test_a_service_that_sleeps_still_says_what_it_serves(presence: Presence, clock: Clock):
    presence.beat("w", MODEL)
    clock.now += 1
    presence.leave("w")
    clock.now += 1000
    assert (presence.count(), presence.models()) == (0, [MODEL])
    assert status(presence, may_sleep=True) == ("asleep", ())
    presence.beat("v", ServedModel("dynamictrl", "2", mini=True))
    assert [model.version for model in presence.models()] == ["2"]


def test_a_model_that_cannot_be_loaded_is_said_until_it_can(presence: Presence, clock: Clock):
    presence.starting("s", why="weights_missing")
    clock.now += 5
    presence.starting("s")
    assert status(presence, may_sleep=True) == ("failing", ("weights_missing",))
    presence.beat("w", MODEL)
    # The others serve; that one cannot start is said all the same.
    assert status(presence) == ("ready", ("weights_missing",))


def test_a_worker_that_dies_while_loading_is_counted_for_some_minutes(presence: Presence, clock: Clock):
    presence.starting("s")
    clock.now += LOADING_SILENT_S - 1
    assert (presence.crashed_starts(), status(presence)) == (0, ("starting", ()))
    clock.now += 2
    assert presence.crashed_starts() == 1
    assert status(presence) == ("failing", ("died_while_loading",))
    clock.now += 70 * SILENT_S
    presence.beat("w", MODEL)
    assert presence.crashed_starts() == 0


def test_a_wait_counts_on_warm_engines_alone(presence: Presence, clock: Clock):
    store = JobStore(presence.engine, clock=clock)
    for _ in range(3):
        add(store, 40.0)
    presence.beat("w", MODEL, ServedModel("beside", "1", mini=True))
    presence.starting("s")
    assert store.queue.outlook(LOCAL, clock.now, 2**62).wait_s == 3 * 40.0


def add(store: JobStore, estimate: float | None, **more: Any) -> None:
    settings = Settings(
        prompt="", width=64, height=96, num_frames=5, fps=12.0, resample=False, num_inference_steps=2,
        guidance_scale=1.0, seed=0
    )  # fmt: skip
    store.add(
        video_id=new_video_id(), model="m", settings=settings, inputs={}, content_hash="h",
        gpu_seconds_estimate=estimate, **more
    )  # fmt: skip


def test_the_work_at_hand_is_counted_in_seconds(presence: Presence, clock: Clock):
    store = JobStore(presence.engine, clock=clock)
    assert read_workload(presence.engine, clock=clock).queued_seconds == 0
    add(store, None)
    assert read_workload(presence.engine, clock=clock).queued_seconds == GUESS_S
    for estimate in (40.0, 20.0):
        add(store, estimate)
    assert read_workload(presence.engine, clock=clock).queued_seconds == 40 + 20 + 30
    lease = store.lease("me", 60, 3)
    assert lease is not None
    clock.now += 10
    work = read_workload(presence.engine, "me", clock=clock)
    assert (work.queued, work.running, work.running_elsewhere) == (2, 1, 0)
    assert read_workload(presence.engine, "another", clock=clock).running_elsewhere == 1
    assert work.running_seconds == pytest.approx((lease.video.gpu_seconds_estimate or 30) - 10)


def test_jobs_that_may_not_run_now_want_no_engine(presence: Presence, clock: Clock):
    def cap(tenant: str) -> int | None:
        return 2 if tenant == "capped" else None

    store = JobStore(presence.engine, clock=clock, cap=cap)
    for _ in range(10):
        add(store, 40.0, tenant="capped")
    work = read_workload(presence.engine, clock=clock, cap=cap)
    assert (work.queued, work.queued_seconds) == (2, 80.0)
    assert store.lease("me", 60, 3)
    assert store.lease("me", 60, 3)
    work = read_workload(presence.engine, clock=clock, cap=cap)
    assert (work.queued, work.queued_seconds, work.running) == (0, 0.0, 2)
    add(store, 40.0, not_before=clock.now + 5)
    assert read_workload(presence.engine, clock=clock, cap=cap).queued == 0
    clock.now += 5
    assert read_workload(presence.engine, clock=clock, cap=cap).queued == 1
