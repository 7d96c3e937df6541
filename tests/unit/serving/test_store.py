"""Durable jobs: leases, fencing, restarts, idempotency. Every test on SQLite and on a real PostgreSQL; several stores
as several processes would."""

import threading

import pytest

from dynamictrl.errors import ConfigError
from serving.jobs.database import open_database
from serving.jobs.idempotency import IdempotencyError
from serving.jobs.job import Settings, Status
from serving.jobs.presence import Presence, ServedModel
from serving.jobs.store import JobStore, Verdict, Video, new_video_id
from tests.unit.serving.conftest import Clock

SETTINGS = Settings(
    prompt="p", width=64, height=96, num_frames=9, fps=12.0, resample=False, num_inference_steps=3, guidance_scale=3.0,
    seed=1
)  # fmt: skip
LEASE_S = 10.0


def add(store: JobStore, content: str = "c", key: str | None = None) -> Video:
    video, _ = store.add(
        video_id=new_video_id(), model="m", settings=SETTINGS, inputs={"input_reference": "00"}, content_hash=content,
        idempotency_key=key
    )  # fmt: skip
    return video


def lease(store: JobStore, owner: str = "a", attempts: int = 3):
    taken = store.lease(owner, LEASE_S, attempts)
    assert taken is not None
    return taken


def test_a_job_outlives_the_process_that_took_it(store: JobStore, url: str):
    video = add(store)
    again = JobStore(open_database(url)).get(video.id)
    assert again is not None
    assert (again.status, again.settings, again.inputs) == (Status.QUEUED, SETTINGS, {"input_reference": "00"})


def test_jobs_are_leased_in_order_and_each_once(store: JobStore):
    first, second = add(store), add(store)
    assert [lease(store).video.id, lease(store).video.id] == [first.id, second.id]
    assert store.lease("a", LEASE_S, 3) is None


def test_of_many_at_once_one_gets_the_job(store: JobStore, url: str):
    add(store)
    taken, gate = [], threading.Barrier(8)

    def take(index: int):
        own = JobStore(open_database(url), clock=store.clock)
        gate.wait()
        taken.append(own.lease(f"owner{index}", LEASE_S, 3))

    threads = [threading.Thread(target=take, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(one is not None for one in taken) == 1


def test_a_silent_worker_loses_its_job_and_cannot_write_any_more(store: JobStore, clock: Clock):
    add(store)
    dead = lease(store, "dead")
    clock.now += LEASE_S + 1
    heir = lease(store, "heir")
    assert (heir.video.id, heir.token) == (dead.video.id, dead.token + 1)
    assert store.report(dead.video.id, dead.token, stage="denoising", progress=99) is Verdict.LOST
    assert not store.complete(dead.video.id, dead.token, model_version="v", expires_at=2000.0)
    assert not store.fail(dead.video.id, dead.token, code="x", message="x")
    assert store.complete(heir.video.id, heir.token, model_version="v", expires_at=2000.0)
    done = store.get(heir.video.id)
    assert done is not None
    assert (done.status, done.result_token, done.attempts) == (Status.COMPLETED, heir.token, 2)


def test_a_heartbeat_keeps_the_job(store: JobStore, clock: Clock):
    add(store)
    mine = lease(store)
    for _ in range(5):
        clock.now += LEASE_S - 1
        assert store.renew(mine.video.id, mine.token, LEASE_S)
    assert store.lease("thief", LEASE_S, 3) is None


def test_a_job_that_kills_its_workers_ends_after_so_many(store: JobStore, clock: Clock):
    video = add(store)
    for _ in range(2):
        lease(store, attempts=2)
        clock.now += LEASE_S + 1
    assert store.lease("a", LEASE_S, 2) is None
    dead = store.get(video.id)
    assert dead is not None
    assert (dead.status, dead.error_code) == (Status.FAILED, "too_many_attempts")


def test_a_drained_job_goes_back_without_being_counted(store: JobStore):
    add(store)
    first = lease(store)
    assert store.release(first.video.id, first.token, refund=True)
    second = lease(store)
    assert (second.video.attempts, second.token) == (1, first.token + 1)


def test_a_queued_job_is_cancelled_at_once_and_a_running_one_when_its_worker_says_so(store: JobStore):
    waiting, running = add(store), add(store)
    assert store.cancel(waiting.id).status is Status.CANCELLED  # type: ignore[union-attr]
    mine = lease(store)
    assert mine.video.id == running.id
    assert store.cancel(running.id).status is Status.IN_PROGRESS  # type: ignore[union-attr]
    assert store.verdict(running.id, mine.token) is Verdict.CANCEL
    assert store.cancelled(running.id, mine.token)
    assert store.get(running.id).status is Status.CANCELLED  # type: ignore[union-attr]


def test_a_cancelled_job_whose_worker_died_is_not_rendered_again(store: JobStore, clock: Clock):
    video = add(store)
    lease(store)
    store.cancel(video.id)
    clock.now += LEASE_S + 1
    assert store.lease("b", LEASE_S, 3) is None
    assert store.get(video.id).status is Status.CANCELLED  # type: ignore[union-attr]


def test_a_deleted_job_is_lost_to_its_worker(store: JobStore):
    video = add(store)
    mine = lease(store)
    assert store.delete(video.id)
    assert not store.delete(video.id)
    assert store.verdict(video.id, mine.token) is Verdict.LOST
    assert not store.complete(video.id, mine.token, model_version="v", expires_at=0.0)


def test_a_key_stands_for_one_request(store: JobStore):
    first = add(store, content="same", key="k")
    second, is_new = store.add(
        video_id=new_video_id(), model="m", settings=SETTINGS, inputs={}, content_hash="same", idempotency_key="k"
    )
    assert (second.id, is_new) == (first.id, False)
    with pytest.raises(IdempotencyError):
        add(store, content="other", key="k")


def test_an_automatic_retry_finds_the_job_only_while_it_is_recent(store: JobStore, clock: Clock):
    video = add(store, content="again")
    found = store.find_recent("again", 600)
    assert found is not None
    assert found.id == video.id
    clock.now += 601
    assert store.find_recent("again", 600) is None


def test_pages_follow_on_each_other_both_ways(store: JobStore):
    ids = [add(store).id for _ in range(5)]
    first, more = store.page(after=None, limit=2, descending=False)
    second, _ = store.page(after=first[-1].id, limit=2, descending=False)
    last, end = store.page(after=second[-1].id, limit=2, descending=False)
    assert [v.id for v in [*first, *second, *last]] == ids
    assert (more, end) == (True, False)
    assert [v.id for v in store.page(after=None, limit=5, descending=True)[0]] == ids[::-1]
    with pytest.raises(KeyError):
        store.page(after="video_nobody", limit=2, descending=False)


def test_every_change_is_a_new_version_but_a_heartbeat_is_none(store: JobStore):
    add(store)
    mine = lease(store)
    store.renew(mine.video.id, mine.token, LEASE_S)
    assert store.get(mine.video.id).version == mine.video.version  # type: ignore[union-attr]
    store.report(mine.video.id, mine.token, stage="denoising", progress=50)
    assert store.get(mine.video.id).version == mine.video.version + 1  # type: ignore[union-attr]


def test_the_queue_position_counts_who_is_before(store: JobStore):
    videos = [add(store) for _ in range(3)]
    assert [store.queue_position(v) for v in videos] == [1, 2, 3]
    mine = lease(store)
    assert store.queue_position(mine.video) is None
    assert store.queue_position(videos[2]) == 2


def test_a_database_that_cannot_be_opened_is_a_config_error_without_the_password():
    with pytest.raises(ConfigError) as refused:
        open_database("postgresql+nodriver://me:secret@nowhere/x")
    assert "secret" not in str(refused.value)


def test_a_worker_counts_while_it_gives_signs_of_life(store: JobStore, clock: Clock):
    presence = Presence(store.engine, clock=clock)
    presence.beat("w1", ServedModel("m", "1", mini=True))
    presence.beat("w2", ServedModel("m", "1", mini=True))
    assert presence.models() == [ServedModel("m", "1", mini=True)]
    assert presence.count() == 2
    presence.leave("w2")
    clock.now += 11
    assert (presence.count(), presence.models()) == (0, [ServedModel("m", "1", mini=True)])
