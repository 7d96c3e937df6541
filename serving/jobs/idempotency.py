"""What an Idempotency-Key stands for: one request of one tenant."""

from __future__ import annotations

import hashlib

LOCAL = "local"
"""The tenant of a service without keys."""


class IdempotencyError(Exception):
    """An Idempotency-Key was used before for another request."""


def key_of(tenant: str, idempotency_key: str) -> str:
    """The key as the store has it: tenants cannot meet in it, and it cannot be read back."""
    return hashlib.sha256(f"{tenant}\0{idempotency_key}".encode()).hexdigest()
