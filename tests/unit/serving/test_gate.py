"""The gate and what stands behind it, over HTTP with the stock client: keys, scopes, rates, quotas, other tenants' ids,
the audit log. Renders nothing, so it needs no model."""

import logging
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from starlette.testclient import TestClient

from dynamictrl.errors import ConfigError
from serving.backend import Backend, open_backend
from serving.config import Defaults, Service
from serving.recipes import mini
from serving.tenants import ledger
from serving.tenants.audit import AuditLog
from serving.tenants.keyring import KeyCache, Keyring
from serving.tenants.tenant import Quotas
from serving.web.api import build_api

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

URL = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Service:
    return replace(
        mini(), data_folder=tmp_path_factory.mktemp("data"), person_check="render", require_keys=True,
        defaults=Defaults(width=64, height=96, num_inference_steps=2), trusted_proxies=("testclient",)
    )  # fmt: skip


@pytest.fixture(scope="module")
def backend(service: Service) -> Backend:
    return open_backend(service)


@pytest.fixture(scope="module")
def http(service: Service, backend: Backend) -> Iterator[TestClient]:
    with TestClient(build_api(service, backend), base_url=URL, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def keyring(backend: Backend) -> Keyring:
    return Keyring(backend.store.engine)


MakeKey = Callable[..., tuple[str, dict[str, str]]]


@pytest.fixture
def key_of(keyring: Keyring) -> MakeKey:
    """A fresh tenant with a key of these scopes and quotas: its name, and the headers of its requests."""

    def make(*scopes: str, tenant: str = "", **quotas: Any) -> tuple[str, dict[str, str]]:
        tenant = tenant or f"t-{secrets.token_hex(4)}"
        if quotas:
            keyring.set_quotas(tenant, quotas)
        key, _ = keyring.create(tenant, scopes or ("videos:read", "videos:write", "files"))
        return tenant, {"authorization": f"Bearer {key}"}

    return make


@pytest.fixture
def media(person_and_pose: tuple[Path, Path]) -> dict[str, tuple[str, bytes]]:
    person, pose = person_and_pose
    return {"input_reference": ("p.png", person.read_bytes()), "pose_video": ("m.mp4", pose.read_bytes())}


def code(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_another_tenants_id_is_answered_as_one_that_never_was(http: TestClient, media: Any, key_of: MakeKey):
    _, mine = key_of()
    _, others = key_of()
    video = http.post("/v1/videos", data={"prompt": "p"}, files=media, headers=mine).json()["id"]
    file = http.post("/v1/files", files={"file": media["pose_video"]}, headers=mine).json()["id"]
    never, no_file = f"video_{'0' * 32}", f"file_{'0' * 32}"

    def asked(video: str, file: str) -> list[tuple[int, str]]:
        one = f"/v1/videos/{video}"
        by_id = {"prompt": "p", "pose_video": {"file_id": file}, "input_reference": {"file_id": file}}
        answers = [
            http.get(one, headers=others),
            http.get(f"{one}/content", headers=others),
            http.get(f"{one}/content?variant=thumbnail", headers=others),
            http.get(f"{one}/events", headers=others),
            http.post(f"{one}/cancel", headers=others),
            http.post(f"{one}/remix", json={"prompt": "p"}, headers=others),
            http.post("/v1/videos/edits", json={"prompt": "p", "video": {"id": video}}, headers=others),
            http.post(
                "/v1/videos/extensions", json={"prompt": "p", "video": {"id": video}, "seconds": 1}, headers=others
            ),  # fmt: skip
            http.post(f"{one}/webhook/replay", headers=others),
            http.delete(one, headers=others),
            http.get(f"/v1/files/{file}", headers=others),
            http.get(f"/v1/files/{file}/content", headers=others),
            http.delete(f"/v1/files/{file}", headers=others),
            http.get(f"/v1/videos/characters/{file}", headers=others),
            http.post("/v1/videos", json=by_id, headers=others),
            http.post("/v1/videos/preflight", json=by_id, headers=others),
            http.get(f"/v1/videos?after={video}", headers=others),
            http.get(f"/v1/files?after={file}", headers=others),
        ]
        return [code(answer) for answer in answers]

    there, not_there = asked(video, file), asked(never, no_file)
    assert there == not_there
    assert {status for status, _ in there[:14]} == {404}
    assert {status for status, _ in there[14:]} == {400}
    assert http.get("/v1/videos", headers=others).json()["data"] == []
    assert http.get("/v1/files", headers=others).json()["data"] == []
    assert http.get(f"/v1/videos/{video}", headers=mine).json()["status"] == "queued"
    assert [f["id"] for f in http.get("/v1/files", headers=mine).json()["data"]] == [file]
    # The same request, sent again by another tenant's SDK or with the same key, is another job.
    again = {**others, "x-stainless-retry-count": "1", "idempotency-key": "k"}
    theirs = http.post("/v1/videos", data={"prompt": "p"}, files=media, headers=again).json()["id"]
    assert theirs != video


@pytest.mark.parametrize(
    ("scopes", "method", "path", "allowed"),
    [
        (("videos:read",), "GET", "/v1/videos", True),
        (("videos:read",), "POST", "/v1/videos", False),
        (("videos:read",), "DELETE", "/v1/videos/video_1", False),
        (("videos:read",), "GET", "/v1/files", False),
        (("videos:write",), "GET", "/v1/videos", False),
        (("videos:write",), "POST", "/v1/videos/preflight", True),
        (("files",), "GET", "/v1/files", True),
        (("files",), "GET", "/metrics", False),
        (("metrics",), "GET", "/metrics", True),
        (("metrics",), "GET", "/v1/videos", False),
        (("metrics",), "GET", "/v1/models", True),
        (("admin",), "GET", "/metrics", True),
        (("admin",), "DELETE", "/v1/files/file_1", True),
    ],
)
def test_a_key_opens_what_its_scopes_say(
    http: TestClient, key_of: MakeKey, scopes: tuple[str, ...], method: str, path: str, allowed: bool
):
    _, headers = key_of(*scopes)
    answer = http.request(method, path, headers=headers)
    if allowed:
        assert answer.status_code not in (401, 403)
    else:
        assert code(answer) == (403, "insufficient_scope")
        assert answer.headers["x-should-retry"] == "false"


def test_without_a_good_key_nothing_is_answered_but_health(http: TestClient):
    for headers in ({}, {"authorization": "Bearer none"}, {"authorization": "Basic dc_0123"}):
        for path in ("/v1/videos", "/v1/models", "/metrics", "/v1/nowhere"):
            answer = http.get(path, headers=headers)
            assert code(answer) == (401, "invalid_api_key")
            assert answer.headers["www-authenticate"] == "Bearer"
    assert http.get("/healthz").status_code == 200
    assert http.get("/").status_code == 200


def test_a_tenant_is_told_its_rate_and_refused_beyond_it(http: TestClient, key_of: MakeKey):
    _, headers = key_of(requests_per_minute=6, burst=3)
    answers = [http.get("/v1/videos", headers=headers) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["2", "1", "0", "0"]
    assert answers[0].headers["x-ratelimit-limit-requests"] == "6"
    assert code(answers[3]) == (429, "rate_limited")
    assert 1 <= int(answers[3].headers["retry-after"]) <= 10
    assert http.get("/healthz", headers=headers).status_code == 200


def test_the_stock_client_tries_again_what_may_pass_and_not_what_is_final(
    http: TestClient, media: Any, key_of: MakeKey, backend: Backend, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    calls: list[int] = []

    def client_for(**quotas: Any) -> openai.OpenAI:
        _, headers = key_of(**quotas)
        calls.clear()
        http_client = openai.DefaultHttpxClient(
            transport=http._transport, event_hooks={"response": [lambda answer: calls.append(answer.status_code)]}
        )  # fmt: skip
        return openai.OpenAI(base_url=f"{URL}/v1", api_key=headers["authorization"][7:], http_client=http_client)

    def create(client: openai.OpenAI, prompt: str = "p") -> Any:
        return client.post("/videos", cast_to=object, body={"prompt": prompt}, files=list(media.items()),
                           options={"headers": {"Content-Type": "multipart/form-data"}})  # fmt: skip

    busy = client_for(jobs_at_once=1)
    create(busy)
    with pytest.raises(openai.RateLimitError) as refused:
        create(busy, "another")
    assert refused.value.code == "too_many_jobs"
    assert calls == [200, 429, 429, 429]

    poor = client_for(gpu_seconds_per_month=0.001)
    used = [{"tenant": "", "status": "completed", "model": "m", "settings": "{}", "gpu_seconds": 1.0}]
    tenant = Keyring(backend.store.engine).find(poor.api_key)
    assert tenant is not None
    used[0]["tenant"] = tenant.id
    with backend.store.engine.begin() as connection:
        ledger.settle(connection, used, time.time())
    with pytest.raises(openai.APIStatusError) as final:
        create(poor)
    assert (final.value.status_code, final.value.code) == (402, "gpu_budget_exceeded")
    assert calls == [402]

    full = client_for(storage_bytes=10)
    with pytest.raises(openai.PermissionDeniedError) as no_room:
        create(full)
    assert no_room.value.code == "storage_full"
    with pytest.raises(openai.PermissionDeniedError):
        full.files.create(file=media["pose_video"], purpose="user_data")
    assert calls == [403, 403]


def test_a_tenants_own_cap_on_a_bodys_bytes_holds_stated_or_not(http: TestClient, key_of: MakeKey):
    _, headers = key_of(body_bytes=1000)
    stated = http.post("/v1/videos", content=b"x" * 2000, headers=headers)
    assert code(stated) == (413, "body_too_large")
    unstated = http.post("/v1/videos/preflight", content=(b"x" * 500 for _ in range(4)),
                         headers={**headers, "content-type": "application/json"})  # fmt: skip
    assert code(unstated) == (413, "body_too_large")


def test_what_was_done_is_on_record_and_what_was_said_is_not(
    http: TestClient, media: Any, key_of: MakeKey, backend: Backend
):
    tenant, headers = key_of()
    headers = {**headers, "x-forwarded-for": "198.51.100.7, 203.0.113.9"}
    made = http.post("/v1/videos", data={"prompt": "my secret wish"}, files=media, headers=headers)
    video = made.json()["id"]
    http.post("/v1/videos", data={"prompt": ""}, files=media, headers=headers)
    http.get(f"/v1/videos/{video}", headers=headers)
    http.get(f"/v1/videos/{video}/content", headers=headers)
    http.delete(f"/v1/videos/{video}", headers=headers)
    rows = AuditLog(backend.store.engine).read(tenant=tenant)
    assert [(row.action, row.target, row.status, row.code) for row in rows] == [
        ("POST /v1/videos", video, 200, ""),
        ("POST /v1/videos", "", 400, "invalid_value"),
        ("GET /v1/videos/{video_id}/content", video, 400, "video_not_ready"),
        ("DELETE /v1/videos/{video_id}", video, 200, ""),
    ]
    assert {row.address for row in rows} == {"203.0.113.9"}
    assert {bool(row.key_id) for row in rows} == {True}
    assert rows[0].request_id == made.headers["x-request-id"]
    assert "secret wish" not in str(rows)


def test_refused_keys_fill_at_most_a_row_a_second(http: TestClient, backend: Backend):
    before = len(AuditLog(backend.store.engine).read(limit=10_000))
    for number in range(30):
        http.get("/v1/videos", headers={"authorization": f"Bearer wrong-{number}", "x-forwarded-for": "192.0.2.77"})
    rows = AuditLog(backend.store.engine).read(limit=10_000)[before:]
    assert 1 <= len(rows) <= 4
    assert {(row.status, row.code, row.address) for row in rows} == {(401, "invalid_api_key", "192.0.2.77")}


def test_a_known_key_costs_a_request_microseconds(keyring: Keyring):
    key, _ = keyring.create("quick", ("files",))
    cache = KeyCache(keyring)
    cache.find(key)
    began = time.perf_counter()
    for _ in range(1000):
        assert cache.remembered(key)[0]
    assert (time.perf_counter() - began) / 1000 < 0.001


def test_a_webhook_needs_a_secret_to_be_signed_with(http: TestClient, media: Any, key_of: MakeKey):
    _, headers = key_of()
    asked = {"prompt": "p", "webhook_url": "https://example.com/hook"}
    assert code(http.post("/v1/videos", data=asked, files=media, headers=headers)) == (400, "no_webhook_secret")
    assert code(http.post("/v1/videos", data={**asked, "webhook_url": "ftp://example.com"}, files=media,
                          headers=headers)) == (400, "url_scheme")  # fmt: skip


def test_quotas_of_the_service_hold_for_who_has_none_of_his_own(service: Service, tmp_path: Path):
    strict = replace(service, data_folder=tmp_path, require_keys=False, quotas=Quotas(requests_per_minute=60, burst=1))
    with TestClient(build_api(strict), base_url=URL) as http:
        assert [http.get("/v1/videos").status_code for _ in range(2)] == [200, 429]


def test_while_the_database_is_away_requests_are_put_off_and_then_go_on(
    http: TestClient, key_of: MakeKey, backend: Backend
):
    _, known = key_of()
    _, fresh = key_of()
    assert http.get("/v1/videos", headers=known).status_code == 200

    def away(*_: Any) -> None:
        raise OperationalError("SELECT 1", {}, Exception("gone"))

    event.listen(backend.store.engine, "before_cursor_execute", away)
    try:
        answers = [http.get(path, headers=key) for key in (known, fresh) for path in ("/v1/videos", "/v1/files")]
    finally:
        event.remove(backend.store.engine, "before_cursor_execute", away)
    assert {code(answer) for answer in answers} == {(503, "store_unavailable")}
    assert {answer.headers["retry-after"] for answer in answers} == {"2"}
    assert http.get("/v1/videos", headers=fresh).status_code == 200


def test_who_listens_to_strangers_needs_keys_and_https_both_files(tmp_path: Path):
    with pytest.raises(ConfigError, match="require-keys"):
        replace(mini(), host="0.0.0.0")
    assert replace(mini(), host="0.0.0.0", require_keys=True).scheme == "http"
    (tmp_path / "cert.pem").touch()
    for given in ({"ssl_certfile": str(tmp_path / "cert.pem")}, {"ssl_keyfile": str(tmp_path / "cert.pem")},
                  {"ssl_certfile": str(tmp_path / "cert.pem"), "ssl_keyfile": str(tmp_path / "key.pem")}):  # fmt: skip
        with pytest.raises(ConfigError, match="ssl_keyfile"):
            replace(mini(), **given)


def test_no_key_is_ever_logged(http: TestClient, key_of: MakeKey, caplog: pytest.LogCaptureFixture):
    _, headers = key_of()
    with caplog.at_level(logging.DEBUG):
        http.get("/v1/videos", headers=headers)
        http.get("/v1/videos/video_1", headers={"authorization": "Bearer dc_wrong"})
    assert headers["authorization"][7:] not in caplog.text
    assert "dc_wrong" not in caplog.text
