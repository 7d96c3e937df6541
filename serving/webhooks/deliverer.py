"""Delivers what is in the outbox, in threads of its own: rendering never waits for a receiver, nor one for another.

| answer of the receiver | what follows |
|---|---|
| 2xx | delivered |
| 410 | dead at once: it says that nobody lives there |
| 429, 503 with Retry-After | tried again then, within the hour |
| anything else, or none in 15 s | tried again after 5 s, 15 s, 45 s, ... 2 h, give or take a fifth, for a day |

A receiver gets at most two events at a time, and all that failed last time together at most half of the places: so the
dead cannot hold up the living. Redirects are not followed. Several deliverers may share one outbox.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx

from dynamictrl.errors import InputError
from serving.backend import Backend
from serving.media.safe_connect import Reach, call, read_body
from serving.watching import tracing
from serving.watching.metrics import WEBHOOK_TRIES
from serving.webhooks.outbox import Event, Outbox
from serving.webhooks.signing import WebhookSecrets, signed_headers

logger = logging.getLogger(__name__)

POLL_S = 0.5
"""Seconds between two looks at an empty outbox."""
PLACES = 8
PER_HOST = 2
TRY_S = 15.0
"""Seconds within which a receiver has to have answered."""
TIDY_S = 3600.0
"""Seconds between two removals of events that ended long ago."""
FIRST_S, FACTOR, LONGEST_S = 5.0, 3.0, 7200.0
"""The wait after the first failure, what it grows by, and where it stops."""


def deliverer_of(backend: Backend) -> Deliverer:
    """The deliverer of a service, not yet started."""
    engine = backend.store.engine
    return Deliverer(Outbox(engine), WebhookSecrets(engine), Reach(private_hosts=backend.service.private_hosts))


class Deliverer:
    """A thread that claims due events, and a few that deliver them."""

    def __init__(self, outbox: Outbox, secrets: WebhookSecrets, reach: Reach, *, first_s: float = FIRST_S):
        self.outbox = outbox
        self._secrets = secrets
        self._reach = reach
        self._first_s = first_s
        self._running: Counter[str] = Counter()
        self._ailing: set[str] = set()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._pool = ThreadPoolExecutor(PLACES, thread_name_prefix="webhook")
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self, seconds: float = TRY_S) -> None:
        """Claims nothing more, and waits so long for what is on its way; the rest is due again in a minute."""
        self._stopping.set()
        until = time.monotonic() + seconds
        if self._thread.is_alive():
            self._thread.join(seconds)
        while self._running.total() and time.monotonic() < until:
            time.sleep(0.05)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> None:
        next_tidying = 0.0
        while not self._stopping.is_set():
            try:
                if time.monotonic() >= next_tidying:
                    next_tidying = time.monotonic() + TIDY_S
                    self.outbox.forget()
                found = self._claim()
            except Exception:
                logger.exception("the webhook outbox could not be asked; trying again")
                found = 0
                self._stopping.wait(2.0)
            if not found:
                self._stopping.wait(POLL_S)

    def _claim(self) -> int:
        with self._lock:
            free = PLACES - self._running.total()
            full = {host for host, count in self._running.items() if count >= PER_HOST}
            if sum(self._running[host] for host in self._ailing) >= PLACES // 2:
                full |= self._ailing
        events = self.outbox.claim(most=free, without_hosts=full) if free > 0 else []
        taken = 0
        for event in events:
            with self._lock:
                fits = self._running[event.host] < PER_HOST
                if fits:
                    self._running[event.host] += 1
            if not fits:
                self.outbox.unclaim(event)
                continue
            taken += 1
            self._pool.submit(self._deliver, event)
        return taken

    def _deliver(self, event: Event) -> None:
        try:
            is_well = self.try_once(event)
        except Exception:
            logger.exception("event %s could not be recorded; it is due again in a minute", event.id)
            is_well = False
        with self._lock:
            if len(self._ailing) > 10_000:
                self._ailing.clear()  # what is well again in truth leaves by itself; the rest comes back
            self._running[event.host] -= 1
            if self._running[event.host] <= 0:
                del self._running[event.host]
            (self._ailing.discard if is_well else self._ailing.add)(event.host)

    def try_once(self, event: Event) -> bool:
        """One delivery; what came of it is in the outbox. Whether the receiver took it."""
        with tracing.span(
            "webhook", parent=event.traceparent, kind="client", event=event.event, job=event.video_id,
            webhook=event.id, attempt=event.tries + 1
        ) as span:  # fmt: skip
            status, error, retry_after = self._send(event)
            span.set(status=status)
            WEBHOOK_TRIES.labels("delivered" if not error else "refused" if status else "unreachable").inc()
            if not error:
                assert status is not None
                self.outbox.delivered(event, status)
                return True
            span.fail(error)
        next_at = None if status == 410 else self.outbox.clock() + (retry_after or self._wait(event.tries))
        self.outbox.failed(event, status=status, error=error, next_at=next_at)
        logger.warning("event %s of job %s was not taken by %s: %s", event.id, event.video_id, event.host, error)
        return False

    def _send(self, event: Event) -> tuple[int | None, str, float | None]:
        """The receiver's status, what went wrong (nothing: it took the event), and when it wants to be asked again."""
        signing = self._secrets.of(event.tenant)
        if not signing:
            return None, "the tenant has no webhook secret", None
        headers = [("Content-Type", "application/json"), ("User-Agent", "DynamiCtrl-Webhooks/1"),
                   *signed_headers(event.id, event.payload, signing, time.time())]  # fmt: skip
        try:
            with call(
                event.url, self._reach, method="POST", headers=headers, content=event.payload.encode(), seconds=TRY_S
            ) as answer:
                read_body(answer, 1024)
                status = answer.status
                asked = httpx.Headers(answer.headers).get("retry-after", "")
        except InputError as problem:
            return None, f"{problem.code}: {problem}", None
        if 200 <= status < 300:
            return status, "", None
        later = float(asked) if asked.isdigit() and status in (429, 503) else None
        return status, f"it answered {status}", min(later, 3600.0) if later is not None else None

    def _wait(self, tries: int) -> float:
        return min(LONGEST_S, self._first_s * FACTOR**tries) * random.uniform(0.8, 1.2)
