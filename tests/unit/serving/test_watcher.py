"""What listeners are told: every change once and in order, also the missed ones; many of them cost as much as one."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest
from sqlalchemy import event

from serving.jobs.database import open_database
from serving.jobs.job import Settings, Status
from serving.jobs.store import JobStore, new_video_id
from serving.jobs.watcher import Watcher

SETTINGS = Settings(
    prompt="p", width=64, height=96, num_frames=9, fps=12.0, resample=False, num_inference_steps=3, guidance_scale=3.0,
    seed=1
)  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(open_database(f"sqlite:///{tmp_path / 'jobs.db'}"))


def add(store: JobStore) -> str:
    settings = {"model": "m", "settings": SETTINGS, "inputs": {"pose_video": "0"}, "content_hash": "c"}
    return store.add(video_id=new_video_id(), **settings)[0].id


def render(store: JobStore, steps: int = 3) -> str:
    taken = store.lease("owner", 60, 3)
    assert taken is not None
    for step in range(1, steps + 1):
        store.report(taken.video.id, taken.token, stage="denoising", progress=step, step=step, steps=steps)
    store.complete(taken.video.id, taken.token, model_version="v", expires_at=9e9)
    return taken.video.id


async def told(watcher: Watcher, video_id: str, after: int | None) -> list[tuple[int, str, int]]:
    heard = []
    async with aclosing(watcher.follow(video_id, after, quiet_s=5)) as sights:
        async for sight in sights:
            assert sight is not None, "five quiet seconds"
            state = ("deleted", 0) if sight.video is None else (sight.video.status.value, sight.video.progress)
            heard.append((sight.version, *state))
    return heard


EVERYTHING = [
    (1, "queued", 0), (2, "in_progress", 0), (3, "in_progress", 1), (4, "in_progress", 2), (5, "in_progress", 3),
    (6, "completed", 100)
]  # fmt: skip


@pytest.mark.parametrize("after", [0, 1, 3, 5])
def test_who_comes_back_is_told_exactly_what_was_missed(store: JobStore, after: int):
    video_id = add(store)
    render(store)
    assert asyncio.run(told(Watcher(store), video_id, after)) == EVERYTHING[after:]


def test_who_comes_new_is_told_what_is_and_then_every_change_once(store: JobStore):
    video_id = add(store)

    async def listen() -> list[list[tuple[int, str, int]]]:
        watcher = Watcher(store, look_s=0.02)
        early = [asyncio.create_task(told(watcher, video_id, None)) for _ in range(3)]
        await asyncio.sleep(0.1)
        working = asyncio.to_thread(render, store, 3)
        late = asyncio.create_task(told(watcher, video_id, 1))
        await working
        return await asyncio.gather(*early, late)

    *early, late = asyncio.run(listen())
    assert early == [EVERYTHING] * 3
    assert late == EVERYTHING[1:]


def test_events_that_are_no_longer_kept_leave_the_job_as_it_is(store: JobStore):
    video_id = add(store)
    render(store)
    store.forget_events(0.0)
    assert asyncio.run(told(Watcher(store), video_id, 2)) == EVERYTHING[5:]


def test_a_deletion_ends_every_stream(store: JobStore):
    video_id = add(store)

    async def listen() -> list[list[tuple[int, str, int]]]:
        watcher = Watcher(store, look_s=0.02)
        tasks = [asyncio.create_task(told(watcher, video_id, None)) for _ in range(2)]
        await asyncio.sleep(0.1)
        store.delete(video_id)
        return await asyncio.gather(*tasks)

    assert asyncio.run(listen()) == [[(1, "queued", 0), (0, "deleted", 0)]] * 2


def test_two_hundred_listeners_ask_the_store_as_often_as_one(store: JobStore):
    ids = [add(store) for _ in range(20)]
    asked = 0

    def count(*_: object) -> None:
        nonlocal asked
        asked += 1

    async def listen() -> int:
        nonlocal asked
        watcher = Watcher(store, look_s=0.02)
        tasks = [asyncio.create_task(told(watcher, video_id, None)) for video_id in ids for _ in range(10)]
        await asyncio.sleep(1.0)
        asked, began = 0, asyncio.get_running_loop().time()
        await asyncio.sleep(1.0)
        looks = (asyncio.get_running_loop().time() - began) / 0.02
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.1)
        assert watcher._task is not None
        assert watcher._task.done(), "nobody listens, nobody looks"
        return asked if asked <= looks + 2 else -asked

    event.listen(store.engine, "before_cursor_execute", count)
    assert asyncio.run(listen()) > 0


def test_whoever_waits_for_the_end_gets_it_or_what_is_there_in_time(store: JobStore):
    video_id = add(store)
    video = store.get(video_id)
    assert video is not None

    async def wait() -> tuple[Status, Status]:
        watcher = Watcher(store, look_s=0.02)
        early = await watcher.until_final(video, 0.3)
        ending = asyncio.create_task(watcher.until_final(video, 20))
        await asyncio.to_thread(render, store)
        return early.status, (await ending).status

    assert asyncio.run(wait()) == (Status.QUEUED, Status.COMPLETED)
