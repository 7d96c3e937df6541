"""The HTTP surface without Ray: shapes, refusals, keys, idempotency, ranges, events; clips by a tiny model."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from serving.backend import Backend, open_backend
from serving.config import Defaults, Limits, Service
from serving.recipes import mini
from serving.rendering.worker import Worker
from serving.web.api import build_api

URL = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def service(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Service:
    return replace(
        mini(), model=str(tiny_model), data_folder=tmp_path_factory.mktemp("data"), threads=1,
        defaults=Defaults(width=64, height=96, num_inference_steps=2), person_check="render",
        limits=Limits(body_bytes=2_000_000, media_bytes=1_000_000, data_url_bytes=400_000)
    )  # fmt: skip


@pytest.fixture(scope="module")
def backend(service: Service) -> Backend:
    return open_backend(service)


@pytest.fixture(scope="module")
def http(service: Service, backend: Backend) -> Iterator[TestClient]:
    with TestClient(build_api(service, backend), base_url=URL, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def worker(backend: Backend) -> Iterator[Worker]:
    worker = Worker(backend)
    yield worker
    worker.leave()


@pytest.fixture
def media(person_and_pose: tuple[Path, Path]) -> dict[str, tuple[str, bytes]]:
    person, pose = person_and_pose
    return {"input_reference": ("p.png", person.read_bytes()), "pose_video": ("m.mp4", pose.read_bytes())}


def render_all(worker: Worker) -> None:
    while lease := worker.backend.store.lease("test", 60.0, 3):
        worker.render(lease.video.id, lease.token)


def created(http: TestClient, media: dict[str, Any], headers: dict[str, str] | None = None, **fields: str) -> Any:  # noqa: ANN401
    answer = http.post("/v1/videos", data={"prompt": "p", **fields}, files=media, headers=headers or {})
    assert answer.status_code == 200, answer.text
    return answer.json()


def refusal(answer: Any) -> tuple[int, str, str | None]:  # noqa: ANN401
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["type"]
    return answer.status_code, error["code"], error["param"]


def test_a_job_has_every_field_of_the_videos_api(http: TestClient, media: dict[str, Any]):
    video = created(http, media, seconds="0.75", seed="7", model="dynamictrl")
    assert {
        "object": "video", "status": "queued", "progress": 0, "model": "dynamictrl", "prompt": "p", "size": "64x96",
        "seconds": "0.75", "num_frames": 9, "seed": 7, "fps": 12.0, "error": None, "remixed_from_video_id": None,
        "completed_at": None, "expires_at": None, "quality": "exact", "stage": "queued"
    }.items() <= video.items()  # fmt: skip
    assert video["queue_position"] >= 1
    answer = http.get(f"/v1/videos/{video['id']}")
    assert answer.json()["id"] == video["id"]
    assert int(answer.headers["openai-poll-after-ms"]) >= 200
    assert answer.headers["x-request-id"].startswith("req_")


def test_a_job_is_rendered_downloaded_in_ranges_remixed_and_deleted(
    http: TestClient, media: dict[str, Any], worker: Worker, backend: Backend
):
    video = created(http, media, num_frames="5")
    not_yet = http.get(f"/v1/videos/{video['id']}/content")
    assert refusal(not_yet) == (400, "video_not_ready", "video_id")
    render_all(worker)
    done = http.get(f"/v1/videos/{video['id']}").json()
    assert (done["status"], done["progress"], done["queue_position"]) == ("completed", 100, None)
    assert done["expires_at"] > done["completed_at"] >= done["created_at"]
    whole = http.get(f"/v1/videos/{video['id']}/content")
    assert whole.headers["content-type"] == "video/mp4"
    part = http.get(f"/v1/videos/{video['id']}/content", headers={"range": "bytes=4-7"})
    assert (part.status_code, part.content) == (206, b"ftyp")
    assert http.get(f"/v1/videos/{video['id']}/content?variant=thumbnail").content[8:12] == b"WEBP"
    assert http.get(f"/v1/videos/{video['id']}/content?variant=spritesheet").content[:2] == b"\xff\xd8"
    assert refusal(http.get(f"/v1/videos/{video['id']}/content?variant=gif")) == (400, "invalid_value", "variant")

    remix = http.post(f"/v1/videos/{video['id']}/remix", json={"prompt": "other"}).json()
    assert (remix["remixed_from_video_id"], remix["prompt"], remix["seed"]) == (video["id"], "other", done["seed"])
    assert http.delete(f"/v1/videos/{video['id']}").json() == {
        "id": video["id"], "object": "video.deleted", "deleted": True
    }  # fmt: skip
    assert not backend.blobs.video(video["id"]).exists()
    assert refusal(http.get(f"/v1/videos/{video['id']}")) == (404, "video_not_found", "video_id")
    render_all(worker)
    assert http.get(f"/v1/videos/{remix['id']}").json()["status"] == "completed"


def test_files_sent_ahead_and_data_urls_do_for_media(http: TestClient, media: dict[str, Any], backend: Backend):
    sent = http.post("/v1/files", files={"file": media["pose_video"]}, data={"purpose": "user_data"}).json()
    assert (sent["object"], sent["filename"], sent["bytes"]) == ("file", "m.mp4", len(media["pose_video"][1]))
    picture = "data:image/png;base64," + base64.b64encode(media["input_reference"][1]).decode()
    body = {"prompt": "p", "input_reference": {"url": picture}, "pose_video": {"file_id": sent["id"]}}
    video = http.post("/v1/videos", json=body).json()
    assert http.delete(f"/v1/files/{sent['id']}").json()["deleted"] is True
    assert refusal(http.get(f"/v1/files/{sent['id']}")) == (404, "file_not_found", "file_id")
    assert backend.blobs.medium(video["id"], "pose_video").is_file()  # the job has its own
    assert refusal(http.post("/v1/videos", json=body)) == (400, "file_not_found", "pose_video")


def test_files_are_listed_and_read(http: TestClient):
    ids = [http.post("/v1/files", files={"file": ("a", b"abc")}).json()["id"] for _ in range(3)]
    page = http.get("/v1/files?limit=2").json()
    assert ([f["id"] for f in page["data"]], page["has_more"]) == (ids[:0:-1], True)
    assert http.get(f"/v1/files?limit=2&after={page['last_id']}").json()["data"][0]["id"] == ids[0]
    assert http.get(f"/v1/files/{ids[0]}/content").content == b"abc"


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"size": "big"}, "bad_size", "size"),
        ({"size": "65x96"}, "bad_size", "size"),
        ({"num_frames": "ten"}, "invalid_value", "num_frames"),
        ({"num_frames": "10"}, "bad_num_frames", "num_frames"),
        ({"num_frames": "161"}, "too_few_frames", "num_frames"),
        ({"num_inference_steps": "0"}, "bad_num_inference_steps", "num_inference_steps"),
        ({"quality": "sloppy"}, "quality", "quality"),
        ({"seed": "-1"}, "bad_seed", "seed"),
        ({"wait": "1000"}, "bad_wait", "wait"),
        ({"wait": "nan"}, "invalid_value", "wait"),
        ({"webhook_url": "ftp://example.com"}, "url_scheme", "webhook_url"),
        ({"steps": "3"}, "unknown_parameter", "steps"),
        ({"prompt": ""}, "invalid_value", "prompt"),
        ({"driving_video": "https://example.com/v.mp4"}, "url_not_enabled", "driving_video"),
        ({"mask": "b'abc'"}, "bytes_as_text", "mask"),
    ],
)
def test_a_bad_field_is_a_400_that_names_it(
    http: TestClient, media: dict[str, Any], fields: dict[str, str], code: str, param: str
):
    answer = http.post("/v1/videos", data={"prompt": "p", **fields}, files=media)
    assert refusal(answer) == (400, code, param)


def test_missing_and_broken_media_are_refused(http: TestClient, media: dict[str, Any]):
    def post(files: dict[str, Any]) -> tuple[int, str, str | None]:
        return refusal(http.post("/v1/videos", data={"prompt": "p"}, files=files))

    assert post({"pose_video": media["pose_video"]}) == (400, "missing_input_reference", "input_reference")
    assert post({"input_reference": media["input_reference"]}) == (400, "missing_video", "driving_video")
    assert post({**media, "driving_video": media["pose_video"]}) == (400, "two_videos", "pose_video")
    assert post({**media, "input_reference": ("a.png", b"no picture")})[::2] == (400, "input_reference")
    assert post({**media, "pose_video": ("a.mp4", b"no video")})[::2] == (400, "pose_video")
    assert post({**media, "mask": media["pose_video"]})[::2] == (400, "mask")
    assert post({**media, "pose_video": ("a.mp4", b"")}) == (400, "empty_file", "pose_video")
    assert post({**media, "pose_video": ("a.mp4", b"0" * 1_100_000)}) == (413, "too_large", "pose_video")


def test_what_is_no_request_of_ours_is_refused_in_the_same_shape(http: TestClient):
    assert refusal(http.get("/v1/nothing")) == (404, "unknown_route", None)
    assert refusal(http.put("/v1/videos")) == (405, "method_not_allowed", None)
    assert refusal(http.post("/v1/videos", content=b"x", headers={"content-type": "text/plain"}))[0] == 415
    assert (
        refusal(http.post("/v1/videos", content=b"{", headers={"content-type": "application/json"}))[1]
        == "invalid_json"
    )
    assert refusal(http.post("/v1/videos", json=[1]))[1] == "invalid_json"
    assert refusal(http.post("/v1/videos", json={})) == (400, "missing_parameter", "prompt")
    broken = http.post("/v1/videos", content=b"--x\r\nnot a part", headers={"content-type": "multipart/form-data"})
    assert refusal(broken)[0] == 400
    assert refusal(http.get("/v1/videos?limit=0")) == (400, "invalid_value", "limit")
    assert refusal(http.get("/v1/videos?after=nobody")) == (400, "unknown_cursor", "after")
    assert refusal(http.get("/v1/videos/..%2f..%2fetc%2fpasswd"))[0] == 404
    assert refusal(http.get("/v1/files/..%2f..%2fetc"))[0] == 404


def test_a_body_over_the_limit_is_refused_whether_it_says_its_length_or_not(http: TestClient):
    assert refusal(http.post("/v1/files", content=b"0" * 2_100_000))[:2] == (413, "body_too_large")

    def stream() -> Iterator[bytes]:
        for _ in range(30):
            yield b"0" * 100_000

    kind = {"content-type": "multipart/form-data; boundary=x"}
    assert refusal(http.post("/v1/files", content=stream(), headers=kind))[:2] == (413, "body_too_large")


def test_an_idempotency_key_gives_the_same_job_and_refuses_another_request(http: TestClient, media: dict[str, Any]):
    key = {"Idempotency-Key": "one"}
    first = created(http, media, headers=key)
    assert created(http, media, headers=key)["id"] == first["id"]
    other = http.post("/v1/videos", data={"prompt": "other"}, files=media, headers=key)
    assert refusal(other) == (422, "idempotency_key_reused", "Idempotency-Key")


def test_the_sdks_own_retry_means_the_job_it_made_before(http: TestClient, media: dict[str, Any]):
    first = created(http, media, headers={"x-stainless-retry-count": "0"}, seed="99")
    again = created(http, media, headers={"x-stainless-retry-count": "0"}, seed="99")
    retry = created(http, media, headers={"x-stainless-retry-count": "1"}, seed="99")
    assert first["id"] != again["id"] == retry["id"]


def test_preflight_says_what_a_job_would_come_to_and_keeps_nothing(http: TestClient, media: dict[str, Any]):
    before = len(http.get("/v1/videos?limit=100").json()["data"])
    found = http.post("/v1/videos/preflight", data={"prompt": "p"}, files=media).json()
    assert {"size": "64x96", "num_frames": 17, "fps": 12.0, "frames_available": 17}.items() <= found.items()
    assert (found["crop"], found["warnings"]) == (None, [])
    wide = http.post("/v1/videos/preflight", data={"prompt": "p", "size": "192x64"}, files=media).json()
    assert wide["crop"] == [0, 37, 64, 59]
    assert [words.split(" ")[0] for words in wide["warnings"]] == ["the", "77%"]
    assert len(http.get("/v1/videos?limit=100").json()["data"]) == before


def test_a_queued_job_is_cancelled_and_its_events_tell(http: TestClient, media: dict[str, Any]):
    video = created(http, media)
    assert http.post(f"/v1/videos/{video['id']}/cancel").json()["status"] == "cancelled"
    stream = http.get(f"/v1/videos/{video['id']}/events")
    assert stream.headers["content-type"].startswith("text/event-stream")
    number, kind, data = stream.text.strip().split("\n")
    assert (number, kind) == ("id: 2", "event: video.cancelled")
    assert json.loads(data.removeprefix("data: "))["id"] == video["id"]
    resumed = http.get(f"/v1/videos/{video['id']}/events", headers={"Last-Event-ID": "2"})
    assert resumed.status_code == 204


def test_who_comes_back_to_a_stream_is_told_what_was_missed(http: TestClient, media: dict[str, Any], worker: Worker):
    video = created(http, media, num_frames="5")
    render_all(worker)
    answer = http.get(f"/v1/videos/{video['id']}/events", headers={"Last-Event-ID": "1"})
    ids = [int(line.removeprefix("id: ")) for line in answer.text.split("\n") if line.startswith("id: ")]
    assert ids == list(range(2, ids[-1] + 1))
    told = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n") if line.startswith("data: ")]
    assert [one["status"] for one in told] == ["in_progress"] * (len(told) - 1) + ["completed"]
    assert {"starting", "denoising", "encoding", "completed"} <= {one["stage"] for one in told}
    assert {(one["step"], one["steps"]) for one in told if one["stage"] == "denoising"} >= {(0, 2)}


def test_a_job_says_how_important_it_is_and_how_long_it_may_wait(
    http: TestClient, media: dict[str, Any], backend: Backend
):
    video = created(http, media, priority="2", max_queue_s="30", deadline_s="60")
    kept = backend.store.get(video["id"])
    assert kept is not None
    assert (kept.priority, kept.rank) == (2, pytest.approx(kept.created_at - 600))
    assert kept.queue_deadline_at == pytest.approx(kept.created_at + 30, abs=5)
    assert kept.deadline_at == pytest.approx(kept.created_at + 60, abs=5)
    for name, value in (("priority", "11"), ("max_queue_s", "0"), ("deadline_s", "nan"), ("deadline_s", "inf")):
        refused = http.post("/v1/videos", data={"prompt": "p", name: value}, files=media)
        assert refusal(refused) == (400, "invalid_value", name)
    backend.store.cancel(video["id"])


def test_the_service_says_how_it_is(http: TestClient, worker: Worker):
    assert http.get("/healthz").json() == {"status": "ok"}
    assert http.get("/readyz").status_code == 200
    (model,) = http.get("/v1/models").json()["data"]
    assert (model["id"], model["family"], model["version"]) == ("dynamictrl", "mini", worker.model.version)
    assert refusal(http.get("/v1/models/gpt")) == (404, "model_not_found", "model")
    numbers = http.get("/metrics").text
    assert "dynamictrl_workers_warm 1" in numbers
    assert 'dynamictrl_jobs{status="completed"}' in numbers
    assert re.search(
        r'http_requests_total{method="GET",process="ingress-\w+",route="/healthz",status="200"} \d', numbers
    )
    page = http.get("/")
    assert "<title>DynamiCtrl</title>" in page.text
    assert "http" not in page.text.replace(URL, "").replace("xhttp", "")


def test_without_keys_a_page_of_elsewhere_cannot_use_the_service(http: TestClient):
    assert refusal(http.get("/v1/models", headers={"host": "example.com"}))[:2] == (403, "loopback_only")
    assert refusal(http.get("/v1/models", headers={"origin": "https://example.com"}))[:2] == (403, "loopback_only")
    assert http.get("/v1/models", headers={"origin": URL}).status_code == 200


def test_with_keys_only_their_holders_are_served(service: Service, tmp_path: Path):
    digest = hashlib.sha256(b"dc-secret").hexdigest()
    guarded = replace(service, api_key_hashes=(digest,), data_folder=tmp_path)
    with TestClient(build_api(guarded), base_url="http://example.com") as client:
        assert refusal(client.get("/v1/videos"))[:2] == (401, "invalid_api_key")
        assert refusal(client.get("/v1/videos", headers={"Authorization": "Bearer wrong"}))[0] == 401
        assert client.get("/v1/videos", headers={"Authorization": "Bearer dc-secret"}).status_code == 200
        assert client.get("/readyz").status_code == 503  # nobody is warm, and that is no secret
        assert client.get("/").status_code == 200
