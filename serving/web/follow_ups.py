"""Jobs and characters made from clips that are there: remix, edit, extend, create_character.

| call | is for us |
|---|---|
| remix | the same job with a new prompt: same media, settings, seed |
| edit of a job | the same job with a new prompt, and whatever else is given: person, motion, mask, length, seed |
| edit of a clip | its first frame is the person and the clip the motion, unless others are given |
| extension | the clip goes on from its last frame, its motion continued or another's begun; both are joined |
| character | the person of a clip or picture, kept as a file that later jobs name as `input_reference` |
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dynamictrl import geometry
from dynamictrl.errors import InputError
from serving.config import Limits
from serving.jobs.job import CLIP_BEFORE, Settings, Status, Wish, check_media, check_wish
from serving.jobs.store import Video
from serving.results.uploads import Upload
from serving.tenants.tenant import Tenant
from serving.web.http_body import Body, VideoId
from serving.web.http_errors import ApiError
from serving.web.intake import Intake, Looked, Received, Sender, check_key, content_hash
from serving.web.requests import CharacterRequest, ExtendRequest, VideoRequest

CHARACTER = "character"
"""The purpose of the files that characters are."""


@dataclass(frozen=True)
class _Origin:
    """What an extension goes on from."""

    settings: Settings
    clip: Received
    motion: dict[str, Received]
    start_frame: int
    video_id: str | None


class FollowUps:
    """Turns such requests into jobs, through the same front desk as all others."""

    def __init__(self, intake: Intake):
        self.intake = intake
        self.backend = intake.backend

    def remix(self, video_id: str, prompt: str, sender: Sender) -> Video:
        """The same settings, seed and media with another prompt."""
        check_wish(Wish(prompt=prompt), self._limits)
        return self._again("remix", video_id, VideoRequest(prompt=prompt), {}, sender)

    def edit(self, body: Body, sender: Sender) -> tuple[Video, float]:
        """A committed job and how long its sender wants to wait."""
        request = VideoRequest.model_validate(body.fields)
        check_wish(request.to_wish(), self._limits)
        self.intake.check_request(request)
        if body.video is None:
            raise ApiError(400, "missing_parameter", "video is required: a clip, or {'id': ...} of a job", "video")
        check_one_motion(body.media)
        if isinstance(body.video, VideoId):
            with self.intake.received(body.media, sender.tenant) as media:
                return self._again("edit", body.video.id, request, dict(media), sender), request.wait
        with self.intake.received({**body.media, "video": body.video}, sender.tenant) as media:
            return self._edit_clip(request, dict(media), sender), request.wait

    def extend(self, body: Body, sender: Sender) -> tuple[Video, float]:
        """A committed job and how long its sender wants to wait."""
        request = ExtendRequest.model_validate(body.fields)
        check_wish(request.to_wish(), self._limits)
        self.intake.check_request(request)
        if body.video is None:
            raise ApiError(400, "missing_parameter", "video is required: a clip, or {'id': ...} of a job", "video")
        check_one_motion(body.media)
        if isinstance(body.video, VideoId):
            with self.intake.received(body.media, sender.tenant) as media:
                return self._extend(
                    request, self._origin_of_job(body.video.id, dict(media), sender), sender
                ), request.wait
        with self.intake.received({**body.media, "video": body.video}, sender.tenant) as media:
            return self._extend(request, self._origin_of_clip(dict(media)), sender), request.wait

    def make_character(self, body: Body, tenant: Tenant) -> Upload:
        """The first frame of a clip that shows a person, else its last, kept under a name."""
        name = CharacterRequest.model_validate(body.fields).name
        if body.video is None or isinstance(body.video, VideoId):
            raise ApiError(400, "missing_parameter", "video is required: a clip or a picture of the person", "video")
        with self.intake.received({"video": body.video}, tenant) as media:
            for last in (False, True):
                with self._frame(media["video"].path, last=last) as picture:
                    if self._shows_a_person(picture.path):
                        return self.backend.uploads.add(
                            picture.path, filename=name, purpose=CHARACTER, sha256=picture.sha256,
                            tenant=tenant
                        )  # fmt: skip
        raise ApiError(
            400, "no_person_in_video", "no person was found in the first and last frame of the video; cut it so that "
            "it begins with one", "video"
        )  # fmt: skip

    @property
    def _limits(self) -> Limits:
        return self.backend.service.limits

    def _again(
        self, call: str, video_id: str, request: VideoRequest, media: dict[str, Received], sender: Sender
    ) -> Video:
        """A job of ours once more, with what the request changes."""
        check_key(sender)
        original = self.must_have(video_id, sender.tenant)
        inputs, before = _with_motion(self._inputs(original), media)
        wish = merged(original.settings, request, new_motion=bool(set(media) & _MOTIONS))
        model = request.model or original.model
        content = content_hash(f"{call} {video_id}", model, wish, inputs)
        earlier = self.intake.earlier(content, sender)
        if earlier is not None:
            return earlier
        start = 0 if set(media) & _MOTIONS else original.settings.start_frame
        looked = self.intake.look(wish, inputs, start_frame=start)
        settings = replace(looked.settings, start_frame=start, frames_before=original.settings.frames_before)
        looked = Looked(settings, {**inputs, **before}, looked.facts, looked.resampled_to, looked.persons)
        return self.intake.commit(looked, content, sender, request, model=model, remixed_from=video_id)

    def _edit_clip(self, request: VideoRequest, media: dict[str, Received], sender: Sender) -> Video:
        check_key(sender)
        clip = media.pop("video")
        facts = self.intake.guard.video(clip.path, "video", sha256=clip.sha256)
        if not set(media) & _MOTIONS:
            media["driving_video"] = clip
        wish = request.to_wish()
        if request.size is None and (size := self._own_size(facts.width, facts.height)):
            wish = replace(wish, width=size[0], height=size[1])
        model = request.model or self.intake.model
        content = content_hash("edit clip", model, wish, {**media, "video": clip})
        earlier = self.intake.earlier(content, sender)
        if earlier is not None:
            return earlier
        with self._frame(clip.path, last=False) as picture:
            media.setdefault("input_reference", picture)
            return self.intake.commit(self.intake.look(wish, media), content, sender, request, model=model)

    def _origin_of_job(self, video_id: str, media: dict[str, Received], sender: Sender) -> _Origin:
        original = self.must_have(video_id, sender.tenant)
        path = self.backend.blobs.result(video_id, original.result_token or 0, "video")
        if original.status is not Status.COMPLETED:
            reason = f"{video_id} is {original.status.value}; it can be extended once it is completed"
            raise ApiError(400, "video_not_ready", reason, "video")
        if original.result_token is None or not path.is_file():
            raise ApiError(404, "video_expired", f"the content of {video_id} has expired", "video")
        clip = Received(path, _sha256(path), temporary=False)
        settings = original.settings
        if media:
            # At the clip's own rate, whatever the new video's is: one clip has one.
            return _Origin(replace(settings, resample=True, keep_audio=False), clip, media, 0, video_id)
        inputs = {name: item for name, item in self._inputs(original).items() if name in _MOTIONS}
        return _Origin(settings, clip, inputs, settings.start_frame + settings.num_frames - 1, video_id)

    def _origin_of_clip(self, media: dict[str, Received]) -> _Origin:
        clip = media.pop("video")
        if not media:
            raise ApiError(
                400, "missing_video", "a clip that was not rendered here has no motion that could go on: give "
                "driving_video or pose_video with the motion to come", "driving_video"
            )  # fmt: skip
        facts = self.intake.guard.video(clip.path, "video", sha256=clip.sha256)
        frames, size = facts.available(None), self._own_size(facts.width, facts.height)
        if frames is None or size is None:
            raise ApiError(
                400, "bad_clip", "the clip's length is not known, or its size cannot be rendered; encode it again as "
                f"an mp4 of at most {self._limits.output_pixels} pixels", "video"
            )  # fmt: skip
        defaults = self.backend.service.defaults
        settings = Settings(
            prompt="", width=size[0], height=size[1], num_frames=frames, fps=facts.fps, resample=True, seed=0,
            num_inference_steps=defaults.num_inference_steps, guidance_scale=defaults.guidance_scale
        )  # fmt: skip
        return _Origin(settings, clip, media, 0, None)

    def _extend(self, request: ExtendRequest, origin: _Origin, sender: Sender) -> Video:
        check_key(sender)
        settings = origin.settings
        # The last frame of what is there is the first of what comes, hence one more.
        frames = geometry.nearest_frames(round(request.seconds * settings.fps) + 1)
        if settings.total_frames + frames - 1 > self._limits.total_frames:
            raise ApiError(
                400, "clip_too_long", f"the whole clip would have {settings.total_frames + frames - 1} frames; at most "
                f"{self._limits.total_frames} are joined", "seconds"
            )  # fmt: skip
        wish = replace(merged(settings, request.as_request(), new_motion=False), num_frames=frames)
        inputs = {**origin.motion, CLIP_BEFORE: origin.clip}
        own = self.must_have(origin.video_id, sender.tenant).model if origin.video_id else self.intake.model
        model = request.model or own
        content = content_hash(f"extend {origin.video_id}", model, wish, inputs)
        earlier = self.intake.earlier(content, sender)
        if earlier is not None:
            return earlier
        with self._frame(origin.clip.path, last=True) as picture:
            media = {"input_reference": picture, **origin.motion}
            looked = _asking_for_seconds(lambda: self.intake.look(wish, media, start_frame=origin.start_frame))
            whole = replace(looked.settings, start_frame=origin.start_frame, frames_before=settings.total_frames)
            looked = Looked(whole, {**media, **inputs}, looked.facts, looked.resampled_to, looked.persons)
            return self.intake.commit(looked, content, sender, request, model=model, remixed_from=origin.video_id)

    def _inputs(self, video: Video) -> dict[str, Received]:
        """A job's own media; ApiError where they have expired."""
        paths = {name: self.backend.blobs.medium(video.id, name) for name in video.inputs}
        if not all(path.is_file() for path in paths.values()):
            raise ApiError(404, "video_expired", f"the media of {video.id} have expired; send them again", "video_id")
        return {name: Received(path, video.inputs[name], temporary=False) for name, path in paths.items()}

    @contextmanager
    def _frame(self, clip: Path, *, last: bool) -> Iterator[Received]:
        picture = self.intake.keep(self.intake.guard.frame(clip, "video", last=last))
        try:
            yield picture
        finally:
            picture.path.unlink(missing_ok=True)

    def _shows_a_person(self, picture: Path) -> bool:
        try:
            return self.intake.guard.persons(picture, "video") > 0
        except InputError as problem:
            if problem.code != "no_pose_model":
                raise
            return True  # nobody here can tell

    def _own_size(self, width: int, height: int) -> tuple[int, int] | None:
        size = geometry.nearest_size(width), geometry.nearest_size(height)
        return size if size[0] * size[1] <= self._limits.output_pixels else None

    def must_have(self, video_id: str, tenant: Tenant) -> Video:
        video = self.backend.store.get(video_id, tenant.id)
        if video is None:
            raise ApiError(404, "video_not_found", f"there is no video {video_id[:60]!r}", "video_id")
        return video


_MOTIONS = {"driving_video", "pose_video"}


def check_one_motion(media: Mapping[Any, object]) -> None:
    """Refuses two motions; none is well where the clip's own does."""
    if len(set(media) & _MOTIONS) == 2:
        check_media({"input_reference": True, "driving_video": True, "pose_video": True})


def merged(settings: Settings, request: VideoRequest, *, new_motion: bool) -> Wish:
    """What a job was, with what a request changes. Another motion may have another length and rate."""
    given, wish = request.model_fields_set, request.to_wish()
    sized = "size" in given
    lengthened = bool(given & {"seconds", "num_frames"}) or new_motion
    own_rate = None if new_motion or not settings.resample else settings.fps
    return Wish(
        prompt=wish.prompt,
        width=wish.width if sized else settings.width,
        height=wish.height if sized else settings.height,
        seconds=wish.seconds,
        num_frames=wish.num_frames if lengthened else settings.num_frames,
        fps=wish.fps if "fps" in given else own_rate,
        num_inference_steps=wish.num_inference_steps or settings.num_inference_steps,
        guidance_scale=settings.guidance_scale if wish.guidance_scale is None else wish.guidance_scale,
        seed=settings.seed if wish.seed is None else wish.seed,
        quality=wish.quality if "quality" in given else settings.quality,
        keep_audio=wish.keep_audio if "keep_audio" in given else settings.keep_audio,
        loras=wish.loras if "loras" in given else settings.loras,
    )


def _with_motion(
    inputs: dict[str, Received], given: dict[str, Received]
) -> tuple[dict[str, Received], dict[str, Received]]:
    """A job's media with the given ones in their place; what it goes on from stands apart."""
    before = {name: item for name, item in inputs.items() if name == CLIP_BEFORE}
    replaced = {*before, *(_MOTIONS if set(given) & _MOTIONS else ())}
    if "input_reference" in given:
        replaced.add("mask")  # it was of the other picture
    return {**{name: item for name, item in inputs.items() if name not in replaced}, **given}, before


def _asking_for_seconds(look: Callable[[], Looked]) -> Looked:
    """An extension's length is said in seconds: a refusal of its frames names that."""
    try:
        return look()
    except InputError as problem:
        if problem.param == "num_frames":
            raise InputError(str(problem), code=problem.code, param="seconds") from problem
        raise


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
