"""One look at the store for everybody who waits in this process: a thousand listeners cost as many queries as one.

A listener is told every change of its job in order: those that it has missed from the events that are kept, and what
follows as it happens. Changes are found by the jobs' version numbers and not by the time or place of an event, because
transactions do not become visible in the order in which they began.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from serving.jobs.record import Event, Video
from serving.jobs.store import JobStore

logger = logging.getLogger(__name__)

LOOK_S = 0.1
"""Seconds between two looks at the jobs that anybody listens to."""
AWAY_S = 1.0
"""Seconds between two looks while the database is away."""


@dataclass(frozen=True)
class Sight:
    """A job as it was from one change on; without a video it has been deleted."""

    version: int
    video: Video | None


class Watcher:
    """Belongs to one event loop."""

    def __init__(self, store: JobStore, *, look_s: float = LOOK_S):
        self._store = store
        self._look_s = look_s
        self._listeners: dict[str, set[asyncio.Queue[list[Sight]]]] = {}
        self._known: dict[str, int] = {}
        self._task: asyncio.Task[None] | None = None

    async def follow(self, video_id: str, after: int | None, *, quiet_s: float) -> AsyncGenerator[Sight | None]:
        """Each change beyond version `after`, or from now on with the job as it is; None after each quiet while.

        Ends with the last change of a job, or with its deletion.
        """
        queue: asyncio.Queue[list[Sight]] = asyncio.Queue()
        self._listeners.setdefault(video_id, set()).add(queue)
        try:
            waiting = await asyncio.to_thread(self._missed, video_id, after)
            # Only now: what happens from here on is found by the looks, what happened before has just been read.
            seen = waiting[-1].version if waiting else (after or 0)
            self._known[video_id] = min(seen, self._known.get(video_id, seen))
            self._look_on()
            for sight in waiting:
                yield sight
                if sight.video is None or sight.video.status.is_final:
                    return
            while True:
                try:
                    sights = await asyncio.wait_for(queue.get(), quiet_s)
                except TimeoutError:
                    yield None
                    continue
                for sight in sights:
                    if sight.video is not None and sight.version <= seen:
                        continue
                    seen = sight.version
                    yield sight
                    if sight.video is None or sight.video.status.is_final:
                        return
        finally:
            self._leave(video_id, queue)

    async def until_final(self, video: Video, seconds: float) -> Video:
        """The job at its end, or as it is after so many seconds, or as it was when it was deleted."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        if video.status.is_final or seconds <= 0:
            return video
        async with aclosing(self.follow(video.id, video.version, quiet_s=min(0.2, seconds))) as sights:
            async for sight in sights:
                if sight is not None and sight.video is None:
                    break
                video = sight.video if sight is not None and sight.video is not None else video
                if video.status.is_final or loop.time() >= deadline:
                    break
        return video

    def _missed(self, video_id: str, after: int | None) -> list[Sight]:
        video = self._store.get(video_id)
        if video is None:
            return [Sight(0, None)]
        if after is None:
            return [Sight(video.version, video)]
        return sights_of(video, self._store.events(video_id, after), after)

    def _leave(self, video_id: str, queue: asyncio.Queue[Any]) -> None:
        others = self._listeners[video_id]
        others.discard(queue)
        if not others:
            del self._listeners[video_id]
            self._known.pop(video_id, None)

    def _look_on(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._look(), name="watch")

    async def _look(self) -> None:
        while self._known:
            try:
                told = await asyncio.to_thread(self._changes, dict(self._known))
            except Exception as problem:
                logger.warning("the job store could not be asked (%s); listeners wait", type(problem).__name__)
                await asyncio.sleep(AWAY_S)
                continue
            for video_id, sights in told.items():
                if video_id in self._known:
                    self._known[video_id] = max(self._known[video_id], sights[-1].version)
                for queue in self._listeners.get(video_id, ()):
                    queue.put_nowait(sights)
            await asyncio.sleep(self._look_s)

    def _changes(self, known: dict[str, int]) -> dict[str, list[Sight]]:
        versions = self._store.versions(known)
        told = {video_id: [Sight(0, None)] for video_id in known if video_id not in versions}
        changed = [video_id for video_id, version in versions.items() if version > known[video_id]]
        if changed:
            videos = self._store.many(changed)
            events = self._store.events_beyond({video_id: known[video_id] for video_id in videos})
            for video_id, video in videos.items():
                told[video_id] = sights_of(video, events.get(video_id, []), known[video_id])
        return told


def sights_of(video: Video, events: list[Event], after: int) -> list[Sight]:
    """A job as it was at each of its changes, the last one as it is: also where that one's event is no longer kept."""
    before = [event for event in events if event.version < video.version]
    sights = [Sight(event.version, _as_it_was(video, event)) for event in before]
    return [*sights, Sight(video.version, video)] if video.version > after else sights


def _as_it_was(video: Video, event: Event) -> Video:
    return replace(
        video, status=event.status, stage=event.stage, progress=event.progress, step=event.step, steps=event.steps,
        version=event.version, completed_at=None, expires_at=None, model_version=None, error_code=None,
        error_message=None, result_token=None
    )  # fmt: skip
