"""The routes of /v1/videos."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from serving.backend import Backend
from serving.jobs.job import Status
from serving.jobs.store import Video
from serving.results.blobs import RESULTS
from serving.web import body_schema
from serving.web.answers import Preflight, VideoDeleted, VideoList, VideoObject, WebhookReplay, to_video
from serving.web.content_response import redirect, stored_response
from serving.web.http_body import read_body
from serving.web.http_errors import ApiError
from serving.web.intake import Intake
from serving.web.job_views import Asker, JobViews, SenderHeaders, not_found
from serving.web.preflight import to_preflight
from serving.web.requests import VideoRequest
from serving.webhooks.outbox import Outbox

Variant = Literal["video", "thumbnail", "spritesheet", "spritesheet_vtt", "manifest"]
CANCEL_S = 5.0
"""Seconds that POST cancel waits for the worker to have stopped, so that its answer is the truth."""


def video_routes(backend: Backend, intake: Intake, views: JobViews) -> APIRouter:
    """Every route under /v1/videos."""
    router = APIRouter(prefix="/v1/videos", tags=["videos"])
    _add_creation(router, backend, intake, views)
    _add_reading(router, backend, views)
    _add_changing(router, backend, views)
    return router


def _add_creation(router: APIRouter, backend: Backend, intake: Intake, views: JobViews) -> None:
    @router.post("", openapi_extra=body_schema.with_media(VideoRequest))
    async def create(request: Request, response: Response, sender: SenderHeaders) -> VideoObject:
        """Starts a job; it is stored before this answers."""
        body = await read_body(request, backend.service.limits)

        def submit() -> tuple[Video, float, VideoObject]:
            # In one go: another thread's turn may be long in coming on a busy machine.
            video, wait = intake.submit(body, sender)
            return video, wait, to_video(video, backend.store)

        video, wait, shown = await run_in_threadpool(submit)
        request.state.made = video.id
        if wait:
            return await views.shown(await views.until_final(video, wait), response)
        return views.with_pace(shown, response)

    @router.post("/preflight", openapi_extra=body_schema.with_media(VideoRequest))
    async def preflight(request: Request, tenant: Asker) -> Preflight:
        """What a job would come to: size, frames, persons in the image. Renders and keeps nothing."""
        body = await read_body(request, backend.service.limits)
        looked = await run_in_threadpool(intake.preflight, body, tenant)
        return await run_in_threadpool(to_preflight, looked, backend, intake.model, tenant)


def _add_reading(router: APIRouter, backend: Backend, views: JobViews) -> None:
    @router.get("")
    def page(
        tenant: Asker,
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
    ) -> VideoList:
        """Jobs, newest first unless `order` is asc; `after` is the last id of the page before."""
        try:
            found, more = backend.store.page(after=after, limit=limit, descending=order == "desc", tenant=tenant.id)
        except KeyError as problem:
            raise ApiError(400, "unknown_cursor", f"after is {after!r}; there is no such video", "after") from problem
        data = [to_video(video, backend.store) for video in found]
        ends = (data[0].id, data[-1].id) if data else (None, None)
        return VideoList(data=data, first_id=ends[0], last_id=ends[1], has_more=more)

    @router.get("/{video_id}")
    async def retrieve(video_id: str, response: Response, tenant: Asker) -> VideoObject:
        """One job as it is now."""
        return await views.shown(await run_in_threadpool(views.must_have, video_id, tenant), response)

    @router.head("/{video_id}/content", include_in_schema=False)
    @router.get("/{video_id}/content", response_class=Response)
    def content(request: Request, video_id: str, tenant: Asker, variant: Variant = "video") -> Response:
        """The clip, its thumbnail or its sprite sheet; honours HTTP ranges, or redirects to a signed URL."""
        video = views.must_have(video_id, tenant)
        if video.status is not Status.COMPLETED:
            reason = f"{video_id} is {video.status.value}; it has content once it is completed"
            raise ApiError(400, "video_not_ready", reason, "video_id")
        if variant == "manifest":
            return _manifest(video)
        token = video.result_token
        stored = None if token is None else backend.blobs.content(video_id, token, variant)
        if stored is None:
            raise ApiError(404, "video_expired", f"the content of {video_id} has expired", "video_id")
        if backend.service.presign and request.method == "GET":
            url = backend.blobs.storage.presign("GET", stored.key, backend.service.presign_s)
            if url is not None:
                return redirect(url)
        name, kind = RESULTS[variant]
        return stored_response(request, backend.blobs.storage, stored, media_type=kind, filename=f"{video_id}-{name}")

    @router.get("/{video_id}/events", response_class=StreamingResponse)
    async def events(video_id: str, tenant: Asker, last_event_id: Annotated[str | None, Header()] = None) -> Response:
        """Server-sent events: the job as it is, and each change; `Last-Event-ID` is told all that it missed."""
        video = await run_in_threadpool(views.must_have, video_id, tenant)
        seen = int(last_event_id) if last_event_id and last_event_id.isdigit() else None
        if video.status.is_final and seen is not None and video.version <= seen:
            return Response(status_code=204)  # tells an EventSource that nothing will follow
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(views.follow(video, seen), media_type="text/event-stream", headers=headers)


def _add_changing(router: APIRouter, backend: Backend, views: JobViews) -> None:
    @router.delete("/{video_id}")
    def delete(video_id: str, tenant: Asker) -> VideoDeleted:
        """Forgets a job and removes its bytes; a running one stops."""
        views.must_have(video_id, tenant)
        # The bytes first: where their storage is away, the job is still there to be deleted again.
        backend.blobs.drop_video(video_id)
        backend.store.delete(video_id)
        backend.blobs.drop_video(video_id)  # what a worker has published in between
        return VideoDeleted(id=video_id)

    @router.post("/{video_id}/webhook/replay")
    def replay_webhook(video_id: str, tenant: Asker) -> WebhookReplay:
        """Sends a job's event once more, with the id that it had; one that is still being delivered goes on."""
        views.must_have(video_id, tenant)
        count = Outbox(backend.store.engine).replay(video_id=video_id, tenant=tenant.id)
        return WebhookReplay(id=video_id, events=count)

    @router.post("/{video_id}/cancel")
    async def cancel(video_id: str, response: Response, tenant: Asker) -> VideoObject:
        """Stops a job within one denoising step. The answer says `cancelled` only if it is."""
        await run_in_threadpool(views.must_have, video_id, tenant)
        video = await run_in_threadpool(backend.store.cancel, video_id)
        if video is None:
            raise not_found(video_id)
        return await views.shown(await views.until_final(video, CANCEL_S), response)


def _manifest(video: Video) -> Response:
    """What a clip can be rendered again from; it stays on record when the clip has expired."""
    if video.manifest is None:
        raise ApiError(404, "no_manifest", f"{video.id} was rendered before there were manifests", "variant")
    headers = {
        "cache-control": "private, no-cache",
        "content-disposition": f'inline; filename="{video.id}-manifest.json"',
    }
    return Response(video.manifest, media_type="application/json", headers=headers)
