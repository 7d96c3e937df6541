"""What clients are answered, from jobs, files and models: OpenAI's Videos and Files shapes, with more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel

from serving.jobs.job import Status
from serving.jobs.presence import ServedModel
from serving.jobs.store import JobStore, Video
from serving.results.uploads import Upload
from serving.web.requests import LoraWish


class Character(BaseModel):
    """A person kept for later jobs: its id goes wherever a file's goes, as `input_reference` above all."""

    id: str
    object: Literal["character"] = "character"
    name: str
    created_at: int


class ErrorBody(BaseModel):
    """Why a request was refused."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(BaseModel):
    """Every answer that is no 2xx, 3xx or 416."""

    error: ErrorBody


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
    step: int | None
    """Denoising steps done, of `steps`."""
    steps: int | None
    num_frames: int
    fps: float
    num_inference_steps: int
    guidance_scale: float
    seed: int
    quality: str
    keep_audio: bool
    loras: list[LoraWish]
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


class WebhookReplay(BaseModel):
    """A job's events are on their way once more."""

    id: str
    object: Literal["video.webhook_replay"] = "video.webhook_replay"
    events: int


class Preflight(BaseModel):
    """What a job would come to; nothing is rendered or kept."""

    object: Literal["video.preflight"] = "video.preflight"
    size: str
    num_frames: int
    fps: float
    seconds: str
    frames_available: int | None
    persons_in_image: int | None
    crop: list[int] | None
    """Left, top, right, bottom in pixels: the part of the image that the clip shows; null where it is all of it."""
    gpu_seconds: float | None
    """What rendering would take; null where the model has not finished any job yet."""
    cost: float | None
    """At the operator's price of a GPU-hour; null where none is set."""
    eta_s: float | None
    """Seconds until it would be done if it were sent now."""
    warnings: list[str]
    """What is legal and yet seldom meant, in words."""


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
    loras: list[str] = []
    """Names that a job's `loras` may hold; one made for another model's shapes is refused when it is rendered."""


class ModelList(BaseModel):
    """The models that are served now."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


def to_video(video: Video, store: JobStore) -> VideoObject:
    """A job as its client sees it now; asks the store for its place in the queue."""
    settings = video.settings
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
        queue_position=store.queue_position(video),
        eta_s=store.eta_s(video),
        step=video.step,
        steps=video.steps,
        num_frames=settings.total_frames,
        fps=settings.fps,
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        seed=settings.seed,
        quality=settings.quality,
        keep_audio=settings.keep_audio,
        loras=[LoraWish(name=name, weight=weight) for name, weight in settings.loras],
        model_version=video.model_version,
    )


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


def to_character(upload: Upload) -> Character:
    return Character(id=upload.id, name=upload.filename, created_at=int(upload.created_at))


def to_model(model: ServedModel, loras: Sequence[str] = ()) -> ModelObject:
    family = "mini" if model.mini else "dynamictrl"
    return ModelObject(id=model.name, version=model.version, family=family, loras=list(loras))


def _seconds(time: float | None) -> int | None:
    return None if time is None else int(time)
