"""Bytes on the disk and in a bucket: the same answers from both, and nothing left where something was deleted."""

import contextlib
import json
import logging
import os
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
import uvicorn
from starlette.testclient import TestClient

from dynamictrl.errors import ConfigError, StoreError
from serving.backend import Backend, open_backend
from serving.config import Service
from serving.jobs.job import Settings
from serving.recipes import mini
from serving.results import bucket_storage
from serving.results.blobs import Blobs, new_id
from serving.results.storage import Storage
from serving.web.api import build_api

SETTINGS = Settings(
    prompt="p", width=64, height=96, num_frames=9, fps=12.0, resample=False, num_inference_steps=3, guidance_scale=3.0,
    seed=1
)  # fmt: skip
CLIP = bytes(range(256)) * 40


@pytest.fixture(params=["disk", "bucket"])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Service:
    storage = "" if request.param == "disk" else request.getfixturevalue("bucket")
    return replace(mini(), data_folder=tmp_path / "data", storage=storage)


@pytest.fixture
def backend(service: Service) -> Backend:
    return open_backend(service)


@pytest.fixture
def http(service: Service, backend: Backend) -> TestClient:
    api = build_api(service, backend)
    return TestClient(api, base_url="http://127.0.0.1:8000", raise_server_exceptions=False, follow_redirects=False)


def finished(backend: Backend, tmp_path: Path, expires_in: float = 60.0) -> tuple[str, int]:
    """A completed job with inputs and results, made as intake and a worker make them."""
    video_id = new_id("video")
    (tmp_path / "in.png").write_bytes(b"person")
    backend.blobs.keep_media(video_id, {"input_reference": tmp_path / "in.png"})
    backend.store.add(video_id=video_id, model="m", settings=SETTINGS, inputs={"input_reference": "0"}, content_hash="")
    lease = backend.store.lease("test", 60.0, 3)
    assert lease is not None
    folder = backend.blobs.attempt(video_id, lease.token)
    folder.mkdir(parents=True)
    for name in ("video.mp4", "thumbnail.webp", "spritesheet.jpg"):
        (folder / name).write_bytes(CLIP)
    assert backend.blobs.publish(video_id, lease.token) == 3 * len(CLIP)
    backend.blobs.drop_attempts(video_id, lease.token)
    assert backend.store.complete(video_id, lease.token, model_version="v", expires_at=time.time() + expires_in)
    return video_id, lease.token


def everything(backend: Backend) -> set[str]:
    """Every byte's place: objects, and files on this machine outside the job store."""
    storage = backend.blobs.storage
    stored = {item.key for prefix in ("videos/", "files/", "incoming/") for item in storage.walk(prefix)}
    here = {str(path.relative_to(backend.blobs.root)) for path in backend.blobs.root.rglob("*") if path.is_file()}
    return stored | {name for name in here if not name.startswith("jobs.db")}


def test_a_file_comes_back_from_the_storage_as_it_went_in(backend: Backend, tmp_path: Path):
    storage: Storage = backend.blobs.storage
    (tmp_path / "a").write_bytes(CLIP)
    storage.adopt(tmp_path / "a", "files/x/a", content_type="video/mp4")
    stored = storage.look("files/x/a")
    assert stored is not None
    assert (stored.key, stored.size, stored.etag[0], abs(stored.modified - time.time()) < 60) == (
        "files/x/a", len(CLIP), '"', True
    )  # fmt: skip
    assert b"".join(storage.read(stored, 5, 900)) == CLIP[5:900]
    storage.copy("files/x/a", "files/x/b")
    storage.fetch("files/x/b", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == CLIP
    assert {item.key for item in storage.walk("files/x/")} == {"files/x/a", "files/x/b"}
    storage.drop(["files/x/a", "files/x/b", "files/x/never"])
    assert (storage.look("files/x/a"), list(storage.walk("files/"))) == (None, [])
    for missing in (lambda: storage.copy("files/no", "files/x"), lambda: storage.fetch("files/no", tmp_path / "c")):
        with pytest.raises(FileNotFoundError):
            missing()
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("headers", "status", "span"),
    [
        ({}, 200, (0, 10240)),
        ({"range": "bytes=4-7"}, 206, (4, 8)),
        ({"range": "bytes=10000-"}, 206, (10000, 10240)),
        ({"range": "bytes=-100"}, 206, (10140, 10240)),
        ({"range": "bytes=-99999"}, 206, (0, 10240)),
        ({"range": "bytes=0-999999"}, 206, (0, 10240)),
        ({"range": "bytes=10240-"}, 416, None),
        ({"range": "bytes=-0"}, 416, None),
        ({"range": "bytes=7-4"}, 200, (0, 10240)),
        ({"range": "bytes=0-1,5-6"}, 200, (0, 10240)),
        ({"range": "lines=1-2"}, 200, (0, 10240)),
        ({"range": "bytes=²-4"}, 200, (0, 10240)),
        ({"range": "bytes=4-7", "if-range": "ETAG"}, 206, (4, 8)),
        ({"range": "bytes=4-7", "if-range": '"another"'}, 200, (0, 10240)),
        ({"range": "bytes=4-7", "if-range": "DATE"}, 206, (4, 8)),
        ({"if-none-match": "ETAG"}, 304, None),
        ({"if-none-match": '"another"'}, 200, (0, 10240)),
    ],
)
def test_ranges_and_conditions_are_answered_as_rfc_9110_says(
    http: TestClient,
    backend: Backend,
    tmp_path: Path,
    headers: dict[str, str],
    status: int,
    span: tuple[int, int] | None,
):
    url = f"/v1/videos/{finished(backend, tmp_path)[0]}/content"
    head = http.head(url)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "10240")
    assert (head.headers["accept-ranges"], head.headers["cache-control"]) == ("bytes", "private, no-cache")
    named = {"ETAG": head.headers["etag"], "DATE": head.headers["last-modified"]}
    raw = [(name, named.get(value, value).encode("latin-1", "replace")) for name, value in headers.items()]
    answer = http.get(url, headers=[(name.encode(), value) for name, value in raw])
    assert answer.status_code == status
    if span is not None:
        assert answer.content == CLIP[slice(*span)]
        assert answer.headers["content-length"] == str(span[1] - span[0])
        assert answer.headers.get("content-range") == (
            f"bytes {span[0]}-{span[1] - 1}/10240" if status == 206 else None
        )
    if status == 416:
        assert (answer.headers["content-range"], answer.json()["error"]["code"]) == (
            "bytes */10240", "range_not_satisfiable"
        )  # fmt: skip


def test_deleting_a_job_and_a_file_leaves_not_one_byte(http: TestClient, backend: Backend, tmp_path: Path):
    before = everything(backend)
    sent = http.post("/v1/files", files={"file": ("motion.mp4", CLIP)}).json()
    assert http.get(f"/v1/files/{sent['id']}/content").content == CLIP
    backend.blobs.file(sent["id"])
    video_id, token = finished(backend, tmp_path)
    assert backend.blobs.result(video_id, token, "video").read_bytes() == CLIP
    assert backend.blobs.medium(video_id, "input_reference").read_bytes() == b"person"
    assert len(everything(backend) - before) >= 5
    assert http.delete(f"/v1/videos/{video_id}").status_code == 200
    assert http.delete(f"/v1/files/{sent['id']}").status_code == 200
    assert everything(backend) == before
    assert http.get(f"/v1/videos/{video_id}/content").status_code == 404


def test_a_job_has_its_own_copy_of_a_file_that_was_sent_ahead(backend: Backend, tmp_path: Path):
    (tmp_path / "sent").write_bytes(CLIP)
    file_id, video_id = new_id("file"), new_id("video")
    backend.blobs.keep_file(file_id, tmp_path / "sent")
    backend.blobs.keep_media(video_id, {"driving_video": backend.blobs.file(file_id)})
    backend.blobs.drop_file(file_id)
    assert not backend.blobs.file(file_id).exists()
    assert backend.blobs.medium(video_id, "driving_video").read_bytes() == CLIP


def test_only_the_committed_attempt_stays(backend: Backend, tmp_path: Path):
    video_id, token = finished(backend, tmp_path)
    late = backend.blobs.attempt(video_id, token + 1)
    late.mkdir(parents=True)
    (late / "video.mp4").write_bytes(b"late")
    backend.blobs.publish(video_id, token + 1)
    backend.blobs.drop_attempts(video_id, token)
    keys = {stored.key for stored in backend.blobs.storage.walk(f"videos/{video_id}/")}
    assert {key.split("/")[2] for key in keys} == {"input_reference", str(token)}
    assert len(keys) == 4


def test_the_sweep_takes_old_orphans_and_nothing_that_is_known_or_young(backend: Backend, tmp_path: Path):
    video_id, _ = finished(backend, tmp_path)
    (tmp_path / "x").write_bytes(b"x")
    kept = new_id("file")
    backend.blobs.keep_file(kept, tmp_path / "x")
    orphans = [new_id("video"), new_id("video")], [new_id("file")]
    for orphan in orphans[0]:
        backend.blobs.keep_media(orphan, {"mask": tmp_path / "x"})
    for orphan in orphans[1]:
        backend.blobs.keep_file(orphan, tmp_path / "x")
    before = everything(backend)
    backend.blobs.sweep([video_id], [kept])
    assert everything(backend) == before
    backend.blobs._next_bucket_sweep = 0.0
    backend.blobs.sweep([video_id], [kept], older_than_s=-60)
    assert {key.split("/")[1] for key in everything(backend) if not key.startswith("incoming")} == {video_id, kept}


def test_a_signed_url_is_answered_only_where_it_is_asked_for_and_there_is_one(
    service: Service, backend: Backend, tmp_path: Path
):
    video_id, _ = finished(backend, tmp_path)
    signing = replace(service, presign=True)
    http = TestClient(build_api(signing, replace(backend, service=signing)), follow_redirects=False)
    answer = http.get(f"http://127.0.0.1:8000/v1/videos/{video_id}/content")
    if not service.storage:
        assert (answer.status_code, answer.content) == (200, CLIP)
        return
    assert (answer.status_code, answer.headers["cache-control"]) == (307, "private, no-store")
    with urllib.request.urlopen(answer.headers["location"], timeout=10) as direct:
        assert (direct.read(), direct.headers["content-type"]) == (CLIP, "video/mp4")
    assert http.head(f"http://127.0.0.1:8000/v1/videos/{video_id}/content").status_code == 200


@contextlib.contextmanager
def listening(service: Service, backend: Backend) -> Iterator[str]:
    """The URL of the service under a real web server; no worker."""
    server = uvicorn.Server(uvicorn.Config(build_api(service, backend), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
@pytest.mark.parametrize("presign", [False, True])
def test_the_stock_client_downloads_a_clip_passed_through_or_by_a_signed_url(
    tmp_path: Path, bucket: str, presign: bool
):
    service = replace(mini(), data_folder=tmp_path / "data", storage=bucket, presign=presign)
    backend = open_backend(service)
    video_id, _ = finished(backend, tmp_path)
    with listening(service, backend) as url, openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        assert client.videos.download_content(video_id).read() == CLIP
        assert client.videos.download_content(video_id, variant="thumbnail").read() == CLIP
        answer = client.videos.with_raw_response.download_content(video_id, extra_headers={"range": "bytes=4-7"})
        assert (answer.http_response.read(), len(answer.http_response.history)) == (CLIP[4:8], int(presign))
        sent = client.files.create(file=("motion.mp4", CLIP), purpose="user_data")
        assert client.files.content(sent.id).read() == CLIP
        client.videos.delete(video_id)
        with pytest.raises(openai.NotFoundError):
            client.videos.download_content(video_id)


def test_storage_that_is_away_is_a_503_and_nobodys_fault(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(bucket_storage, "RETRIES", 0)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        service = replace(mini(), data_folder=tmp_path, storage=bucket)
        backend = open_backend(service)
        http = TestClient(build_api(service, backend), base_url="http://127.0.0.1:8000", raise_server_exceptions=False)
        with caplog.at_level(logging.CRITICAL):
            answer = http.post("/v1/files", files={"file": ("motion.mp4", CLIP)})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "storage_away")
    assert answer.headers["retry-after"] == "5"
    assert json.loads(http.get("/v1/files").text)["data"] == []
    with pytest.raises(StoreError, match="again later"):
        backend.blobs.storage.look("files/x")


@pytest.mark.parametrize("url", ["ftp://x/y", "s3:/bucket", "/folder"])
def test_a_storage_that_is_no_bucket_is_refused_with_its_value(url: str, tmp_path: Path):
    with pytest.raises(ConfigError, match="s3://BUCKET/PREFIX") as refused:
        replace(mini(), data_folder=tmp_path, storage=url)
    assert refused.value.code == "storage"


def test_copies_on_this_machine_are_forgotten_an_hour_after_their_last_use(tmp_path: Path, bucket: str):
    blobs = Blobs(tmp_path / "data", bucket)
    (tmp_path / "x").write_bytes(CLIP)
    ids: list[Any] = [new_id("file"), new_id("file")]
    for file_id in ids:
        blobs.keep_file(file_id, tmp_path / "x")
    old, young = (blobs.file(file_id) for file_id in ids)
    os.utime(old, (1, 1))
    blobs.sweep([], ids)
    assert (old.exists(), young.exists()) == (False, True)
    assert blobs.file(ids[0]).read_bytes() == CLIP
