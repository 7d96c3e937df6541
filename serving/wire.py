"""What crosses the network, and its translation to and from jobs: OpenAI's Videos and Files shapes, with more."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from dynamictrl.errors import InputError
from serving.jobs import Status, Wish
from serving.presence import ServedModel
from serving.store import JobStore, Video
from serving.uploads import Upload

_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")


class VideoRequest(BaseModel):
    """The plain fields of POST /v1/videos; its media are read beside it (`http_body.py`)."""

    model_config = ConfigDict(extra="forbid")

    prompt: Annotated[str, Field(min_length=1, description="What the clip shows; the person comes from the image.")]
    model: Annotated[str | None, Field(description="A name of GET /v1/models; the served one if left out.")] = None
    size: Annotated[
        str | None,
        Field(description="WIDTHxHEIGHT in pixels, multiples of 16. Left out: the pose video's, else the default."),
    ] = None
    seconds: Annotated[
        float | None, Field(description="Length; becomes the nearest legal frame count at the video's rate.")
    ] = None
    num_frames: Annotated[int | None, Field(description="Length in frames: 5, 9, 13, ...; instead of `seconds`.")] = (
        None
    )
    fps: Annotated[
        float | None, Field(description="Frames per second of the clip; the driving video's own if left out.")
    ] = None
    num_inference_steps: Annotated[int | None, Field(description="Denoising steps.")] = None
    guidance_scale: Annotated[float | None, Field(description="Strength of the prompt; 1 is none.")] = None
    seed: Annotated[int | None, Field(description="The same seed and inputs give the same clip.")] = None
    quality: Annotated[str, Field(description="How it is rendered; `exact` is the one there is.")] = "exact"
    keep_audio: Annotated[
        bool, Field(description="The clip keeps the video's sound, cut to its frames; silent where there is none.")
    ] = False
    wait: Annotated[float, Field(ge=0, description="Seconds to wait for the end before answering.")] = 0.0

    def to_wish(self) -> Wish:
        """InputError where the size is not WIDTHxHEIGHT."""
        width, height = _parse_size(self.size)
        return Wish(
            prompt=self.prompt,
            width=width,
            height=height,
            seconds=self.seconds,
            num_frames=self.num_frames,
            fps=self.fps,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            seed=self.seed,
            quality=self.quality,
            keep_audio=self.keep_audio,
        )


class RemixRequest(BaseModel):
    """POST /v1/videos/{id}/remix: the same job with a new prompt."""

    model_config = ConfigDict(extra="forbid")

    prompt: Annotated[str, Field(min_length=1)]


class VideoError(BaseModel):
    """Why a job failed."""

    code: str
    message: str


class VideoObject(BaseModel):
    """A job as clients see it: OpenAI's fields, then ours."""

    id: str
    object: Literal["video"] = "video"
    status: Literal["queued", "in_progress", "completed", "failed", "cancelled"]
    progress: int
    created_at: int
    completed_at: int | None
    expires_at: int | None
    model: str
    prompt: str
    size: str
    seconds: str
    remixed_from_video_id: str | None
    error: VideoError | None
    stage: str
    queue_position: int | None
    eta_s: float | None
    num_frames: int
    fps: float
    num_inference_steps: int
    guidance_scale: float
    seed: int
    quality: str
    keep_audio: bool
    model_version: str | None


class VideoList(BaseModel):
    """One page of jobs."""

    object: Literal["list"] = "list"
    data: list[VideoObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class VideoDeleted(BaseModel):
    """The job and its bytes are gone."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


class Preflight(BaseModel):
    """What a job would come to; nothing is rendered or kept."""

    object: Literal["video.preflight"] = "video.preflight"
    size: str
    num_frames: int
    fps: float
    seconds: str
    frames_available: int | None
    persons_in_image: int | None
    eta_s: float | None


class FileObject(BaseModel):
    """An uploaded file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"


class FileList(BaseModel):
    """One page of files."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(BaseModel):
    """The file and its bytes are gone."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class ModelObject(BaseModel):
    """A model that a warm worker serves."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "dynamictrl"
    version: str
    family: Literal["mini", "dynamictrl"]
    """`mini`: one of the project's small models, for trying things out; not the published ones."""


class ModelList(BaseModel):
    """The models that are served now."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


def to_video(video: Video, store: JobStore) -> VideoObject:
    """A job as its client sees it now; asks the store for its place in the queue."""
    settings = video.settings
    position = store.queue_position(video)
    error = VideoError(code=video.error_code, message=video.error_message or "") if video.error_code else None
    return VideoObject(
        id=video.id,
        status=video.status.value,
        progress=video.progress,
        created_at=int(video.created_at),
        completed_at=_seconds(video.completed_at) if video.status is Status.COMPLETED else None,
        expires_at=_seconds(video.expires_at),
        model=video.model,
        prompt=settings.prompt,
        size=settings.size,
        seconds=settings.seconds,
        remixed_from_video_id=video.remixed_from,
        error=error,
        stage=video.stage,
        queue_position=position,
        eta_s=eta(video, position, store),
        num_frames=settings.num_frames,
        fps=settings.fps,
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        seed=settings.seed,
        quality=settings.quality,
        keep_audio=settings.keep_audio,
        model_version=video.model_version,
    )


def eta(video: Video, position: int | None, store: JobStore) -> float | None:
    """Seconds until a job is done, guessed from its own pace, or from the last jobs' where it waits."""
    if video.status is Status.IN_PROGRESS and video.started_at and video.progress > 5:
        elapsed = store.clock() - video.started_at
        return round(elapsed * (100 - video.progress) / video.progress, 1)
    if position is not None and (past := store.render_seconds()):
        return round(sum(past) / len(past) * position, 1)
    return None


def poll_after_ms(video: VideoObject) -> int:
    """What the SDK's `poll` should sleep: a twentieth of what is left, so that a clip is not found late."""
    if video.eta_s is None:
        return 500
    return int(min(5000, max(200, video.eta_s * 50)))


def to_file(upload: Upload) -> FileObject:
    return FileObject(
        id=upload.id,
        bytes=upload.bytes,
        created_at=int(upload.created_at),
        filename=upload.filename,
        purpose=upload.purpose,
    )


def to_model(model: ServedModel) -> ModelObject:
    return ModelObject(id=model.name, version=model.version, family="mini" if model.mini else "dynamictrl")


def _seconds(time: float | None) -> int | None:
    return None if time is None else int(time)


def _parse_size(size: str | None) -> tuple[int | None, int | None]:
    if size is None:
        return None, None
    match = _SIZE.fullmatch(size.strip())
    if match is None:
        raise InputError(
            f"size is {size[:40]!r}; write WIDTHxHEIGHT in pixels, such as 768x1360", code="bad_size", param="size"
        )
    return int(match[1]), int(match[2])
