"""How often a tenant may ask: a token bucket in the database, from which each ingress replica draws small handfuls.

One row a tenant is the truth for all replicas, so a limit holds whatever the proxy's choice. Asking the database at
every request would cost each one a write; so a replica takes a handful (half a second's worth, at most an eighth of the
burst) and spends it from memory. What was taken is spent or lost, never doubled: no tenant gets more than its limit
over any minute, plus at most one handful a replica at the moment it begins. Handfuls are thrown away after two seconds.
A refused tenant is refused from memory until its next token is due: a flood does not reach the database.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Engine, case, insert, select, update
from sqlalchemy.exc import IntegrityError

from serving.tenants.tables import rate_buckets
from serving.tenants.tenant import Quotas, Tenant

KEPT_S = 2.0
"""Seconds after which tokens that were taken and not spent are thrown away."""


@dataclass(frozen=True)
class Allowance:
    """What the bucket says of one request."""

    limit: int
    """Requests a minute; 0 where there is no bound."""
    remaining: int
    """Requests that may follow at once, as far as this replica knows."""
    wait_s: float
    """0, or seconds until the next token."""

    @property
    def is_granted(self) -> bool:
        return self.wait_s <= 0

    def headers(self) -> dict[str, str]:
        """OpenAI's words for it; nothing where there is no bound."""
        if not self.limit:
            return {}
        reset = self.wait_s if not self.is_granted else 60.0 / self.limit
        found = {"x-ratelimit-limit-requests": str(self.limit), "x-ratelimit-remaining-requests": str(self.remaining),
                 "x-ratelimit-reset-requests": f"{reset:.3g}s"}  # fmt: skip
        return found if self.is_granted else {**found, "retry-after": str(max(1, math.ceil(self.wait_s)))}


FREE = Allowance(0, 0, 0.0)


@dataclass
class _Hand:
    tokens: float = 0.0
    taken_at: float = 0.0
    left_there: float = 0.0
    refused_until: float = 0.0


class RateLimiter:
    """Threads may share it; `try_locally` never asks the database."""

    def __init__(self, engine: Engine, *, clock: Callable[[], float] = time.time):
        self._engine = engine
        self._clock = clock
        self._hands: dict[str, _Hand] = {}
        self._lock = threading.Lock()

    def try_locally(self, tenant: Tenant) -> Allowance | None:
        """The answer where memory has it; None where `ask` has to be called, in a thread."""
        limit = tenant.quotas.requests_per_minute
        if not limit:
            return FREE
        with self._lock:
            return self._spend(self._hands.setdefault(tenant.id, _Hand()), limit)

    def ask(self, tenant: Tenant) -> Allowance:
        """One token for one request, from memory or from the database."""
        limit = tenant.quotas.requests_per_minute
        if not limit:
            return FREE
        with self._lock:
            hand = self._hands.setdefault(tenant.id, _Hand())
            answer = self._spend(hand, limit)
            if answer is not None:
                return answer
            now = self._clock()
            taken, left, wait = self._take(tenant, now)
            hand.tokens, hand.taken_at, hand.left_there = taken, now, left
            hand.refused_until = now + wait
            return self._spend(hand, limit) or Allowance(limit, 0, max(wait, 0.001))

    def _spend(self, hand: _Hand, limit: int) -> Allowance | None:
        now = self._clock()
        if now - hand.taken_at > KEPT_S:
            hand.tokens = 0.0
        if hand.tokens >= 1:
            hand.tokens -= 1
            return Allowance(limit, int(hand.tokens + hand.left_there), 0.0)
        return Allowance(limit, 0, hand.refused_until - now) if now < hand.refused_until else None

    def _take(self, tenant: Tenant, now: float) -> tuple[float, float, float]:
        """Tokens taken (a handful, one, or none), those left in the bucket, and seconds until the next where none."""
        burst, rate = capacity(tenant.quotas), tenant.quotas.requests_per_minute / 60.0
        handful = float(max(1, min(burst // 8, int(rate * 0.5))))
        here = rate_buckets.c.tenant == tenant.id
        # What clocks of two machines disagree on must not drain a bucket.
        elapsed = case((rate_buckets.c.filled_at < now, now - rate_buckets.c.filled_at), else_=0.0)
        refilled = rate_buckets.c.tokens + elapsed * rate
        full = case((refilled > burst, float(burst)), else_=refilled)
        latest = case((rate_buckets.c.filled_at < now, now), else_=rate_buckets.c.filled_at)
        with self._engine.begin() as connection:
            for count in dict.fromkeys((handful, 1.0)):
                change = update(rate_buckets).where(here, full >= count).values(tokens=full - count, filled_at=latest)
                if connection.execute(change).rowcount == 1:
                    left = connection.execute(select(rate_buckets.c.tokens).where(here)).scalar_one()
                    return count, left, 0.0
            tokens = connection.execute(select(full).where(here)).scalar()
        if tokens is not None:
            return 0.0, 0.0, max(0.001, (1.0 - tokens) / rate)
        try:
            with self._engine.begin() as connection:
                row = {"tenant": tenant.id, "tokens": burst - handful, "filled_at": now}
                connection.execute(insert(rate_buckets).values(row))
        except IntegrityError:  # another replica was first
            return self._take(tenant, now)
        return handful, burst - handful, 0.0


def capacity(quotas: Quotas) -> int:
    """Tokens that a full bucket holds."""
    return quotas.burst or max(1, quotas.requests_per_minute // 6)
