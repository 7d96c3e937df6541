"""The tables of who may ask, what they have used, and what they did."""

from __future__ import annotations

from sqlalchemy import Column, Float, Index, Integer, String, Table, Text

from serving.jobs.database import METADATA

api_keys = Table(
    "api_keys",
    METADATA,
    Column("id", String(32), primary_key=True),  # the public part of the key
    Column("tenant", String(64), nullable=False),
    Column("hash", String(64), nullable=False),  # sha256 in hex of the whole key
    Column("scopes", String(256), nullable=False),  # joined by commas
    Column("note", String(200), nullable=False, default=""),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    Column("revoked_at", Float),
)

tenant_quotas = Table(
    "tenant_quotas",
    METADATA,
    Column("tenant", String(64), primary_key=True),
    Column("quotas", Text, nullable=False),  # JSON of what differs from the service's own
    Column("changed_at", Float, nullable=False),
)

rate_buckets = Table(
    "rate_buckets",
    METADATA,
    Column("tenant", String(64), primary_key=True),
    Column("tokens", Float, nullable=False),
    Column("filled_at", Float, nullable=False),
)

admission_locks = Table(
    "admission_locks",
    METADATA,
    Column("tenant", String(64), primary_key=True),  # who holds its row's lock is the only one to admit a job of it
    Column("at", Float, nullable=False),
)

usage = Table(
    "usage",
    METADATA,
    Column("tenant", String(64), primary_key=True),
    Column("month", String(7), primary_key=True),  # 2026-11, UTC
    Column("model", String(200), primary_key=True),
    Column("quality", String(16), primary_key=True),
    Column("outcome", String(16), primary_key=True),  # a job's last status, or deleted
    Column("jobs", Integer, nullable=False),
    Column("gpu_seconds", Float, nullable=False),
)

audit_log = Table(
    "audit_log",
    METADATA,
    Column("place", Integer, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("key_id", String(32), nullable=False),
    Column("action", String(64), nullable=False),  # POST /v1/videos/{video_id}/cancel, key.create
    Column("target", String(64), nullable=False),  # an id of ours, or nothing
    Column("address", String(64), nullable=False),
    Column("status", Integer, nullable=False),  # HTTP's; 0 for the command line
    Column("code", String(64), nullable=False),
    Column("request_id", String(64), nullable=False),
    Index("audit_by_tenant", "tenant", "place"),
)
