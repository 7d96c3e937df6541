"""Bodies that drip, pause, flood or are no forms: bounded in time and memory, answered with a code."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from fastapi import FastAPI, Request
from starlette.testclient import TestClient
from starlette.types import Message

from serving.config import Limits
from serving.web import http_errors
from serving.web.bounded_body import PacedBody, read_form, read_text

LIMITS = Limits(data_url_bytes=1000, body_seconds=0.6, body_idle_s=0.2, body_rate=1000)


def build(limits: Limits) -> FastAPI:
    app = FastAPI()
    http_errors.install(app)
    app.add_middleware(PacedBody, limits=limits)

    @app.post("/form")
    async def form(request: Request) -> dict[str, list[str]]:
        return {"names": [name for name, _ in (await read_form(request, limits, max_fields=10)).multi_items()]}

    @app.post("/text")
    async def text(request: Request) -> int:
        return len(await read_text(request, limits))

    @app.post("/fastapi")
    async def of_fastapi(body: dict[str, Any]) -> int:
        return len(body)

    return app


@pytest.fixture(scope="module")
def http() -> Iterator[TestClient]:
    with TestClient(build(LIMITS), raise_server_exceptions=False) as client:
        yield client


async def talk(path: str, pieces: Callable[[], AsyncIterator[bytes]], limits: Limits = LIMITS) -> tuple[int, Any]:
    """One request whose body comes as `pieces` gives it; the answer's status and JSON."""
    coming, said = pieces(), list[Message]()

    async def receive() -> Message:
        try:
            return {"type": "http.request", "body": await anext(coming), "more_body": True}
        except StopAsyncIteration:
            return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        said.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
             "headers": [(b"content-type", b"application/json")], "http_version": "1.1", "scheme": "http",
             "server": ("test", 80), "client": ("test", 1), "root_path": ""}  # fmt: skip
    await build(limits)(scope, receive, send)
    assert [message["type"] for message in said] == ["http.response.start", "http.response.body"]
    return said[0]["status"], json.loads(said[1]["body"])


async def dripping() -> AsyncIterator[bytes]:
    while True:
        yield b" "
        await asyncio.sleep(0.02)


async def pausing() -> AsyncIterator[bytes]:
    yield b"{" + b" " * 500
    await asyncio.sleep(30)


async def endless() -> AsyncIterator[bytes]:
    while True:
        yield b" " * 20
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("path", ["/text", "/fastapi"])
@pytest.mark.parametrize("pieces", [dripping, pausing, endless])
def test_a_body_that_comes_too_slowly_is_ended(path: str, pieces: Callable[[], AsyncIterator[bytes]]):
    status, answer = asyncio.run(asyncio.wait_for(talk(path, pieces), 5))
    assert (status, answer["error"]["code"]) == (408, "body_too_slow")


def test_a_large_body_may_take_longer_than_the_longest_pause():
    async def steady() -> AsyncIterator[bytes]:
        for _ in range(12):
            yield b" " * 2000
            await asyncio.sleep(0.15)

    patient = replace(LIMITS, body_seconds=60.0, body_idle_s=1.0)
    assert asyncio.run(talk("/text", steady, patient)) == (200, 24_000)


@pytest.mark.parametrize(
    ("kind", "body", "code"),
    [
        ("multipart/form-data", b"", "bad_form"),
        ("multipart/form-data; boundary=x", b"no boundary here", "bad_form"),
        ("multipart/form-data; boundary=x", b"--y\r\n\r\n", "bad_form"),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--\r\n", "bad_form"),
        ("multipart/form-data; boundary=x", b"--x\r\nno header\r\n\r\na\r\n--x--\r\n", "bad_form"),
        ("multipart/form-data; boundary=" + "x" * 400, b"--x\r\n", "bad_form"),
        ("multipart/form-data; boundary=x", b"--x\r\nA: " + b"b" * 9000 + b"\r\n\r\na\r\n--x--", "bad_form"),
        ("multipart/form-data; boundary=x", b"--x\r\n" + b"A: b\r\n" * 50 + b"\r\na\r\n--x--", "bad_form"),
        ("application/x-www-form-urlencoded", b"&".join(b"a=1" for _ in range(11)), "bad_form"),
        ("application/x-www-form-urlencoded", b"a=" + b"1" * 2000, "bad_form"),
        ("application/x-www-form-urlencoded", b"a=" + b"1" * 2_000_000, "text_too_long"),
    ],
)
def test_what_is_no_form_is_refused_with_a_code(http: TestClient, kind: str, body: bytes, code: str):
    answer = http.post("/form", content=body, headers={"content-type": kind})
    assert answer.status_code in (400, 413)
    assert answer.json()["error"]["code"] == code


def test_parts_are_bounded_in_number_size_and_sum(http: TestClient):
    small, files = {f"f{i}": "a" for i in range(5)}, [(f"file{i}", b"a") for i in range(8)]
    assert http.post("/form", data=small, files=files).json()["names"] == [*small, *(name for name, _ in files)]
    for data, sent in (({f"f{i}": "a" for i in range(11)}, files), (small, [*files, ("one", b"more")]),
                       ({"long": "a" * 1001}, files)):  # fmt: skip
        refused = http.post("/form", data=data, files=sent)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "bad_form")


def test_text_is_bounded_in_sum_and_files_are_not_counted():
    limits = replace(LIMITS, data_url_bytes=400_000)  # so that all text may have 2.6 MB
    with TestClient(build(limits)) as http:
        assert http.post("/form", data={"a": "1" * 300_000}, files={"f": b"1" * 4_000_000}).status_code == 200
        six = http.post("/form", data={f"f{i}": "1" * 400_000 for i in range(6)}, files={"f": b"1"})
        assert six.status_code == 200
        seven = http.post("/form", data={f"f{i}": "1" * 400_000 for i in range(7)}, files={"f": b"1"})
        assert (seven.status_code, seven.json()["error"]["code"]) == (413, "text_too_long")
    with TestClient(build(replace(limits, data_url_bytes=2_000))) as http:
        assert http.post("/text", content=b" " * 1_100_000).json()["error"]["code"] == "text_too_long"
        assert http.post("/text", content=b" " * 1_000_000).json() == 1_000_000
