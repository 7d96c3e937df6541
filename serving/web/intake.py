"""The front desk: receives media, has them looked at, settles what is asked, and commits the job before answering."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote_to_bytes

from sqlalchemy import Connection
from starlette.datastructures import UploadFile

from dynamictrl.errors import InputError
from serving.backend import Backend
from serving.jobs.idempotency import IdempotencyError
from serving.jobs.job import Medium, Settings, VideoFacts, Wish, check_media, check_wish, settle
from serving.jobs.store import Video, new_video_id
from serving.media.fetching import Fetcher
from serving.media.media_guard import ImageFacts, MediaGuard
from serving.media.safe_connect import Reach, checked_url
from serving.rendering.model_source import model_names
from serving.results.uploads import Upload
from serving.tenants.admission import admit_job
from serving.tenants.tenant import LOCAL, Tenant
from serving.watching import tracing
from serving.web.http_body import Body, FileId, Source, Url
from serving.web.http_errors import ApiError
from serving.web.requests import ExtendRequest, Orders, VideoRequest
from serving.webhooks.signing import WebhookSecrets

RETRY_WINDOW_S = 600.0
"""Seconds in which an SDK's automatic retry (which says so, but sends no key) means the job it made before."""
CHUNK = 2**20
FETCHES = 16
"""Media fetched by URL at a time: each holds a thread for as long as its server likes, within limits."""


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
    media: dict[str, Received]
    facts: VideoFacts
    resampled_to: float | None
    persons: int | None
    image: ImageFacts | None = None


@dataclass(frozen=True)
class Sender:
    """Who sends a request, and what its headers say about it."""

    idempotency_key: str | None = None
    is_retry: bool = False
    tenant: Tenant = LOCAL
    received_at: float | None = None
    """Unix seconds at which it began to come in: what tells a retry that overtakes its original."""


class Intake:
    """Turns requests into jobs. Threads may share it."""

    def __init__(self, backend: Backend, guard: MediaGuard):
        self.backend = backend
        self.guard = guard
        self.models = model_names(backend.service)
        self.model = self.models[0]
        limits = backend.service.limits
        self._fetcher = Fetcher(Reach(backend.service.private_hosts), limits.media_bytes, limits.fetch_seconds)
        self._fetching = threading.BoundedSemaphore(FETCHES)

    def submit(self, body: Body, sender: Sender) -> tuple[Video, float]:
        """A committed job and how many seconds its sender wants to wait; ApiError or InputError where refused."""
        request = self._check_fields(body)
        check_key(sender)
        with self.received(body.media, sender.tenant) as media:
            model = request.model or self.model
            content = content_hash("create", model, request.to_wish(), media)
            video = self.earlier(content, sender)
            if video is None:
                video = self.commit(self.look(request.to_wish(), media), content, sender, request, model=model)
        return video, request.wait

    def preflight(self, body: Body, tenant: Tenant) -> Looked:
        """What a request would come to; keeps nothing."""
        request = self._check_fields(body)
        with self.received(body.media, tenant) as media:
            return self.look(request.to_wish(), media, always_count_persons=True)

    def receive_upload(self, part: UploadFile, purpose: str, tenant: Tenant) -> Upload:
        """Keeps a file for later jobs; what it is, is looked at when a job names it."""
        with self.received({"input_reference": part}, tenant, param="file") as media:
            received = media["input_reference"]
            return self.backend.uploads.add(
                received.path, filename=part.filename or "upload", purpose=purpose, sha256=received.sha256,
                tenant=tenant
            )  # fmt: skip

    def _check_fields(self, body: Body) -> VideoRequest:
        request, limits = VideoRequest.model_validate(body.fields), self.backend.service.limits
        check_wish(request.to_wish(), limits)
        check_media(dict(body.media))
        self.check_request(request)
        return request

    def check_request(self, request: VideoRequest | ExtendRequest) -> None:
        """What every call that makes a job may get wrong: how long to wait, and which model."""
        limits = self.backend.service.limits
        if request.wait > limits.wait_seconds:
            raise ApiError(
                400, "bad_wait", f"wait is {request.wait:g}; at most {limits.wait_seconds:g} seconds are waited", "wait"
            )
        if request.webhook_url is not None:
            self._check_webhook(request.webhook_url)
        if request.model is not None and request.model not in self.models:
            raise ApiError(
                404, "model_not_found",
                f"model {request.model[:60]!r} is not served; this service has {', '.join(self.models)}", "model"
            )  # fmt: skip
        known = self.backend.service.named_loras
        for name, _ in request.to_wish().loras:
            if name not in known:
                there = f"it has {', '.join(known)}" if known else "it has none"
                raise ApiError(400, "lora_not_found", f"this service has no LoRA {name!r}; {there}", "loras")

    def _check_webhook(self, url: str) -> None:
        try:
            checked_url(url, Reach(self.backend.service.private_hosts))
        except InputError as problem:
            raise InputError(f"webhook_url: {problem}", code=problem.code, param="webhook_url") from problem

    def earlier(self, content: str, sender: Sender) -> Video | None:
        """The job that this request made before, by its key or as the SDK's automatic retry."""
        store = self.backend.store
        try:
            if sender.idempotency_key is not None:
                return store.find_by_key(sender.idempotency_key, content, sender.tenant.id)
        except IdempotencyError as problem:
            raise _key_reused() from problem
        return store.find_recent(content, RETRY_WINDOW_S, sender.tenant.id) if sender.is_retry else None

    def look(
        self, wish: Wish, media: Mapping[Any, Received], *, always_count_persons: bool = False, start_frame: int = 0
    ) -> Looked:
        """Every medium opened in the guarded process, every open question settled."""
        service = self.backend.service
        person = media["input_reference"]
        image = self.guard.image(person.path, "input_reference", sha256=person.sha256)
        if "mask" in media:
            mask = self.guard.image(media["mask"].path, "mask", sha256=media["mask"].sha256)
            if mask != image:
                raise ApiError(
                    400, "mask_size",
                    f"the mask is {mask.width}x{mask.height} and the image {image.width}x{image.height} pixels; give a "
                    "mask of the image's size", "mask"
                )  # fmt: skip
        motion: Medium = "pose_video" if "pose_video" in media else "driving_video"
        facts = self.guard.video(media[motion].path, motion, sha256=media[motion].sha256)
        if start_frame:
            facts = facts.after(start_frame, wish.fps)
        settings = settle(
            wish, facts, is_pose_video=motion == "pose_video", defaults=service.defaults, limits=service.limits
        )
        persons = None
        if motion == "driving_video" and (always_count_persons or service.person_check == "submit"):
            persons = self.guard.persons(person.path, "input_reference", sha256=person.sha256)
            if persons == 0 and not always_count_persons:
                raise ApiError(
                    400, "no_person_in_image", "no person was found in input_reference; give a picture that shows one",
                    "input_reference"
                )  # fmt: skip
        return Looked(settings, dict(media), facts, wish.fps, persons, image)

    def commit(
        self,
        looked: Looked,
        content: str,
        sender: Sender,
        orders: Orders,
        *,
        model: str,
        remixed_from: str | None = None,
    ) -> Video:
        """The job on record, its media its own; QuotaError where its tenant may have no more."""
        if orders.webhook_url is not None and not WebhookSecrets(self.backend.store.engine).of(sender.tenant.id):
            raise ApiError(
                400, "no_webhook_secret", "events are signed, and you have no secret yet: the service's operator makes "
                f"one with `python -m serving webhook secret --tenant {sender.tenant.id}`", "webhook_url"
            )  # fmt: skip
        video_id = new_video_id()
        paths = {name: item.path for name, item in looked.media.items()}
        size = sum(path.stat().st_size for path in paths.values())
        self.backend.blobs.keep_media(video_id, paths)
        now = self.backend.store.clock()
        try:
            video, is_new = self.backend.store.add(
                video_id=video_id,
                model=model,
                settings=looked.settings,
                inputs={name: item.sha256 for name, item in looked.media.items()},
                content_hash=content,
                idempotency_key=sender.idempotency_key,
                remixed_from=remixed_from,
                tenant=sender.tenant.id,
                webhook_url=orders.webhook_url,
                priority=orders.priority,
                queue_deadline_at=_in(orders.max_queue_s, now),
                deadline_at=_in(orders.deadline_s, now),
                traceparent=tracing.current(),
                received_at=sender.received_at,
                retry_within_s=RETRY_WINDOW_S if sender.is_retry else None,
                stored_bytes=size,
                admit=partial(_admit, sender.tenant, size, self.backend.store.gpus),
            )
        except IdempotencyError as problem:
            self.backend.blobs.drop_video(video_id)
            raise _key_reused() from problem
        except BaseException:
            self.backend.blobs.drop_video(video_id)
            raise
        if not is_new:
            # Two requests with one key, or a request and its retry, raced; the other was first.
            self.backend.blobs.drop_video(video_id)
        return video

    @contextmanager
    def received(
        self, sources: Mapping[Any, Source], tenant: Tenant, *, param: str | None = None
    ) -> Iterator[dict[Any, Received]]:
        """The media on our disk while the block runs; those that came with the request are removed after it."""
        media: dict[Any, Received] = {}
        try:
            for name, source in sources.items():
                media[name] = self._receive(source, tenant, param or name)
            yield media
        finally:
            for item in media.values():
                if item.temporary:
                    item.path.unlink(missing_ok=True)

    def _receive(self, source: Source, tenant: Tenant, param: str) -> Received:
        if isinstance(source, FileId):
            upload = self.backend.uploads.get(source.id, tenant.id)
            if upload is None:
                raise ApiError(
                    400, "file_not_found", f"{param} names the file {source.id[:60]!r}, which is not there", param
                )
            return Received(self.backend.blobs.file(upload.id), upload.sha256, temporary=False)
        target = self.backend.blobs.incoming()
        try:
            if isinstance(source, UploadFile):
                return Received(target, self._copy(source.file, target, param), temporary=True)
            if isinstance(source, Url):
                return Received(target, self._fetch(source.text, target, param), temporary=True)
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

    def _fetch(self, url: str, target: Path, param: str) -> str:
        if not self._fetching.acquire(blocking=False):
            raise ApiError(
                429,
                "too_many_fetches",
                f"{FETCHES} media are being fetched by URL already; try again in a moment",
                param,
            )
        try:
            return self._fetcher.fetch(url, target)
        except InputError as problem:
            raise InputError(f"{param}: {problem}", code=problem.code, param=param) from problem
        finally:
            self._fetching.release()

    def keep(self, data: bytes) -> Received:
        """Bytes that we made ourselves, such as a frame of a clip, as a medium; its user removes it."""
        target = self.backend.blobs.incoming()
        target.write_bytes(data)
        return Received(target, hashlib.sha256(data).hexdigest(), temporary=True)


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


def _admit(tenant: Tenant, size: int, gpus: float, connection: Connection, gpu_seconds: float) -> None:
    admit_job(connection, tenant, gpu_seconds=gpu_seconds, added_bytes=size, now=time.time(), gpus=gpus)


def check_key(sender: Sender) -> None:
    """Refuses an Idempotency-Key that cannot be kept."""
    if sender.idempotency_key is not None and not 0 < len(sender.idempotency_key) <= 256:
        raise ApiError(400, "idempotency_key", "Idempotency-Key must have 1 to 256 characters", "Idempotency-Key")


def content_hash(call: str, model: str, wish: Wish, media: Mapping[Any, Received]) -> str:
    """What a request asks for, as one word: equal requests have equal words."""
    content = {"call": call, "model": model, "wish": asdict(wish)}
    content["media"] = {name: item.sha256 for name, item in media.items()}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _in(seconds: float | None, now: float) -> float | None:
    return None if seconds is None else now + seconds


def _key_reused() -> ApiError:
    return ApiError(
        422, "idempotency_key_reused", "this Idempotency-Key stands for a request of other content; use a fresh one",
        "Idempotency-Key"
    )  # fmt: skip
