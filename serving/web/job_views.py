"""A job as the routes show it: now, at its end, or as a stream of its changes."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, Header, Request, Response
from starlette.concurrency import run_in_threadpool

from serving.backend import Backend
from serving.jobs.store import Video
from serving.jobs.watcher import Watcher
from serving.tenants.tenant import Tenant, tenant_of
from serving.web.answers import VideoObject, poll_after_ms, to_video
from serving.web.event_stream import event_stream
from serving.web.http_errors import ApiError
from serving.web.intake import Sender


def sender_of(
    request: Request,
    idempotency_key: Annotated[str | None, Header()] = None,
    x_stainless_retry_count: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> Sender:
    """What a request's headers say: its key, and whether the SDK sends it once more."""
    is_retry = (x_stainless_retry_count or "0") not in ("", "0")
    return Sender(idempotency_key, is_retry, tenant_of(request.scope), time.time())


def asker_of(request: Request) -> Tenant:
    """The tenant whose request it is: he sees what is his."""
    return tenant_of(request.scope)


Asker = Annotated[Tenant, Depends(asker_of)]
SenderHeaders = Annotated[Sender, Depends(sender_of)]


class JobViews:
    """What a job's client sees of it."""

    def __init__(self, backend: Backend):
        self.backend = backend
        self.watcher = Watcher(backend.store)

    def must_have(self, video_id: str, tenant: Tenant) -> Video:
        video = self.backend.store.get(video_id, tenant.id)
        if video is None:
            raise not_found(video_id)
        return video

    async def shown(self, video: Video, response: Response) -> VideoObject:
        """The wire's form of a job, with the header that tells the SDK when to ask again."""
        return self.with_pace(await run_in_threadpool(to_video, video, self.backend.store), response)

    @staticmethod
    def with_pace(shown: VideoObject, response: Response) -> VideoObject:
        response.headers["openai-poll-after-ms"] = str(poll_after_ms(shown))
        return shown

    async def until_final(self, video: Video, seconds: float) -> Video:
        """The job at its end, or as it is after so many seconds, or as it was when it was deleted."""
        return await self.watcher.until_final(video, seconds)

    def follow(self, video: Video, seen: int | None) -> AsyncIterator[str]:
        """Its changes as they happen; with `seen`, first those beyond that event."""
        return event_stream(self.backend.store, self.watcher, video, seen)


def not_found(video_id: str) -> ApiError:
    return ApiError(404, "video_not_found", f"there is no video {video_id[:60]!r}", "video_id")
