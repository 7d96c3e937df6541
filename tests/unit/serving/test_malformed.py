"""A few hundred broken and hostile requests through the whole HTTP surface: each refused with a code, nothing harmed.

How long each takes and what it leaves in memory is measured by `tests/benchmarks/serving_malformed.py`.
"""

import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from serving.backend import Backend, open_backend
from serving.config import Limits
from serving.recipes import mini
from serving.web.api import build_api
from tests.unit.serving.malformed.case import Case, Good, data_url
from tests.unit.serving.malformed.corpus import cases
from tests.unit.serving.malformed.pictures import person, saved
from tests.unit.serving.malformed.videos import video


@pytest.fixture(scope="module")
def media_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder, and the host and port at which a web server shows it."""
    folder = tmp_path_factory.mktemp("served")
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory, media_server: tuple[Path, str]) -> Backend:
    limits, hosts = Limits(fetch_urls="always"), (media_server[1],)
    return open_backend(
        replace(mini(), data_folder=tmp_path_factory.mktemp("data"), limits=limits, private_hosts=hosts)
    )


@pytest.fixture(scope="module")
def http(backend: Backend) -> Iterator[TestClient]:
    url = "http://127.0.0.1:8000"
    with TestClient(build_api(backend.service, backend), base_url=url, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def good(http: TestClient) -> Good:
    pose = video(frames=17)
    sent = http.post("/v1/files", files={"file": ("m.mp4", pose)})
    return Good(person(), pose, sent.json()["id"])


def test_there_are_many_and_no_two_have_one_name():
    assert len(cases()) >= 150
    assert len({(case.kind, case.name) for case in cases()}) == len(cases())


@pytest.mark.parametrize(
    "case", cases(), ids=lambda case: f"{case.kind}: {case.name}"[:80].encode("ascii", "replace").decode()
)
def test_what_cannot_be_used_is_refused_with_a_code_and_its_parameter(http: TestClient, good: Good, case: Case):
    answer = http.request(**case.request(good))
    error = answer.json()["error"]
    assert case.is_met_by(answer.status_code, error["code"], error["param"]), (answer.status_code, error)
    assert error["type"]
    assert "/tmp" not in error["message"]


def test_afterwards_a_good_request_succeeds_and_nothing_is_left_lying(http: TestClient, good: Good, backend: Backend):
    answer = http.post("/v1/videos", data=good.fields(), files=good.files())
    assert answer.status_code == 200, answer.text
    assert [video.id for video in backend.store.page(after=None, limit=5, descending=True)[0]] == [answer.json()["id"]]
    assert not list((backend.blobs.root / "incoming").iterdir())
    assert len(list((backend.blobs.root / "videos").iterdir())) == 1
    assert len(list((backend.blobs.root / "files").iterdir())) == 1


def stored(backend: Backend) -> set[Path]:
    return {path for path in backend.blobs.root.rglob("*") if not path.name.startswith("jobs.db")}


@pytest.mark.parametrize(
    "name", ["../../../etc/passwd", "a\\b", "con", "é" * 400, "x" * 600, "a;b|c $(ls)", ".", "ﬁ le\u202egnp"]
)
def test_a_files_name_is_kept_for_show_and_never_a_path(http: TestClient, good: Good, backend: Backend, name: str):
    before = stored(backend)
    sent = http.post("/v1/files", files={"file": (name, b"bytes")}).json()
    assert sent["filename"] == name[:512]
    assert stored(backend) - before == {backend.blobs.root / "files" / sent["id"]}
    assert http.get(f"/v1/files/{sent['id']}/content").content == b"bytes"
    assert http.delete(f"/v1/files/{sent['id']}").status_code == 200


def test_a_medium_may_be_named_by_url_where_that_is_allowed(
    http: TestClient, good: Good, backend: Backend, media_server: tuple[Path, str]
):
    folder, host = media_server
    (folder / "motion.mp4").write_bytes(good.pose)
    (folder / "text.mp4").write_bytes(b"no video")
    body = {"prompt": "p", "input_reference": data_url(good.person), "pose_video": {"url": f"http://{host}/motion.mp4"}}
    sent = http.post("/v1/videos", json=body)
    assert sent.status_code == 200, sent.text
    assert backend.blobs.medium(sent.json()["id"], "pose_video").read_bytes() == good.pose
    for name, code in (("text.mp4", "not_media"), ("missing.mp4", "url_status")):
        error = http.post("/v1/videos", json={**body, "pose_video": f"http://{host}/{name}"}).json()["error"]
        assert (error["code"], error["param"]) == (code, "pose_video")
    careful = replace(backend.service, limits=Limits())
    with TestClient(build_api(careful, replace(backend, service=careful)), base_url="http://127.0.0.1:8000") as keyless:
        assert keyless.post("/v1/videos", json=body).json()["error"]["code"] == "url_not_enabled"


def test_sound_media_of_unusual_kinds_are_taken(http: TestClient, good: Good, shared_data: Path):
    """Rotated, 10-bit, of variable rate, 4K at 60, transparent, CMYK: what is rare is not broken."""
    for name in ("torchcodec__h265_10bits.mp4", "androidx__portrait_4k60.mp4", "moviepy__no_duration.webm",
                 "moviepy__pigs_in_a_polka.gif"):  # fmt: skip
        sent = ("a", (shared_data / "odd" / name).read_bytes())
        files = good.files(pose_video=None, driving_video=sent)
        answer = http.post("/v1/videos", data=good.fields(num_frames=5), files=files)
        assert answer.status_code == 200, (name, answer.text)
    unusual = (("JPEG", "CMYK"), ("PNG", "I;16"), ("WEBP", "RGBA"), ("PNG", "LA"), ("GIF", "P"), ("TIFF", "F"),
               ("PNG", "1"), ("AVIF", "RGB"))  # fmt: skip
    for kind, mode in unusual:
        picture = saved(kind, mode=mode)
        files = good.files(input_reference=("a", picture))
        answer = http.post("/v1/videos", data=good.fields(), files=files)
        assert answer.status_code == 200, answer.text
