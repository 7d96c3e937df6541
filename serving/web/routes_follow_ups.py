"""The routes of /v1/videos that start from a clip that is there: remix, edits, extensions, characters."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from serving.jobs.job import Medium
from serving.web import body_schema
from serving.web.answers import Character, VideoObject, to_character
from serving.web.follow_ups import CHARACTER, FollowUps
from serving.web.http_body import Body, Call, read_body, read_json
from serving.web.http_errors import ApiError
from serving.web.intake import Intake
from serving.web.job_views import Asker, JobViews, SenderHeaders
from serving.web.requests import CharacterRequest, ExtendRequest, RemixRequest, VideoRequest

MOTIONS: tuple[Medium, ...] = ("driving_video", "pose_video")
EDIT_MEDIA: tuple[Medium, ...] = ("input_reference", *MOTIONS, "mask")


def follow_up_routes(intake: Intake, views: JobViews) -> APIRouter:
    """Remix, edits and extensions."""
    router = APIRouter(prefix="/v1/videos", tags=["videos"])
    follow_ups = FollowUps(intake)
    limits = intake.backend.service.limits

    @router.post("/{video_id}/remix", openapi_extra=body_schema.in_json(RemixRequest))
    async def remix(video_id: str, request: Request, response: Response, sender: SenderHeaders) -> VideoObject:
        """The same job with a new prompt: same media, settings and seed."""
        await run_in_threadpool(follow_ups.must_have, video_id, sender.tenant)
        wish = RemixRequest.model_validate(await read_json(request, limits))
        video = await run_in_threadpool(follow_ups.remix, video_id, wish.prompt, sender)
        request.state.made = video.id
        return await views.shown(video, response)

    @router.post("/edits", openapi_extra=body_schema.with_media(VideoRequest, EDIT_MEDIA, video="job"))
    async def edit(request: Request, response: Response, sender: SenderHeaders) -> VideoObject:
        """The same person and motion with a new prompt, and with whatever else is given in their place.

        `video` is `{"id": ...}` of a job, or a clip: its first frame is the person then, and the clip the motion.
        """
        call = Call(frozenset(VideoRequest.model_fields), EDIT_MEDIA, video=True)
        video, wait = await run_in_threadpool(follow_ups.edit, await read_body(request, limits, call), sender)
        request.state.made = video.id
        return await views.shown(await views.until_final(video, wait), response)

    @router.post("/extensions", openapi_extra=body_schema.with_media(ExtendRequest, MOTIONS, video="job"))
    async def extend(request: Request, response: Response, sender: SenderHeaders) -> VideoObject:
        """A clip goes on from its last frame; the result holds both, joined.

        `video` is `{"id": ...}` of a completed job, whose motion continues unless another is given, or a clip, which
        needs a `driving_video` or `pose_video`.
        """
        call = Call(frozenset(ExtendRequest.model_fields), MOTIONS, video=True)
        video, wait = await run_in_threadpool(follow_ups.extend, await read_body(request, limits, call), sender)
        request.state.made = video.id
        return await views.shown(await views.until_final(video, wait), response)

    @router.post("/characters", openapi_extra=body_schema.with_media(CharacterRequest, (), video="clip"))
    async def create_character(request: Request, tenant: Asker) -> Character:
        """Keeps the person of a clip or picture under a name; its id goes wherever a file's id goes."""
        call = Call(frozenset(CharacterRequest.model_fields), (), video=True)
        body: Body = await read_body(request, limits, call)
        upload = await run_in_threadpool(follow_ups.make_character, body, tenant)
        request.state.made = upload.id
        return to_character(upload)

    @router.get("/characters/{character_id}")
    def get_character(character_id: str, tenant: Asker) -> Character:
        """One character; all of them are GET /v1/files?purpose=character."""
        upload = intake.backend.uploads.get(character_id, tenant.id)
        if upload is None or upload.purpose != CHARACTER:
            raise ApiError(404, "character_not_found", f"there is no character {character_id[:60]!r}", "character_id")
        return to_character(upload)

    return router
