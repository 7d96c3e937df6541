"""The routes of /v1/videos."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import FileResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool

from serving.backend import Backend
from serving.blobs import RESULTS
from serving.http_body import read_body, read_json
from serving.http_errors import ApiError
from serving.intake import Intake, Sender
from serving.jobs import MEDIA, Status
from serving.store import Video
from serving.wire import (
    Preflight,
    RemixRequest,
    VideoDeleted,
    VideoList,
    VideoObject,
    VideoRequest,
    poll_after_ms,
    to_video,
)

LOOK_S = 0.1
"""Seconds between two looks at a job whose client waits or listens."""
COMMENT_S = 15.0
"""Seconds after which a silent event stream says something, so that no proxy cuts it."""
CANCEL_S = 5.0
"""Seconds that POST cancel waits for the worker to have stopped, so that its answer is the truth."""


def _schema() -> dict[str, object]:
    """The body of POST /v1/videos for the OpenAPI file: it is read by hand, so FastAPI cannot know it."""
    schema = VideoRequest.model_json_schema()
    reference = {
        "type": "object",
        "properties": {"file_id": {"type": "string"}, "url": {"type": "string", "description": "A data: URL."}},
    }
    binary = {"type": "string", "format": "binary"}
    in_json = {**schema, "properties": {**schema["properties"], **dict.fromkeys(MEDIA, reference)}}
    part = {"oneOf": [binary, reference]}
    in_form = {**schema, "properties": {**schema["properties"], **dict.fromkeys(MEDIA, part)}}
    return {
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": {"schema": in_form}, "application/json": {"schema": in_json}},
        }
    }


def video_routes(backend: Backend, intake: Intake) -> APIRouter:
    """Every route under /v1/videos."""
    router = APIRouter(prefix="/v1/videos", tags=["videos"])
    _add_creation(router, backend, intake)
    _add_reading(router, backend)
    _add_changing(router, backend, intake)
    return router


def _add_creation(router: APIRouter, backend: Backend, intake: Intake) -> None:
    @router.post("", openapi_extra=_schema())
    async def create(
        request: Request,
        response: Response,
        idempotency_key: Annotated[str | None, Header()] = None,
        x_stainless_retry_count: Annotated[str | None, Header(include_in_schema=False)] = None,
    ) -> VideoObject:
        """Starts a job; it is stored before this answers."""
        body = await read_body(request, backend.service.limits)
        sender = Sender(idempotency_key, is_retry=(x_stainless_retry_count or "0") not in ("", "0"))
        video, wait = await run_in_threadpool(intake.submit, body, sender)
        return await _shown(backend, await _until_final(backend, video, wait), response)

    @router.post("/preflight", openapi_extra=_schema())
    async def preflight(request: Request) -> Preflight:
        """What a job would come to: size, frames, persons in the image. Renders and keeps nothing."""
        body = await read_body(request, backend.service.limits)
        looked = await run_in_threadpool(intake.preflight, body)
        past = await run_in_threadpool(backend.store.render_seconds)
        return Preflight(
            size=looked.settings.size,
            num_frames=looked.settings.num_frames,
            fps=looked.settings.fps,
            seconds=looked.settings.seconds,
            frames_available=looked.facts.available(looked.resampled_to),
            persons_in_image=looked.persons,
            eta_s=round(sum(past) / len(past), 1) if past else None,
        )


def _add_reading(router: APIRouter, backend: Backend) -> None:
    @router.get("")
    def page(
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
    ) -> VideoList:
        """Jobs, newest first unless `order` is asc; `after` is the last id of the page before."""
        try:
            found, more = backend.store.page(after=after, limit=limit, descending=order == "desc")
        except KeyError as problem:
            raise ApiError(400, "unknown_cursor", f"after is {after!r}; there is no such video", "after") from problem
        data = [to_video(video, backend.store) for video in found]
        ends = (data[0].id, data[-1].id) if data else (None, None)
        return VideoList(data=data, first_id=ends[0], last_id=ends[1], has_more=more)

    @router.get("/{video_id}")
    async def retrieve(video_id: str, response: Response) -> VideoObject:
        """One job as it is now."""
        return await _shown(backend, await run_in_threadpool(_must_have, backend, video_id), response)

    @router.get("/{video_id}/content", response_class=FileResponse)
    def content(video_id: str, variant: Literal["video", "thumbnail", "spritesheet"] = "video") -> FileResponse:
        """The clip, its thumbnail or its sprite sheet; honours HTTP ranges."""
        video = _must_have(backend, video_id)
        if video.status is not Status.COMPLETED:
            reason = f"{video_id} is {video.status.value}; it has content once it is completed"
            raise ApiError(400, "video_not_ready", reason, "video_id")
        path = backend.blobs.result(video_id, video.result_token or 0, variant)
        if video.result_token is None or not path.is_file():
            raise ApiError(404, "video_expired", f"the content of {video_id} has expired", "video_id")
        name, kind = RESULTS[variant]
        return FileResponse(path, media_type=kind, filename=f"{video_id}-{name}", content_disposition_type="inline")

    @router.get("/{video_id}/events", response_class=StreamingResponse)
    async def events(video_id: str, last_event_id: Annotated[str | None, Header()] = None) -> Response:
        """Server-sent events: the job as it is, at each change; `Last-Event-ID` resumes."""
        video = await run_in_threadpool(_must_have, backend, video_id)
        seen = int(last_event_id) if last_event_id and last_event_id.isdigit() else 0
        if video.status.is_final and video.version <= seen:
            return Response(status_code=204)  # tells an EventSource that nothing will follow
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(_follow(backend, video_id, seen), media_type="text/event-stream", headers=headers)


def _add_changing(router: APIRouter, backend: Backend, intake: Intake) -> None:
    @router.delete("/{video_id}")
    def delete(video_id: str) -> VideoDeleted:
        """Forgets a job and removes its bytes; a running one stops."""
        _must_have(backend, video_id)
        backend.store.delete(video_id)
        backend.blobs.drop_video(video_id)
        return VideoDeleted(id=video_id)

    @router.post("/{video_id}/cancel")
    async def cancel(video_id: str, response: Response) -> VideoObject:
        """Stops a job within one denoising step. The answer says `cancelled` only if it is."""
        await run_in_threadpool(_must_have, backend, video_id)
        video = await run_in_threadpool(backend.store.cancel, video_id)
        if video is None:
            raise _not_found(video_id)
        return await _shown(backend, await _until_final(backend, video, CANCEL_S), response)

    @router.post("/{video_id}/remix", openapi_extra=_remix_schema())
    async def remix(video_id: str, request: Request, response: Response) -> VideoObject:
        """The same job with a new prompt: same media, settings and seed."""
        await run_in_threadpool(_must_have, backend, video_id)
        wish = RemixRequest.model_validate(await read_json(request))
        return await _shown(backend, await run_in_threadpool(intake.remix, video_id, wish.prompt), response)


def _remix_schema() -> dict[str, object]:
    schema = RemixRequest.model_json_schema()
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


async def _shown(backend: Backend, video: Video, response: Response) -> VideoObject:
    shown = await run_in_threadpool(to_video, video, backend.store)
    response.headers["openai-poll-after-ms"] = str(poll_after_ms(shown))
    return shown


async def _until_final(backend: Backend, video: Video, seconds: float) -> Video:
    """The job at its end, or as it is after so many seconds, or as it was when it was deleted."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while not video.status.is_final and loop.time() < deadline:
        await asyncio.sleep(LOOK_S)
        now = await run_in_threadpool(backend.store.get, video.id)
        if now is None:
            break
        video = now
    return video


async def _follow(backend: Backend, video_id: str, seen: int) -> AsyncIterator[str]:
    """One event a change; its id is the job's version, so a client that comes back misses nothing that still is."""
    loop = asyncio.get_running_loop()
    spoke = loop.time()
    while True:
        video = await run_in_threadpool(backend.store.get, video_id)
        if video is None:
            yield f"event: video.deleted\ndata: {json.dumps({'id': video_id})}\n\n"
            return
        if video.version > seen:
            seen, spoke = video.version, loop.time()
            shown = await run_in_threadpool(to_video, video, backend.store)
            yield f"id: {seen}\nevent: video.{video.status.value}\ndata: {shown.model_dump_json()}\n\n"
        if video.status.is_final:
            return
        if loop.time() - spoke > COMMENT_S:
            spoke = loop.time()
            yield ": still here\n\n"
        await asyncio.sleep(LOOK_S)


def _must_have(backend: Backend, video_id: str) -> Video:
    video = backend.store.get(video_id)
    if video is None:
        raise _not_found(video_id)
    return video


def _not_found(video_id: str) -> ApiError:
    return ApiError(404, "video_not_found", f"there is no video {video_id[:60]!r}", "video_id")
