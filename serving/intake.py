"""The front desk: receives media, has them looked at, settles what is asked, and commits the job before answering."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote_to_bytes

from starlette.datastructures import UploadFile

from serving.backend import Backend
from serving.http_body import Body, FileId, Source
from serving.http_errors import ApiError
from serving.jobs import Medium, Settings, VideoFacts, Wish, check_media, check_wish, settle
from serving.media_guard import MediaGuard
from serving.model_source import public_name
from serving.store import IdempotencyError, Video, new_video_id
from serving.uploads import Upload
from serving.wire import VideoRequest

RETRY_WINDOW_S = 600.0
"""Seconds in which an SDK's automatic retry (which says so, but sends no key) means the job it made before."""
CHUNK = 2**20


@dataclass(frozen=True)
class Received:
    """A medium's bytes on our disk."""

    path: Path
    sha256: str
    temporary: bool


@dataclass(frozen=True)
class Looked:
    """A request whose media were received and found usable."""

    settings: Settings
    media: dict[Medium, Received]
    facts: VideoFacts
    resampled_to: float | None
    persons: int | None


@dataclass(frozen=True)
class Sender:
    """What a request's headers say about it."""

    idempotency_key: str | None = None
    is_retry: bool = False


class Intake:
    """Turns requests into jobs. Threads may share it."""

    def __init__(self, backend: Backend, guard: MediaGuard):
        self.backend = backend
        self.guard = guard
        self.model = public_name(backend.service.transformer or backend.service.model)

    def submit(self, body: Body, sender: Sender) -> tuple[Video, float]:
        """A committed job and how many seconds its sender wants to wait; ApiError or InputError where refused."""
        request = self._check_fields(body)
        if sender.idempotency_key is not None and not 0 < len(sender.idempotency_key) <= 256:
            raise ApiError(400, "idempotency_key", "Idempotency-Key must have 1 to 256 characters", "Idempotency-Key")
        with self._received(body.media) as media:
            content = content_hash(self.model, request.to_wish(), media)
            video = self._earlier(content, sender)
            if video is None:
                looked = self._look(request.to_wish(), media)
                video = self._commit(looked, content, sender.idempotency_key)
        return video, request.wait

    def preflight(self, body: Body) -> Looked:
        """What a request would come to; keeps nothing."""
        request = self._check_fields(body)
        with self._received(body.media) as media:
            return self._look(request.to_wish(), media, always_count_persons=True)

    def remix(self, video_id: str, prompt: str) -> Video:
        """The same settings, seed and media with another prompt."""
        original = self._must_have(video_id)
        check_wish(Wish(prompt=prompt), self.backend.service.limits)
        settings = replace(original.settings, prompt=prompt)
        media = {name: self.backend.blobs.medium(video_id, name) for name in original.inputs}
        if not all(path.is_file() for path in media.values()):
            raise ApiError(404, "video_expired", f"the media of {video_id} have expired; send them again", "video_id")
        new_id = new_video_id()
        content = hashlib.sha256(f"remix {video_id} {prompt}".encode()).hexdigest()
        self.backend.blobs.keep_media(new_id, media)
        video, _ = self.backend.store.add(
            video_id=new_id, model=original.model, settings=settings, inputs=original.inputs, content_hash=content,
            remixed_from=video_id
        )  # fmt: skip
        return video

    def receive_upload(self, part: UploadFile, purpose: str) -> Upload:
        """Keeps a file for later jobs; what it is, is looked at when a job names it."""
        with self._received({"input_reference": part}, param="file") as media:
            received = media["input_reference"]
            return self.backend.uploads.add(
                received.path, filename=part.filename or "upload", purpose=purpose, sha256=received.sha256
            )

    def _check_fields(self, body: Body) -> VideoRequest:
        request, limits = VideoRequest.model_validate(body.fields), self.backend.service.limits
        check_wish(request.to_wish(), limits)
        check_media(dict(body.media))
        if request.wait > limits.wait_seconds:
            raise ApiError(
                400, "bad_wait", f"wait is {request.wait:g}; at most {limits.wait_seconds:g} seconds are waited", "wait"
            )
        if request.model is not None and request.model != self.model:
            raise ApiError(
                404, "model_not_found", f"model {request.model[:60]!r} is not served; this service has {self.model!r}",
                "model"
            )  # fmt: skip
        return request

    def _earlier(self, content: str, sender: Sender) -> Video | None:
        store = self.backend.store
        try:
            if sender.idempotency_key is not None:
                return store.find_by_key(sender.idempotency_key, content)
        except IdempotencyError as problem:
            raise _key_reused() from problem
        return store.find_recent(content, RETRY_WINDOW_S) if sender.is_retry else None

    def _look(self, wish: Wish, media: Mapping[Medium, Received], *, always_count_persons: bool = False) -> Looked:
        service = self.backend.service
        image = self.guard.image(media["input_reference"].path, "input_reference")
        if "mask" in media:
            mask = self.guard.image(media["mask"].path, "mask")
            if mask != image:
                raise ApiError(
                    400, "mask_size",
                    f"the mask is {mask.width}x{mask.height} and the image {image.width}x{image.height} pixels; give a "
                    "mask of the image's size", "mask"
                )  # fmt: skip
        motion: Medium = "pose_video" if "pose_video" in media else "driving_video"
        facts = self.guard.video(media[motion].path, motion)
        settings = settle(
            wish, facts, is_pose_video=motion == "pose_video", defaults=service.defaults, limits=service.limits
        )
        persons = None
        if motion == "driving_video" and (always_count_persons or service.person_check == "submit"):
            persons = self.guard.persons(media["input_reference"].path, "input_reference")
            if persons == 0 and not always_count_persons:
                raise ApiError(
                    400, "no_person_in_image", "no person was found in input_reference; give a picture that shows one",
                    "input_reference"
                )  # fmt: skip
        return Looked(settings, dict(media), facts, wish.fps, persons)

    def _commit(self, looked: Looked, content: str, key: str | None) -> Video:
        video_id = new_video_id()
        self.backend.blobs.keep_media(video_id, {name: item.path for name, item in looked.media.items()})
        try:
            video, is_new = self.backend.store.add(
                video_id=video_id,
                model=self.model,
                settings=looked.settings,
                inputs={name: item.sha256 for name, item in looked.media.items()},
                content_hash=content,
                idempotency_key=key,
            )
        except IdempotencyError as problem:
            self.backend.blobs.drop_video(video_id)
            raise _key_reused() from problem
        if not is_new:
            # Two requests with one key raced; the other was first.
            self.backend.blobs.drop_video(video_id)
        return video

    @contextmanager
    def _received(
        self, sources: Mapping[Medium, Source], *, param: str | None = None
    ) -> Iterator[dict[Medium, Received]]:
        """The media on our disk while the block runs; those that came with the request are removed after it."""
        media: dict[Medium, Received] = {}
        try:
            for name, source in sources.items():
                media[name] = self._receive(source, param or name)
            yield media
        finally:
            for item in media.values():
                if item.temporary:
                    item.path.unlink(missing_ok=True)

    def _receive(self, source: Source, param: str) -> Received:
        if isinstance(source, FileId):
            upload = self.backend.uploads.get(source.id)
            if upload is None:
                raise ApiError(
                    400, "file_not_found", f"{param} names the file {source.id[:60]!r}, which is not there", param
                )
            return Received(self.backend.blobs.file(upload.id), upload.sha256, temporary=False)
        target = self.backend.blobs.incoming()
        try:
            if isinstance(source, UploadFile):
                return Received(target, self._copy(source.file, target, param), temporary=True)
            data = decode_data_url(source.text, param)
            target.write_bytes(data)
            return Received(target, hashlib.sha256(data).hexdigest(), temporary=True)
        except BaseException:
            target.unlink(missing_ok=True)
            raise

    def _copy(self, source: BinaryIO, target: Path, param: str) -> str:
        limit, size, digest = self.backend.service.limits.media_bytes, 0, hashlib.sha256()
        with target.open("wb") as out:
            while chunk := source.read(CHUNK):
                size += len(chunk)
                if size > limit:
                    raise ApiError(413, "too_large", f"{param} has more than {limit} bytes", param)
                digest.update(chunk)
                out.write(chunk)
        if size == 0:
            raise ApiError(400, "empty_file", f"{param} has no bytes", param)
        return digest.hexdigest()

    def _must_have(self, video_id: str) -> Video:
        video = self.backend.store.get(video_id)
        if video is None:
            raise ApiError(404, "video_not_found", f"there is no video {video_id[:60]!r}", "video_id")
        return video


def decode_data_url(text: str, param: str) -> bytes:
    """The bytes of `data:[TYPE][;base64],...`."""
    header, comma, payload = text.partition(",")
    try:
        if not comma:
            raise ValueError("it has no comma")
        data = base64.b64decode(payload, validate=True) if header.endswith(";base64") else unquote_to_bytes(payload)
    except (binascii.Error, ValueError) as problem:
        raise ApiError(400, "bad_data_url", f"{param}'s data URL cannot be decoded ({problem})", param) from problem
    if not data:
        raise ApiError(400, "empty_file", f"{param} has no bytes", param)
    return data


def content_hash(model: str, wish: Wish, media: Mapping[Medium, Received]) -> str:
    """What a request asks for, as one word: equal requests have equal words."""
    content = {"model": model, "wish": asdict(wish), "media": {name: item.sha256 for name, item in media.items()}}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _key_reused() -> ApiError:
    return ApiError(
        422, "idempotency_key_reused", "this Idempotency-Key stands for a request of other content; use a fresh one",
        "Idempotency-Key"
    )  # fmt: skip
