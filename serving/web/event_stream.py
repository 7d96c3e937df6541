"""A job's changes as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing

from starlette.concurrency import run_in_threadpool

from serving.jobs.job import Status
from serving.jobs.record import Video
from serving.jobs.store import JobStore
from serving.jobs.watcher import Watcher
from serving.web.answers import VideoObject, to_video

QUIET_S = 2.0
"""Seconds after which a waiting job's place and ETA are looked at again."""
COMMENT_S = 15.0
"""Seconds after which a silent event stream says something, so that no proxy cuts it."""


async def event_stream(store: JobStore, watcher: Watcher, video: Video, seen: int | None) -> AsyncIterator[str]:
    """The job as it is and at each change; with `seen`, first of all each change beyond that event.

    An event's id is the job's version that the change made. News of its place in the queue has no id: it is no change.
    """
    loop = asyncio.get_running_loop()
    spoke, last = loop.time(), None
    async with aclosing(watcher.follow(video.id, seen, quiet_s=QUIET_S)) as sights:
        async for sight in sights:
            if sight is None:
                moved = await _moved(store, video, last)
                if moved is not None:
                    spoke, last = loop.time(), moved
                    yield f"event: video.queued\ndata: {moved.model_dump_json()}\n\n"
                elif loop.time() - spoke > COMMENT_S:
                    spoke = loop.time()
                    yield ": still here\n\n"
                continue
            if sight.video is None:
                yield f"event: video.deleted\ndata: {json.dumps({'id': video.id})}\n\n"
                return
            video = sight.video
            shown = await run_in_threadpool(to_video, video, store)
            spoke, last = loop.time(), shown
            yield f"id: {sight.version}\nevent: video.{video.status.value}\ndata: {shown.model_dump_json()}\n\n"


async def _moved(store: JobStore, video: Video, last: VideoObject | None) -> VideoObject | None:
    if video.status is not Status.QUEUED or last is None:
        return None
    shown = await run_in_threadpool(to_video, video, store)
    return shown if (shown.queue_position, shown.eta_s) != (last.queue_position, last.eta_s) else None
