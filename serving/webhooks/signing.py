"""Secrets of tenants, and Standard Webhooks signatures made with them: what `client.webhooks.unwrap` verifies.

A secret has to be readable by whoever signs, so the database holds it as it is: who can read the job store can sign.
It is shown once. After a rotation events carry both signatures for a day, so that receivers may change over in peace.
"""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime

from sqlalchemy import Column, Engine, Float, Integer, String, Table, insert, select, update
from standardwebhooks import Webhook

from serving.jobs.database import METADATA
from serving.tenants.tenant import check_name

webhook_secrets = Table(
    "webhook_secrets",
    METADATA,
    Column("place", Integer, primary_key=True, autoincrement=True),
    Column("tenant", String(64), nullable=False, index=True),
    Column("secret", String(128), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("retires_at", Float),  # when it stops signing; null for the current one
)

OVERLAP_S = 24 * 3600.0
"""Seconds for which an old secret goes on signing beside the new one."""


class WebhookSecrets:
    """The webhook_secrets table."""

    def __init__(self, engine: Engine, *, clock: Callable[[], float] = time.time):
        self.engine = engine
        self.clock = clock

    def rotate(self, tenant: str, *, overlap_s: float = OVERLAP_S) -> str:
        """A fresh secret, shown this once; the one before signs for `overlap_s` seconds more."""
        check_name(tenant)
        secret = f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"
        current = (webhook_secrets.c.tenant == tenant) & webhook_secrets.c.retires_at.is_(None)
        with self.engine.begin() as connection:
            connection.execute(update(webhook_secrets).where(current).values(retires_at=self.clock() + overlap_s))
            row = {"tenant": tenant, "secret": secret, "created_at": self.clock()}
            connection.execute(insert(webhook_secrets).values(row))
        return secret

    def of(self, tenant: str) -> list[str]:
        """The secrets that sign now, newest first; none where the tenant never asked for one."""
        table = webhook_secrets
        good = table.c.retires_at.is_(None) | (table.c.retires_at > self.clock())
        query = select(table.c.secret).where(table.c.tenant == tenant, good).order_by(table.c.place.desc())
        with self.engine.connect() as connection:
            return list(connection.execute(query).scalars())


def signed_headers(event_id: str, payload: str, signing: list[str], now: float) -> list[tuple[str, str]]:
    """webhook-id, webhook-timestamp and webhook-signature, with one signature a secret."""
    at = datetime.fromtimestamp(int(now), UTC)
    signatures = " ".join(Webhook(secret).sign(event_id, at, payload) for secret in signing)
    return [("webhook-id", event_id), ("webhook-timestamp", str(int(now))), ("webhook-signature", signatures)]
