"""The stock `openai` client, every method of `videos`, `files` and `models`, synchronous and asynchronous.

Runs with whatever release is imported; `test_openai_sdk_2.py` runs all of it once more with the last 2.x.
"""

from __future__ import annotations

import http.client
import json
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from openai import types
from pydantic import BaseModel, ValidationError

# The Videos API is deprecated at OpenAI; as a de-facto standard it lives on.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

OMIT: Any = getattr(openai, "omit", openai.NOT_GIVEN)


@pytest.fixture(scope="module")
def pose_file(api: Any, service: Any) -> str:
    return api(lambda c: c.files.create(file=Path(service.pose), purpose="user_data")).id


@pytest.fixture(scope="module")
def wish(service: Any, pose_file: str) -> dict[str, Any]:
    """Arguments of `videos.create` for a clip that is rendered in a moment."""
    extra = {"pose_video": {"file_id": pose_file}, "num_frames": 5, "seed": 3}
    return {"prompt": "a figure", "input_reference": Path(service.person), "size": "64x96", "extra_body": extra}


def with_extra(wish: dict[str, Any], **extra: Any) -> dict[str, Any]:
    return {**wish, "extra_body": {**wish["extra_body"], **extra}}


@pytest.fixture(scope="module")
def clip(api: Any, wish: dict[str, Any]) -> Any:
    """A finished clip."""
    return api(lambda c: c.videos.create_and_poll(**wish))


def assert_shape(model: type[BaseModel], answer: Any, *free: str) -> None:
    """The answer is what the SDK's own type says, strictly; `free` names fields whose list of words is OpenAI's."""
    found: list[Any] = []
    try:
        model.model_validate_json(answer.to_json(), strict=True)
    except ValidationError as problem:
        found = [error for error in problem.errors() if error["loc"][0] not in free]
    assert found == []


# videos


def test_create_and_poll_gives_a_clip(api: Any, clip: Any):
    assert (clip.status, clip.progress, clip.size, clip.seconds) == ("completed", 100, "64x96", "0.417")
    assert clip.error is None
    assert clip.expires_at > clip.completed_at >= clip.created_at
    assert clip.model_extra["seed"] == 3
    assert_shape(types.Video, clip, "size")


def test_create_answers_at_once_and_poll_waits(api: Any, wish: dict[str, Any]):
    made = api(lambda c: c.videos.create(**wish))
    assert made.status in ("queued", "in_progress")
    assert_shape(types.Video, made, "size")
    assert api(lambda c: c.videos.poll(made.id)).status == "completed"
    assert api(lambda c: c.videos.poll(made.id, poll_interval_ms=5)).id == made.id
    again = api(lambda c: c.videos.retrieve(made.id))
    assert (again.id, again.prompt, again.object) == (made.id, "a figure", "video")


def test_a_clip_may_be_waited_for_in_the_request(api: Any, wish: dict[str, Any]):
    assert api(lambda c: c.videos.create(**with_extra(wish, wait=50))).status == "completed"


def test_raw_responses_say_when_to_ask_again_and_who_they_are(api: Any, wish: dict[str, Any]):
    raw = api(lambda c: c.videos.with_raw_response.create(**wish))
    video = raw.parse()
    assert int(raw.headers["openai-poll-after-ms"]) >= 200
    assert raw.headers["x-request-id"].startswith("req_")
    assert video._request_id == raw.headers["x-request-id"]
    api(lambda c: c.videos.poll(video.id))


def test_list_pages_by_itself_in_both_orders(api: Any, wish: dict[str, Any]):
    made = [api(lambda c: c.videos.create(**wish)).id for _ in range(4)]
    found = [video.id for video in api.all(lambda c: c.videos.list(limit=2))]
    assert found[:4] == made[::-1]
    assert len(found) == len(set(found))
    assert [video.id for video in api.all(lambda c: c.videos.list(limit=2, order="asc"))] == found[::-1]
    page = api(lambda c: c.videos.list(limit=2, after=made[3]))
    assert [video.id for video in page.data] == made[2:0:-1]
    assert (page.last_id, page.has_more) == (made[1], True)
    for video_id in made:
        gone = api(lambda c, video_id=video_id: c.videos.delete(video_id))
        assert (gone.id, gone.deleted, gone.object) == (video_id, True, "video.deleted")
        assert_shape(types.VideoDeleteResponse, gone)
    with pytest.raises(openai.NotFoundError) as missing:
        api(lambda c: c.videos.retrieve(made[0]))
    assert (missing.value.code, missing.value.param) == ("video_not_found", "video_id")


def test_every_variant_is_downloaded(api: Any, clip: Any, tmp_path: Path):
    content = api(lambda c: c.videos.download_content(clip.id))
    content.write_to_file(tmp_path / "clip.mp4")
    whole = (tmp_path / "clip.mp4").read_bytes()
    assert whole[4:8] == b"ftyp"
    assert content.response.headers["content-type"] == "video/mp4"
    assert api.read(api(lambda c: c.videos.download_content(clip.id, variant="video"))) == whole
    assert api.read(api(lambda c: c.videos.download_content(clip.id, variant="thumbnail")))[8:12] == b"WEBP"
    assert api.read(api(lambda c: c.videos.download_content(clip.id, variant="spritesheet")))[:2] == b"\xff\xd8"
    part = api(lambda c: c.videos.download_content(clip.id, extra_headers={"Range": "bytes=4-7"}))
    assert (part.response.status_code, api.read(part)) == (206, b"ftyp")
    assert part.response.headers["content-range"] == f"bytes 4-7/{len(whole)}"
    tail = api(lambda c: c.videos.download_content(clip.id, extra_headers={"Range": "bytes=-5"}))
    assert api.read(tail) == whole[-5:]
    with pytest.raises(openai.APIStatusError) as beyond:
        api(lambda c: c.videos.download_content(clip.id, extra_headers={"Range": f"bytes={len(whole)}-"}))
    assert beyond.value.status_code == 416


def test_remix_is_the_same_job_with_a_new_prompt(api: Any, clip: Any):
    remix = api(lambda c: c.videos.remix(clip.id, prompt="another"))
    assert (remix.remixed_from_video_id, remix.prompt, remix.model_extra["seed"]) == (clip.id, "another", 3)
    assert_shape(types.Video, remix, "size")
    assert api(lambda c: c.videos.poll(remix.id)).status == "completed"


def test_edit_takes_a_clip_or_a_job(api: Any, clip: Any, service: Any):
    by_id = {"video": {"id": clip.id}, "seed": 4}
    edited = api(lambda c: c.videos.edit(prompt="red", video=OMIT, extra_body=by_id))
    assert (edited.prompt, edited.remixed_from_video_id, edited.model_extra["seed"]) == ("red", clip.id, 4)
    assert api(lambda c: c.videos.poll(edited.id)).status == "completed"
    assert_shape(types.Video, edited, "size")
    in_a_part = api(lambda c: c.videos.edit(prompt="red", video=(None, clip.id.encode())))
    assert in_a_part.remixed_from_video_id == clip.id
    uploaded = api(lambda c: c.videos.edit(prompt="blue", video=Path(service.figure)))
    assert (uploaded.size, uploaded.prompt, uploaded.model_extra["num_frames"]) == ("128x192", "blue", 9)
    for video in (in_a_part, uploaded):
        api(lambda c, video=video: c.videos.delete(video.id))


def test_extend_goes_on(api: Any, clip: Any, service: Any):
    by_id = {"video": {"id": clip.id}}
    longer = api(lambda c: c.videos.extend(prompt="on", seconds="0.4", video=OMIT, extra_body=by_id))
    assert (longer.remixed_from_video_id, longer.seconds) == (clip.id, "0.75")
    assert_shape(types.Video, longer, "size")
    assert api(lambda c: c.videos.poll(longer.id)).status == "completed"
    with pytest.raises(openai.BadRequestError) as refused:
        api(lambda c: c.videos.extend(prompt="on", seconds="4", video=Path(service.figure)))
    assert (refused.value.code, refused.value.param) == ("missing_video", "driving_video")


def test_characters_are_made_found_and_used(api: Any, service: Any, wish: dict[str, Any]):
    ada = api(lambda c: c.videos.create_character(name="Ada", video=Path(service.figure)))
    assert ada.name == "Ada"
    assert_shape(types.VideoCreateCharacterResponse, ada)
    found = api(lambda c: c.videos.get_character(ada.id))
    assert (found.id, found.name, found.created_at) == (ada.id, "Ada", ada.created_at)
    assert_shape(types.VideoGetCharacterResponse, found)
    here = {**wish["extra_body"], "input_reference": {"file_id": ada.id}}
    video = api(lambda c: c.videos.create(prompt="p", size="64x96", extra_body=here))
    assert api(lambda c: c.videos.poll(video.id)).status == "completed"
    with pytest.raises(openai.NotFoundError) as missing:
        api(lambda c: c.videos.get_character("file_" + "0" * 32))
    assert missing.value.code == "character_not_found"


def test_a_failed_job_is_an_answer_and_no_exception(api: Any, service: Any, wish: dict[str, Any]):
    # A picture of a person, as motion: it opens as a video, and no pose is drawn in it.
    motion = api(lambda c: c.files.create(file=Path(service.figure), purpose="user_data")).id
    video = api(lambda c: c.videos.create_and_poll(**with_extra(wish, pose_video={"file_id": motion})))
    assert (video.status, video.error.code) == ("failed", "not_a_pose_video")
    assert video.error.message
    assert_shape(types.Video, video, "size")


def test_a_cancelled_job_ends_a_poll(api: Any, wish: dict[str, Any]):
    video = api(lambda c: c.videos.create(**with_extra(wish, num_inference_steps=100, num_frames=17)))
    stopped = api(lambda c: c.post(f"/videos/{video.id}/cancel", cast_to=types.Video))
    assert stopped.status == "cancelled"
    assert api(lambda c: c.videos.poll(video.id)).status == "cancelled"


# files and models


def test_files_are_kept_listed_read_and_forgotten(api: Any, service: Any):
    first = api(lambda c: c.files.create(file=("motion.mp4", b"abc"), purpose="user_data"))
    assert (first.bytes, first.filename, first.purpose, first.status) == (3, "motion.mp4", "user_data", "processed")
    assert_shape(types.FileObject, first)
    assert api(lambda c: c.files.wait_for_processing(first.id)).id == first.id
    second = api(lambda c: c.files.create(file=b"defg", purpose="vision"))
    assert api(lambda c: c.files.retrieve(second.id)).bytes == 4
    assert api.read(api(lambda c: c.files.content(first.id))) == b"abc"
    listed = [file.id for file in api.all(lambda c: c.files.list(limit=1, order="asc"))]
    assert [file_id for file_id in listed if file_id in (first.id, second.id)] == [first.id, second.id]
    assert second.id in [file.id for file in api.all(lambda c: c.files.list(purpose="vision"))]
    for file in (first, second):
        gone = api(lambda c, file=file: c.files.delete(file.id))
        assert gone.deleted is True
        assert_shape(types.FileDeleted, gone)
    with pytest.raises(openai.NotFoundError):
        api(lambda c: c.files.content(first.id))


def test_models_are_what_warm_workers_serve(api: Any):
    (model,) = api.all(lambda c: c.models.list())
    assert (model.id, model.owned_by, model.model_extra["family"]) == ("dynamictrl", "dynamictrl", "mini")
    assert_shape(types.Model, model)
    assert api(lambda c: c.models.retrieve("dynamictrl")).id == "dynamictrl"
    with pytest.raises(openai.NotFoundError) as missing:
        api(lambda c: c.models.retrieve("sora-2"))
    assert missing.value.code == "model_not_found"


# errors


def refused(call: Any, kind: type[openai.APIStatusError]) -> tuple[str | None, str | None, str | None]:
    """The code, parameter and type of the very exception that the SDK has for it."""
    with pytest.raises(openai.APIStatusError) as problem:
        call()
    assert type(problem.value) is kind, problem.value
    assert problem.value.request_id
    assert isinstance(problem.value.body, dict)
    assert problem.value.body["message"]
    return problem.value.code, problem.value.param, problem.value.type


BAD = "invalid_request_error"


def test_each_refusal_is_the_exception_that_the_sdk_has_for_it(
    api: Any, connect: Any, service: Any, wish: dict[str, Any], clip: Any
):
    def create(**changes: Any) -> Any:
        return lambda: api(lambda c: c.videos.create(**{**wish, **changes}))

    assert refused(create(size="65x96"), openai.BadRequestError) == ("bad_size", "size", BAD)
    as_bytes = {"extra_body": {"pose_video": b"bytes"}}
    assert refused(create(**as_bytes), openai.BadRequestError) == ("bytes_as_text", "pose_video", BAD)
    assert refused(create(extra_body={}), openai.BadRequestError) == ("missing_video", "driving_video", BAD)
    assert refused(create(model="sora-2"), openai.NotFoundError)[:2] == ("model_not_found", "model")
    big = {"input_reference": ("big.png", b"0" * 1_500_000)}
    assert refused(create(**big), openai.APIStatusError) == ("too_large", "input_reference", BAD)
    huge = {"input_reference": ("huge.png", b"0" * 3_500_000)}
    assert refused(create(**huge), openai.APIStatusError) == ("body_too_large", None, BAD)
    plain = {"Content-Type": "text/plain"}
    call = lambda: api(lambda c: c.files.create(file=b"abc", purpose="vision", extra_headers=plain))  # noqa: E731
    assert refused(call, openai.APIStatusError) == ("content_type", None, BAD)
    nobody, reader = connect(key="dc_nobody_0"), connect(key=service.reading_key)
    assert refused(lambda: nobody(lambda c: c.videos.list()), openai.AuthenticationError) == (
        "invalid_api_key", None, "authentication_error"
    )  # fmt: skip
    assert reader(lambda c: c.videos.retrieve(clip.id)).id == clip.id
    assert refused(lambda: reader(lambda c: c.videos.delete(clip.id)), openai.PermissionDeniedError) == (
        "insufficient_scope", None, "permission_error"
    )  # fmt: skip
    other = connect(key=service.other_key)
    assert refused(lambda: other(lambda c: c.videos.retrieve(clip.id)), openai.NotFoundError)[0] == "video_not_found"
    hasty = connect(key=service.hasty_key)
    with pytest.raises(openai.RateLimitError) as limited:
        [hasty(lambda c: c.models.list()) for _ in range(3)]
    assert (limited.value.code, limited.value.type) == ("rate_limited", "rate_limit_error")
    assert int(limited.value.response.headers["retry-after"]) >= 1
    broken = connect(url=service.broken_url)
    with pytest.raises(openai.InternalServerError) as failed:
        broken(lambda c: c.videos.list())
    assert failed.value.type == "server_error"
    assert failed.value.request_id


def test_idempotency_keys_give_one_job(api: Any, wish: dict[str, Any], connect: Any):
    key = {"Idempotency-Key": f"one-{id(api)}"}
    first = api(lambda c: c.videos.create(**wish, extra_headers=key))
    assert api(lambda c: c.videos.create(**wish, extra_headers=key)).id == first.id
    other = {**wish, "prompt": "other"}
    call = lambda: api(lambda c: c.videos.create(**other, extra_headers=key))  # noqa: E731
    assert refused(call, openai.UnprocessableEntityError)[0] == "idempotency_key_reused"
    api(lambda c: c.videos.delete(first.id))


# retries


class Forgetful(BaseHTTPRequestHandler):
    """Passes requests on to the service, and loses the first answers on the way back."""

    target = ""
    losses: list[str] = []  # noqa: RUF012 - "cut" or "503", one for each answer that is lost
    seen: list[str] = []  # noqa: RUF012

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        parts = urlsplit(self.target)
        assert parts.hostname is not None
        upstream = http.client.HTTPConnection(parts.hostname, parts.port)
        upstream.request("POST", parts.path + self.path, body, dict(self.headers))
        answer = upstream.getresponse()
        data = answer.read()
        self.seen.append(self.headers.get("x-stainless-retry-count", ""))
        loss = self.losses.pop(0) if self.losses else ""
        if loss == "cut":
            self.close_connection = True
            self.connection.shutdown(2)
            return
        status = 503 if loss else answer.status
        self.send_response(status)
        for name in ("content-type", "x-request-id"):
            self.send_header(name, answer.getheader(name, ""))
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def forgetful(service: Any) -> Iterator[type[Forgetful]]:
    class Handler(Forgetful):
        target, losses, seen = service.url, [], []

    socketserver.TCPServer.allow_reuse_address = True
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Handler.address = f"http://127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield Handler
    server.shutdown()
    thread.join()


@pytest.mark.parametrize("losses", [["503", "503"], ["cut"]])
def test_the_sdks_own_retries_make_one_job(
    api: Any, connect: Any, wish: dict[str, Any], forgetful: Any, losses: list[str], request: pytest.FixtureRequest
):
    before = {video.id for video in api.all(lambda c: c.videos.list())}
    forgetful.losses.extend(losses)
    unlucky = connect(url=forgetful.address, max_retries=2)
    prompt = f"retry {request.node.name}"
    made = unlucky(lambda c: c.videos.create(**{**wish, "prompt": prompt}))
    assert forgetful.seen == [str(number) for number in range(len(losses) + 1)]
    new = {video.id for video in api.all(lambda c: c.videos.list())} - before
    assert new == {made.id}
    api(lambda c: c.videos.delete(made.id))


# webhooks


def test_webhooks_are_verified_and_read_by_the_sdk(api: Any, service: Any, wish: dict[str, Any]):
    received: list[tuple[dict[str, str], bytes]] = []
    arrived = threading.Event()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((dict(self.headers), self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(204)
            self.end_headers()
            arrived.set()

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/told"
    video = api(lambda c: c.videos.create_and_poll(**with_extra(wish, webhook_url=url)))
    assert arrived.wait(20)
    server.shutdown()
    thread.join()
    headers, body = received[0]
    webhooks = openai.OpenAI(api_key="none", webhook_secret=service.webhook_secret).webhooks
    webhooks.verify_signature(body, headers)
    event = webhooks.unwrap(body, headers)
    assert (event.type, json.loads(body)["data"]["id"]) == ("video.completed", video.id)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        webhooks.verify_signature(body + b" ", headers)
