"""Webhooks from a job's end to a receiver: real HTTP, the stock client's own verification, receivers that are down."""

import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import openai
import pytest
from sqlalchemy import Engine, event

from serving.jobs.job import Settings
from serving.jobs.store import JobStore, new_video_id
from serving.media.safe_connect import Reach
from serving.webhooks.deliverer import PER_HOST, Deliverer
from serving.webhooks.outbox import GIVE_UP_S, KEPT_S, Outbox
from serving.webhooks.signing import OVERLAP_S, WebhookSecrets
from tests.unit.serving.conftest import Clock

SETTINGS = Settings(
    prompt="a secret wish", width=64, height=96, num_frames=9, fps=12.0, resample=False, num_inference_steps=3,
    guidance_scale=3.0, seed=1
)  # fmt: skip


@dataclass
class Receiver:
    """A client's server: keeps what comes, answers what it is told to."""

    url: str = ""
    got: list[tuple[bytes, dict[str, str]]] = field(default_factory=list)
    answers: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    """Taken one by one, then always 200."""
    hold: threading.Event | None = None
    """Answers wait for this."""
    at_once: int = 0
    most_at_once: int = 0

    @property
    def host(self) -> str:
        return self.url.split("/")[2]


@pytest.fixture
def receive() -> Iterator[Callable[[], Receiver]]:
    servers: list[tuple[ThreadingHTTPServer, Receiver]] = []

    def make() -> Receiver:
        receiver, lock = Receiver(), threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                with lock:
                    receiver.at_once += 1
                    receiver.most_at_once = max(receiver.most_at_once, receiver.at_once)
                body = self.rfile.read(int(self.headers["content-length"]))
                if receiver.hold is not None:
                    receiver.hold.wait(20)
                with lock:
                    receiver.at_once -= 1
                    receiver.got.append((body, {k.lower(): v for k, v in self.headers.items()}))
                    status, headers = receiver.answers.pop(0) if receiver.answers else (200, {})
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        receiver.url = f"http://127.0.0.1:{server.server_address[1]}/hook"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append((server, receiver))
        return receiver

    yield make
    for server, receiver in servers:
        if receiver.hold is not None:
            receiver.hold.set()
        server.shutdown()
        server.server_close()


def finished(engine: Engine, url: str | None, *, how: str = "completed", tenant: str = "acme") -> str:
    store = JobStore(engine)
    video, _ = store.add(
        video_id=new_video_id(), model="m", settings=SETTINGS, inputs={}, content_hash=secrets.token_hex(8),
        tenant=tenant, webhook_url=url
    )  # fmt: skip
    if how == "cancelled":
        store.cancel(video.id)
        return video.id
    lease = store.lease("worker", 60.0, 3)
    assert lease is not None
    if how == "completed":
        store.complete(video.id, lease.token, model_version="1", expires_at=time.time() + 60)
    else:
        store.fail(video.id, lease.token, code="no_person_in_image", message="m")
    return video.id


def deliverer_for(
    engine: Engine, *receivers: Receiver, clock: Callable[[], float] = time.time, **how: Any
) -> Deliverer:
    reach = Reach(private_hosts=tuple(receiver.host for receiver in receivers))
    return Deliverer(Outbox(engine, clock=clock), WebhookSecrets(engine, clock=clock), reach, **how)


def wait_for(condition: Callable[[], object], seconds: float = 15.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(0.02)


@pytest.mark.parametrize("how", ["completed", "failed", "cancelled"])
def test_the_stock_client_verifies_and_unwraps_what_a_receiver_gets(
    engine: Engine, receive: Callable[[], Receiver], how: str
):
    receiver = receive()
    secret = WebhookSecrets(engine).rotate("acme")
    video_id = finished(engine, receiver.url, how=how)
    deliverer = deliverer_for(engine, receiver)
    deliverer.start()
    wait_for(lambda: Outbox(engine).counts()["delivered"])
    deliverer.stop()
    ((body, headers),) = receiver.got
    client = openai.OpenAI(api_key="none", webhook_secret=secret)
    got = client.webhooks.unwrap(body, headers)
    assert (got.type, got.data.id, got.id) == (f"video.{how}", video_id, headers["webhook-id"])  # type: ignore[union-attr]
    assert b"secret wish" not in body
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.verify_signature(body.replace(b"video", b"radio"), headers)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.verify_signature(body, headers, secret=WebhookSecrets(engine).rotate("other"))


def test_an_end_and_its_event_are_committed_together_or_not_at_all(engine: Engine, receive: Callable[[], Receiver]):
    store, url = JobStore(engine), receive().url
    video, _ = store.add(video_id=new_video_id(), model="m", settings=SETTINGS, inputs={}, content_hash="c",
                         webhook_url=url)  # fmt: skip
    lease = store.lease("worker", 60.0, 3)
    assert lease is not None

    def die(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "INTO webhook_outbox" in statement:
            raise KeyboardInterrupt

    event.listen(engine, "before_cursor_execute", die)
    with pytest.raises(KeyboardInterrupt):
        store.complete(video.id, lease.token, model_version="1", expires_at=0.0)
    event.remove(engine, "before_cursor_execute", die)
    now = store.get(video.id)
    assert now is not None
    assert now.status == "in_progress"
    assert Outbox(engine).list() == []
    assert store.complete(video.id, lease.token, model_version="1", expires_at=0.0)
    assert store.complete(video.id, lease.token, model_version="1", expires_at=0.0)  # says it again; one event stays
    assert [e.event for e in Outbox(engine).list()] == ["video.completed"]


def test_a_job_without_a_webhook_leaves_no_event(engine: Engine):
    finished(engine, None)
    assert Outbox(engine).list() == []


def test_a_failing_receiver_is_asked_again_later_and_the_event_keeps_its_id(
    engine: Engine, receive: Callable[[], Receiver]
):
    receiver = receive()
    receiver.answers = [(500, {}), (503, {"retry-after": "100"}), (302, {"location": "http://127.0.0.1/"})]
    WebhookSecrets(engine).rotate("acme")
    finished(engine, receiver.url)
    clock = Clock(time.time())
    deliverer = deliverer_for(engine, receiver, clock=clock)
    waits = []
    for _ in range(4):
        clock.now = max(clock.now, Outbox(engine).list()[0].next_at)
        (due,) = deliverer.outbox.claim(most=5)
        before = clock.now
        if deliverer.try_once(due):
            break
        waits.append(Outbox(engine).list()[0].next_at - before)
    assert 4 <= waits[0] <= 6
    assert waits[1] == 100
    assert 36 <= waits[2] <= 54
    (row,) = Outbox(engine).list()
    assert (row.status, row.tries, row.last_status) == ("delivered", 4, 200)
    assert {headers["webhook-id"] for _, headers in receiver.got} == {row.id}


def test_what_nobody_takes_for_a_day_is_dead_until_it_is_replayed(engine: Engine, receive: Callable[[], Receiver]):
    WebhookSecrets(engine).rotate("acme")
    video_id = finished(engine, "http://127.0.0.1:9/hook")
    clock = Clock(time.time())
    deliverer = deliverer_for(engine, clock=clock)
    tries, began = 0, clock.now
    while (row := Outbox(engine).list()[0]).status == "pending":
        clock.now = max(clock.now, row.next_at)
        (due,) = deliverer.outbox.claim(most=5)
        assert not deliverer.try_once(due)
        tries += 1
        assert tries < 100
    assert row.status == "dead"
    assert row.last_error
    assert row.last_error.startswith("url_port")
    assert GIVE_UP_S - 9000 < clock.now - began <= GIVE_UP_S
    assert 12 <= tries <= 30
    assert Outbox(engine, clock=clock).replay(video_id=video_id, tenant="stranger") == 0
    assert Outbox(engine, clock=clock).replay(video_id=video_id, tenant="acme") == 1
    (again,) = deliverer.outbox.claim(most=5)
    assert again.id == row.id


def test_a_receiver_that_is_gone_is_not_asked_again(engine: Engine, receive: Callable[[], Receiver]):
    receiver = receive()
    receiver.answers = [(410, {})]
    WebhookSecrets(engine).rotate("acme")
    finished(engine, receiver.url)
    deliverer = deliverer_for(engine, receiver)
    (due,) = deliverer.outbox.claim(most=5)
    assert not deliverer.try_once(due)
    assert Outbox(engine).counts() == {"pending": 0, "delivered": 0, "dead": 1}


def test_private_addresses_are_not_called(engine: Engine, receive: Callable[[], Receiver]):
    receiver = receive()
    WebhookSecrets(engine).rotate("acme")
    finished(engine, receiver.url.replace(f":{receiver.url.split(':')[2]}", "/hook"))
    deliverer = deliverer_for(engine)
    (due,) = deliverer.outbox.claim(most=5)
    assert not deliverer.try_once(due)
    assert str(Outbox(engine).list()[0].last_error).startswith("url_not_public")
    assert receiver.got == []


def test_an_event_is_claimed_by_one_deliverer_and_due_again_when_that_one_dies(engine: Engine):
    finished(engine, "http://receiver.example/hook")
    clock = Clock(time.time())
    boxes = [Outbox(engine, clock=clock) for _ in range(2)]
    (first,) = boxes[0].claim(most=5)
    assert boxes[1].claim(most=5) == []
    clock.now += 61
    (second,) = boxes[1].claim(most=5)
    assert second.claim == first.claim + 1
    assert not boxes[0].delivered(first, 200)  # the dead one comes back: his word counts no more
    assert boxes[1].delivered(second, 200)


def test_a_receiver_that_hangs_holds_up_nobody_else(engine: Engine, receive: Callable[[], Receiver]):
    slow, quick = receive(), receive()
    slow.hold = threading.Event()
    for tenant in ("slow", "quick"):
        WebhookSecrets(engine).rotate(tenant)
    for _ in range(12):
        finished(engine, slow.url, tenant="slow")
    for _ in range(6):
        finished(engine, quick.url, tenant="quick")
    deliverer = deliverer_for(engine, slow, quick)
    deliverer.start()
    wait_for(lambda: len(quick.got) == 6)
    assert slow.got == []
    assert slow.most_at_once <= PER_HOST
    slow.hold.set()
    wait_for(lambda: len(slow.got) == 12)
    wait_for(lambda: Outbox(engine).counts()["delivered"] == 18)
    deliverer.stop()
    assert slow.most_at_once <= PER_HOST


def test_after_a_rotation_both_secrets_verify_for_a_day(engine: Engine, receive: Callable[[], Receiver]):
    receiver, clock = receive(), Clock(time.time())
    old = WebhookSecrets(engine, clock=clock).rotate("acme")
    clock.now += 1
    new = WebhookSecrets(engine, clock=clock).rotate("acme")
    assert WebhookSecrets(engine, clock=clock).of("acme") == [new, old]
    finished(engine, receiver.url)
    deliverer = deliverer_for(engine, receiver, clock=clock)
    (due,) = deliverer.outbox.claim(most=5)
    assert deliverer.try_once(due)
    ((body, headers),) = receiver.got
    for secret in (old, new):
        assert json.loads(body) == openai.OpenAI(api_key="n").webhooks.unwrap(body, headers, secret=secret).to_dict()
    clock.now += OVERLAP_S + 1
    assert WebhookSecrets(engine, clock=clock).of("acme") == [new]


def test_events_that_ended_long_ago_are_forgotten_and_pending_ones_are_not(engine: Engine):
    for _ in range(2):
        finished(engine, "http://receiver.example/hook")
    clock = Clock(time.time())
    outbox = Outbox(engine, clock=clock)
    (due, _) = outbox.claim(most=2)
    assert outbox.delivered(due, 200)
    assert outbox.forget() == 0
    clock.now += KEPT_S + 60
    assert outbox.forget() == 1
    assert [event.status for event in outbox.list()] == ["pending"]


def test_an_event_of_a_tenant_without_a_secret_waits_for_one(engine: Engine, receive: Callable[[], Receiver]):
    receiver = receive()
    finished(engine, receiver.url)
    deliverer = deliverer_for(engine, receiver)
    (due,) = deliverer.outbox.claim(most=5)
    assert not deliverer.try_once(due)
    assert Outbox(engine).list()[0].last_error == "the tenant has no webhook secret"
    assert receiver.got == []
