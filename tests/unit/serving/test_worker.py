"""Dispatcher and worker together, without Ray: jobs in the store become clips, once each, whatever dies."""

import asyncio
import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select

from dynamictrl.media.audio import Sound, add_sound, read_sound
from serving.backend import Backend, open_backend
from serving.config import Defaults, Service
from serving.jobs.database import videos
from serving.jobs.dispatcher import Dispatcher
from serving.jobs.job import Settings, Status
from serving.jobs.store import Video, new_video_id
from serving.recipes import mini
from serving.rendering.engine import EngineLost
from serving.rendering.worker import Worker
from serving.results.blobs import RESULTS, Blobs
from serving.results.local_storage import LocalStorage
from serving.results.provenance import read_credentials
from serving.results.storage import away
from serving.tenants.keyring import Keyring
from tests.unit.serving.malformed.videos import video

SETTINGS = Settings(
    prompt="p", width=64, height=96, num_frames=9, fps=12.0, resample=False, num_inference_steps=3, guidance_scale=3.0,
    seed=1
)  # fmt: skip


@pytest.fixture(scope="module")
def service(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Service:
    return replace(
        mini(), model=str(tiny_model), data_folder=tmp_path_factory.mktemp("data"), threads=1, lease_s=1.0,
        defaults=Defaults(width=64, height=96)
    )  # fmt: skip


@pytest.fixture(scope="module")
def worker(service: Service):
    worker = Worker(open_backend(service))
    yield worker
    worker.leave()


@pytest.fixture
def backend(worker: Worker) -> Backend:
    return worker.backend


def add(backend: Backend, person_and_pose: tuple[Path, Path], **changes: object) -> Video:
    video_id = new_video_id()
    backend.blobs.keep_media(video_id, {"input_reference": person_and_pose[0], "pose_video": person_and_pose[1]})
    video, _ = backend.store.add(
        video_id=video_id, model="dynamictrl", settings=replace(SETTINGS, **changes), content_hash=video_id,
        inputs={"input_reference": "0", "pose_video": "0"}
    )  # fmt: skip
    return video


def now(backend: Backend, video: Video) -> Video:
    found = backend.store.get(video.id)
    assert found is not None
    return found


def rendered(worker: Worker, attempts: int = 3) -> str:
    lease = worker.backend.store.lease("test", 60.0, attempts)
    assert lease is not None
    return worker.render(lease.video.id, lease.token)


def test_a_job_becomes_a_clip(worker: Worker, backend: Backend, person_and_pose: tuple[Path, Path]):
    video = add(backend, person_and_pose)
    assert rendered(worker) == "completed"
    done = now(backend, video)
    assert (done.status, done.progress, done.model_version) == (Status.COMPLETED, 100, worker.model.version)
    assert backend.blobs.result(video.id, done.result_token or 0, "video").stat().st_size > 500


def test_a_medium_that_is_damaged_further_in_fails_its_job_with_a_code(
    worker: Worker, backend: Backend, person_and_pose: tuple[Path, Path], tmp_path: Path
):
    """The first frame is all that a submit looks at; what comes after it is found out in the guarded process."""
    damaged = tmp_path / "damaged.mp4"
    whole = video(frames=24, fast_start=True)
    damaged.write_bytes(whole[: whole.index(b"mdat") + 4 + 12_000] + b"\xff" * 30_000)
    facts = worker.decoder.video(damaged, "pose_video")
    assert (facts.width, facts.height) == (64, 96)
    job = add(backend, (person_and_pose[0], damaged))
    assert rendered(worker) == "failed"
    failed = now(backend, job)
    assert failed.error_code == "decode_error"
    assert failed.error_message is not None
    assert str(backend.blobs.root) not in failed.error_message


def test_a_clip_keeps_the_driving_videos_sound_where_that_is_asked_for(
    worker: Worker, backend: Backend, person_and_pose: tuple[Path, Path], tmp_path: Path
):
    person, pose = person_and_pose
    with_sound = tmp_path / "pose.mp4"
    with_sound.write_bytes(pose.read_bytes())
    add_sound(with_sound, Sound(np.sin(np.arange(44100 * 2, dtype=np.float32) / 20)[None] / 2, 44100))
    heard = []
    for keep in (True, False):
        video = add(backend, (person, with_sound), keep_audio=keep)
        assert rendered(worker) == "completed"
        done = now(backend, video)
        sound = read_sound(backend.blobs.result(video.id, done.result_token or 0, "video"), seconds=9 / 12)
        heard.append(None if sound is None else (sound.samples.shape, sound.rate, bool(sound.samples.any())))
    assert heard == [((1, round(9 / 12 * 44100)), 44100, True), None]

    silent = add(backend, person_and_pose, keep_audio=True)
    assert rendered(worker) == "completed"
    assert now(backend, silent).status is Status.COMPLETED


def test_a_users_fault_fails_the_job_with_its_code(
    worker: Worker, backend: Backend, person_and_pose: tuple[Path, Path]
):
    video = add(backend, person_and_pose, num_frames=41)
    assert rendered(worker) == "failed"
    failed = now(backend, video)
    assert (failed.status, failed.error_code) == (Status.FAILED, "too_few_frames")
    assert str(backend.blobs.root) not in (failed.error_message or "")
    assert not [child for child in backend.blobs.video(video.id).iterdir() if child.is_dir()]


def in_background(worker: Worker, backend: Backend) -> tuple[threading.Thread, list[str]]:
    lease = backend.store.lease("test", 60.0, 3)
    assert lease is not None
    outcome: list[str] = []
    thread = threading.Thread(target=lambda: outcome.append(worker.render(lease.video.id, lease.token)))
    thread.start()
    deadline = time.monotonic() + 20
    while now(backend, lease.video).stage != "denoising" and time.monotonic() < deadline:
        time.sleep(0.01)
    return thread, outcome


def test_a_cancelled_job_stops_and_only_then_says_so(
    worker: Worker, backend: Backend, person_and_pose: tuple[Path, Path]
):
    video = add(backend, person_and_pose, num_inference_steps=100)
    thread, outcome = in_background(worker, backend)
    assert backend.store.cancel(video.id).status is Status.IN_PROGRESS  # type: ignore[union-attr]
    started = time.monotonic()
    thread.join(10)
    assert outcome == ["cancelled"]
    assert time.monotonic() - started < 3
    assert now(backend, video).status is Status.CANCELLED


def test_a_job_deleted_while_it_runs_leaves_no_byte(
    worker: Worker, backend: Backend, person_and_pose: tuple[Path, Path]
):
    video = add(backend, person_and_pose, num_inference_steps=100)
    thread, outcome = in_background(worker, backend)
    backend.store.delete(video.id)
    thread.join(10)
    assert outcome == ["lost"]
    assert not backend.blobs.video(video.id).exists()


def test_a_job_that_takes_too_long_ends(worker: Worker, backend: Backend, person_and_pose: tuple[Path, Path]):
    impatient = replace(worker.backend, service=replace(backend.service, longest_job_s=1.0, lease_s=1.0))
    worker.backend, kept = impatient, worker.backend
    try:
        video = add(backend, person_and_pose, num_inference_steps=100, num_frames=17)
        object.__setattr__(impatient.service, "longest_job_s", 0.0)
        assert rendered(worker) == "failed"
    finally:
        worker.backend = kept
    assert now(backend, video).error_code == "job_too_long"


async def finished(backend: Backend, videos: list[Video], seconds: float = 30) -> list[Video]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = [now(backend, video) for video in videos]
        if all(video.status.is_final for video in found):
            return found
        await asyncio.sleep(0.05)
    raise AssertionError([(v.status, v.stage) for v in found])


def test_a_worker_whose_job_hangs_says_that_it_must_be_replaced(
    worker: Worker, backend: Backend, person_and_pose: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
):
    worker.check_health()
    monkeypatch.setattr("serving.rendering.worker.LATE_S", 0.05 - backend.service.longest_job_s)
    add(backend, person_and_pose, num_inference_steps=8)
    thread, outcome = in_background(worker, backend)
    said = ""
    while thread.is_alive() and not said:
        try:
            worker.check_health()
        except EngineLost as problem:
            said = str(problem)
    thread.join()
    assert "for more than 0.05 s" in said
    assert outcome == ["completed"]
    worker.check_health()


def test_a_dispatcher_brings_every_queued_job_to_the_worker(
    worker: Worker, backend: Backend, person_and_pose: tuple[Path, Path]
):
    videos = [add(backend, person_and_pose, seed=seed) for seed in range(3)]

    async def serve() -> list[Video]:
        dispatcher = Dispatcher(backend, lambda *job: asyncio.to_thread(worker.render, *job))
        dispatcher.start()
        found = await finished(backend, videos)
        assert await dispatcher.drain(1.0) == 0
        return found

    assert {video.status for video in asyncio.run(serve())} == {Status.COMPLETED}


def test_a_worker_that_dies_is_replaced_and_its_job_rendered_once(
    worker: Worker, backend: Backend, person_and_pose: tuple[Path, Path]
):
    video = add(backend, person_and_pose)
    calls: list[int] = []

    async def render(video_id: str, token: int) -> str:
        calls.append(token)
        if len(calls) == 1:
            raise RuntimeError("the replica died")
        return await asyncio.to_thread(worker.render, video_id, token)

    async def serve() -> list[Video]:
        dispatcher = Dispatcher(backend, render)
        dispatcher.start()
        found = await finished(backend, [video])
        await dispatcher.drain(1.0)
        return found

    (done,) = asyncio.run(serve())
    assert (done.status, done.attempts, calls) == (Status.COMPLETED, 2, [1, 2])


def test_a_job_that_kills_every_worker_is_given_up(backend: Backend, person_and_pose: tuple[Path, Path]):
    video = add(backend, person_and_pose)

    async def render(video_id: str, token: int) -> str:
        raise RuntimeError("the replica died")

    async def serve() -> list[Video]:
        dispatcher = Dispatcher(backend, render)
        dispatcher.start()
        found = await finished(backend, [video])
        await dispatcher.drain(1.0)
        return found

    (dead,) = asyncio.run(serve())
    assert (dead.status, dead.error_code, dead.attempts) == (Status.FAILED, "too_many_attempts", 3)


def test_a_drain_gives_back_what_is_not_done_in_time(backend: Backend, person_and_pose: tuple[Path, Path]):
    video = add(backend, person_and_pose)

    async def render(video_id: str, token: int) -> str:
        await asyncio.sleep(60)
        return "never"

    async def serve() -> int:
        dispatcher = Dispatcher(backend, render)
        dispatcher.start()
        while now(backend, video).status is not Status.IN_PROGRESS:
            await asyncio.sleep(0.02)
        return await dispatcher.drain(0.1)

    assert asyncio.run(serve()) == 1
    back = now(backend, video)
    assert (back.status, back.attempts) == (Status.QUEUED, 0)
    backend.store.cancel(video.id)


def test_leftovers_of_crashes_are_swept_but_nothing_young(backend: Backend):
    import os

    old, young = backend.blobs.incoming(), backend.blobs.incoming()
    orphan = backend.blobs.video(new_video_id())
    for path in (old, young):
        path.write_bytes(b"x")
    orphan.mkdir()
    for path in (old, orphan):
        os.utime(path, (1, 1))
    backend.blobs.sweep(backend.store.ids(), [])
    assert (old.exists(), orphan.exists(), young.exists()) == (False, False, True)


def test_an_expired_clip_is_removed_and_its_job_stays_on_record(
    worker: Worker, backend: Backend, person_and_pose: tuple[Path, Path]
):
    video = add(backend, person_and_pose)
    lease = backend.store.lease("test", 60.0, 3)
    assert lease is not None
    backend.store.complete(video.id, lease.token, model_version="v", expires_at=time.time() - 1)
    Dispatcher(backend, lambda *_: asyncio.sleep(0, "")).housekeep()
    assert not backend.blobs.video(video.id).exists()
    assert (now(backend, video).status, now(backend, video).stage) == (Status.COMPLETED, "expired")
    assert backend.store.expired() == []


def test_a_clip_is_signed_and_its_manifest_and_bytes_are_on_record(
    worker: Worker, backend: Backend, person_and_pose: tuple[Path, Path]
):
    video = add(backend, person_and_pose)
    assert rendered(worker) == "completed"
    done = now(backend, video)
    clip = backend.blobs.result(video.id, done.result_token or 0, "video")
    found = read_credentials(clip)
    assert found is not None
    assert (found.is_intact, found.rendering["job"]) == (True, video.id)
    manifest = json.loads(done.manifest or "")
    assert (manifest["model"]["version"], manifest["settings"]["seed"]) == (worker.model.version, 1)
    assert (manifest["engine"]["device"], manifest["engine"]["threads"]) == ("cpu", 1)
    with backend.store.engine.connect() as connection:
        kept = connection.execute(select(videos.c.stored_bytes).where(videos.c.id == video.id)).scalar_one()
    assert kept == sum(path.stat().st_size for path in clip.parent.iterdir())


def test_with_a_bucket_a_worker_fetches_inputs_and_stores_results_there_and_keeps_nothing(
    worker: Worker, backend: Backend, person_and_pose: tuple[Path, Path], bucket: str, tmp_path: Path
):
    remote = replace(backend, blobs=Blobs(tmp_path / "data", bucket))
    worker.backend = remote
    try:
        video = add(remote, person_and_pose)
        assert rendered(worker) == "completed"
    finally:
        worker.backend = backend
    token = now(backend, video).result_token
    keys = {stored.key.split("/", 2)[2] for stored in remote.blobs.storage.walk(f"videos/{video.id}/")}
    assert keys == {"input_reference", "pose_video", *(f"{token}/{name}" for name, _ in RESULTS.values())}
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert read_credentials(remote.blobs.result(video.id, token or 0, "video")) is not None
    backend.store.delete(video.id)


def test_storage_that_is_away_puts_a_job_off_and_it_is_rendered_when_it_is_back(
    worker: Worker, backend: Backend, person_and_pose: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
):
    class Away(LocalStorage):
        """A folder that could not be written to for a while."""

        def adopt(self, source: Path, key: str, *, content_type: str = "") -> None:
            raise away("the disk is full")

    video = add(backend, person_and_pose)
    monkeypatch.setattr(backend.blobs, "storage", Away(backend.blobs.root))
    assert rendered(worker) == "put off"
    waits = now(backend, video)
    assert (waits.status, waits.attempts, waits.error_code) == (Status.QUEUED, 0, None)
    assert waits.not_before is not None
    assert time.time() + 5 < waits.not_before < time.time() + 11
    monkeypatch.undo()
    monkeypatch.setattr(backend.store, "clock", lambda: time.time() + 12)
    assert rendered(worker) == "completed"


def test_a_tenants_clips_are_kept_as_long_as_is_set_for_him(
    worker: Worker, backend: Backend, person_and_pose: tuple[Path, Path]
):
    Keyring(backend.store.engine).set_quotas("local", {"keep_clips_s": 3600.0})
    try:
        video = add(backend, person_and_pose)
        assert rendered(worker) == "completed"
    finally:
        Keyring(backend.store.engine).set_quotas("local", {"keep_clips_s": 0.0})
    done = now(backend, video)
    assert done.expires_at is not None
    assert 3500 < done.expires_at - time.time() < 3601
