"""Remix, edits, extensions and characters: real clips by a tiny model, through the HTTP surface."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from dynamictrl.media.video import read_video, write_video
from serving.backend import Backend, open_backend
from serving.config import Defaults, Limits
from serving.recipes import mini
from serving.rendering.worker import Worker
from serving.web.api import build_api

URL = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def worker(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    service = replace(
        mini(), model=str(tiny_model), data_folder=tmp_path_factory.mktemp("data"), threads=1,
        defaults=Defaults(width=64, height=96, num_frames=9, num_inference_steps=2, guidance_scale=1.0),
        person_check="render", limits=Limits(total_frames=40)
    )  # fmt: skip
    worker = Worker(open_backend(service))
    yield worker
    worker.leave()


@pytest.fixture(scope="module")
def backend(worker: Worker) -> Backend:
    return worker.backend


@pytest.fixture(scope="module")
def http(backend: Backend) -> Iterator[TestClient]:
    with TestClient(build_api(backend.service, backend), base_url=URL, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def made(http: TestClient, worker: Worker, person_and_pose: tuple[Path, Path]) -> dict[str, Any]:
    """A finished clip of 9 of the pose video's 17 frames."""
    person, pose = person_and_pose
    media = {"input_reference": ("p.png", person.read_bytes()), "pose_video": ("m.mp4", pose.read_bytes())}
    return finished(http, worker, http.post("/v1/videos", data={"prompt": "p", "seed": "5"}, files=media))


def finished(http: TestClient, worker: Worker, answer: Any) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    while lease := worker.backend.store.lease("test", 60.0, 3):
        worker.render(lease.video.id, lease.token)
    video = http.get(f"/v1/videos/{answer.json()['id']}").json()
    assert video["status"] == "completed", video
    return video


def frames_of(http: TestClient, video: dict[str, Any]) -> np.ndarray:
    return read_video(http.get(f"/v1/videos/{video['id']}/content").content).frames.astype(int)


def refusal(answer: Any) -> tuple[int, str, str | None]:
    return answer.status_code, answer.json()["error"]["code"], answer.json()["error"]["param"]


def test_an_extension_goes_on_from_the_last_frame_with_the_motion_that_follows(
    http: TestClient, worker: Worker, backend: Backend, made: dict[str, Any]
):
    asked = {"prompt": "on", "seconds": 8 / 12, "video": {"id": made["id"]}}
    extended = finished(http, worker, http.post("/v1/videos/extensions", json=asked))
    assert extended["remixed_from_video_id"] == made["id"]
    assert (extended["num_frames"], extended["seconds"], extended["seed"]) == (17, "1.417", 5)
    before, after = frames_of(http, made), frames_of(http, extended)
    assert len(after) == 17
    assert np.abs(after[:9] - before).mean() < 4  # the same pictures, encoded once more
    stored = backend.store.get(extended["id"])
    assert stored is not None
    assert (stored.settings.start_frame, stored.settings.frames_before) == (8, 9)
    # The reference picture of what was added is the clip's last frame.
    reference = np.asarray(Image.open(backend.blobs.medium(extended["id"], "input_reference"))).astype(int)
    assert np.abs(reference - before[-1]).mean() < 1
    # The motion has 17 frames: nothing is left to go on with.
    again = http.post("/v1/videos/extensions", json={**asked, "video": {"id": extended["id"]}})
    assert refusal(again) == (400, "too_few_frames", "seconds")


def test_an_extension_needs_what_it_goes_on_from(
    http: TestClient, made: dict[str, Any], person_and_pose: tuple[Path, Path]
):
    def post(**fields: Any) -> tuple[int, str, str | None]:
        return refusal(http.post("/v1/videos/extensions", json={"prompt": "p", **fields}))

    here = {"id": made["id"]}
    assert post(seconds=1) == (400, "missing_parameter", "video")
    assert post(video=here) == (400, "missing_parameter", "seconds")
    assert post(seconds=1, video={"id": "video_" + "0" * 32}) == (404, "video_not_found", "video_id")
    assert post(seconds=5, video=here) == (400, "clip_too_long", "seconds")
    assert post(seconds=1.5, video=here) == (400, "too_few_frames", "seconds")
    assert post(seconds=1, video=here, size="64x96") == (400, "unknown_parameter", "size")
    assert post(seconds=1, video={"path": "/etc/passwd"}) == (400, "bad_media_reference", "video")
    clip = {"video": ("c.mp4", person_and_pose[1].read_bytes())}
    alone = http.post("/v1/videos/extensions", data={"prompt": "p", "seconds": "1"}, files=clip)
    assert refusal(alone) == (400, "missing_video", "driving_video")
    waiting = http.post("/v1/videos/edits", json={"prompt": "later", "video": here}).json()
    assert post(seconds=1, video={"id": waiting["id"]}) == (400, "video_not_ready", "video")
    http.delete(f"/v1/videos/{waiting['id']}")


def test_a_strangers_clip_goes_on_with_a_given_motion(
    http: TestClient, worker: Worker, person_and_pose: tuple[Path, Path], tmp_path: Path
):
    strange = np.random.default_rng(1).integers(0, 255, (6, 98, 70, 3), dtype=np.uint8)
    write_video(tmp_path / "c.mp4", strange, 12)
    files = {
        "video": ("c.mp4", (tmp_path / "c.mp4").read_bytes()),
        "pose_video": ("m.mp4", person_and_pose[1].read_bytes()),
    }
    answer = http.post("/v1/videos/extensions", data={"prompt": "on", "seconds": "0.7"}, files=files)
    video = finished(http, worker, answer)
    assert (video["num_frames"], video["size"]) == (6 + 8, "64x96")
    assert frames_of(http, video).shape == (14, 96, 64, 3)


def test_an_edit_keeps_all_that_it_does_not_change(
    http: TestClient, worker: Worker, backend: Backend, made: dict[str, Any], tmp_path: Path
):
    other = tmp_path / "other.png"
    Image.new("RGB", (64, 96), (200, 30, 30)).save(other)
    fields = {"prompt": "red", "video": made["id"], "num_frames": "5"}
    answer = http.post("/v1/videos/edits", data=fields, files={"input_reference": ("o.png", other.read_bytes())})
    edited = finished(http, worker, answer)
    assert (edited["prompt"], edited["seed"], edited["num_frames"], edited["size"]) == ("red", 5, 5, "64x96")
    assert edited["remixed_from_video_id"] == made["id"]
    assert backend.blobs.medium(edited["id"], "input_reference").read_bytes() == other.read_bytes()
    same = backend.blobs.medium(made["id"], "pose_video").read_bytes()
    assert backend.blobs.medium(edited["id"], "pose_video").read_bytes() == same


def test_an_edit_of_a_clip_takes_its_first_frame_and_its_motion(
    http: TestClient, backend: Backend, made: dict[str, Any]
):
    clip = http.get(f"/v1/videos/{made['id']}/content").content
    sent = http.post("/v1/files", files={"file": ("c.mp4", clip)}).json()
    video = http.post("/v1/videos/edits", json={"prompt": "p", "video": {"file_id": sent["id"]}}).json()
    assert (video["status"], video["size"], video["num_frames"]) == ("queued", "64x96", 9)
    assert backend.blobs.medium(video["id"], "driving_video").read_bytes() == clip
    picture = np.asarray(Image.open(backend.blobs.medium(video["id"], "input_reference"))).astype(int)
    assert np.abs(picture - frames_of(http, made)[0]).mean() < 1
    http.delete(f"/v1/videos/{video['id']}")


def test_follow_ups_sent_again_are_the_same_job(http: TestClient, made: dict[str, Any]):
    for path, body in (
        (f"/v1/videos/{made['id']}/remix", {"prompt": "r"}),
        ("/v1/videos/edits", {"prompt": "r", "video": {"id": made["id"]}}),
        ("/v1/videos/extensions", {"prompt": "r", "seconds": 0.4, "video": {"id": made["id"]}}),
    ):
        first = http.post(path, json=body, headers={"Idempotency-Key": path}).json()
        assert http.post(path, json=body, headers={"Idempotency-Key": path}).json()["id"] == first["id"]
        assert http.post(path, json=body, headers={"x-stainless-retry-count": "1"}).json()["id"] == first["id"]
        assert http.post(path, json=body).json()["id"] != first["id"]
        other = http.post(path, json={**body, "prompt": "s"}, headers={"Idempotency-Key": path})
        assert refusal(other) == (422, "idempotency_key_reused", "Idempotency-Key")


def test_a_character_is_a_person_kept_by_name(
    http: TestClient, made: dict[str, Any], person_and_pose: tuple[Path, Path]
):
    from dynamictrl.mini.marionettes import sample_clip

    figure = sample_clip(np.random.default_rng(3), num_frames=5, height=192, width=128, fps=12)
    clip = person_and_pose[0].parent / "figure.mp4"
    write_video(clip, figure.frames, 12)
    answer = http.post("/v1/videos/characters", data={"name": "Ada"}, files={"video": ("f.mp4", clip.read_bytes())})
    ada = answer.json()
    assert (answer.status_code, ada["object"], ada["name"]) == (200, "character", "Ada")
    assert http.get(f"/v1/videos/characters/{ada['id']}").json() == ada
    assert [file["id"] for file in http.get("/v1/files?purpose=character").json()["data"]] == [ada["id"]]
    picture = {"input_reference": {"character_id": ada["id"]}}
    video = http.post("/v1/videos/edits", json={"prompt": "p", "video": {"id": made["id"]}, **picture}).json()
    assert video["status"] == "queued"
    http.delete(f"/v1/videos/{video['id']}")
    http.delete(f"/v1/files/{ada['id']}")
    gone = http.get(f"/v1/videos/characters/{ada['id']}")
    assert refusal(gone) == (404, "character_not_found", "character_id")
    Image.new("RGB", (64, 96)).save(black := clip.with_name("black.png"))
    blank = {"video": ("n.png", black.read_bytes())}
    assert refusal(http.post("/v1/videos/characters", data={"name": "No"}, files=blank))[1:] == (
        "no_person_in_video",
        "video",
    )
    assert refusal(http.post("/v1/videos/characters", data={"name": "No"}))[1:] == ("missing_parameter", "video")


def test_a_tenant_sees_and_uses_only_what_is_his(backend: Backend, made: dict[str, Any]):
    from serving.tenants.keyring import Keyring
    from serving.tenants.tenant import SCOPES

    keyring = Keyring(backend.store.engine, quotas=backend.service.quotas)
    keys = {name: keyring.create(name, SCOPES)[0] for name in ("ada", "bob")}
    with TestClient(build_api(backend.service, backend), base_url=URL, raise_server_exceptions=False) as client:
        ada, bob = ({"Authorization": f"Bearer {keys[name]}"} for name in ("ada", "bob"))
        file = client.post("/v1/files", files={"file": ("a", b"abc")}, headers=ada).json()
        assert client.get(f"/v1/files/{file['id']}", headers=ada).status_code == 200
        assert refusal(client.get(f"/v1/files/{file['id']}", headers=bob))[:2] == (404, "file_not_found")
        assert client.get("/v1/files", headers=bob).json()["data"] == []
        assert client.get("/v1/videos", headers=bob).json()["data"] == []
        for method, path in (("GET", ""), ("GET", "/content"), ("GET", "/events"), ("POST", "/cancel"), ("DELETE", "")):
            answer = client.request(method, f"/v1/videos/{made['id']}{path}", headers=bob)
            assert refusal(answer) == (404, "video_not_found", "video_id"), path
        again = {"prompt": "p", "video": {"id": made["id"]}}
        assert refusal(client.post("/v1/videos/edits", json=again, headers=bob))[1] == "video_not_found"
        assert refusal(client.post(f"/v1/videos/{made['id']}/remix", json={"prompt": "p"}, headers=bob))[0] == 404
        mine = {"prompt": "p", "input_reference": {"file_id": file["id"]}, "pose_video": {"file_id": file["id"]}}
        assert refusal(client.post("/v1/videos", json=mine, headers=bob))[1] == "file_not_found"
