"""Who may ask, what they have used and did, and what their servers are to be told."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_KEEP_SQLITE = """
CREATE TRIGGER audit_log_no_{verb} BEFORE {VERB} ON audit_log
BEGIN SELECT RAISE(ABORT, 'the audit log is only ever added to'); END
"""
_KEEP_POSTGRESQL = (
    """
    CREATE FUNCTION audit_log_refuse() RETURNS trigger AS $$
    BEGIN RAISE EXCEPTION 'the audit log is only ever added to'; END
    $$ LANGUAGE plpgsql
    """,
    """
    CREATE TRIGGER audit_log_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION audit_log_refuse()
    """,
)


def upgrade() -> None:
    op.add_column("files", sa.Column("tenant", sa.String(64), nullable=False, server_default="local"))
    op.create_index("files_by_tenant", "files", ["tenant", "place"])
    op.add_column("videos", sa.Column("stored_bytes", sa.BigInteger, nullable=False, server_default="0"))
    _who_may_ask()
    _what_they_used()
    _what_they_did()
    _what_they_are_told()


def _who_may_ask() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("scopes", sa.String(256), nullable=False),
        sa.Column("note", sa.String(200), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float),
        sa.Column("revoked_at", sa.Float),
    )
    op.create_table(
        "tenant_quotas",
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("quotas", sa.Text, nullable=False),
        sa.Column("changed_at", sa.Float, nullable=False),
    )


def _what_they_used() -> None:
    op.create_table(
        "rate_buckets",
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("tokens", sa.Float, nullable=False),
        sa.Column("filled_at", sa.Float, nullable=False),
    )
    op.create_table(
        "admission_locks",
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("at", sa.Float, nullable=False),
    )
    op.create_table(
        "usage",
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("month", sa.String(7), primary_key=True),
        sa.Column("model", sa.String(200), primary_key=True),
        sa.Column("quality", sa.String(16), primary_key=True),
        sa.Column("outcome", sa.String(16), primary_key=True),
        sa.Column("jobs", sa.Integer, nullable=False),
        sa.Column("gpu_seconds", sa.Float, nullable=False),
    )


def _what_they_did() -> None:
    op.create_table(
        "audit_log",
        sa.Column("place", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("key_id", sa.String(32), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("target", sa.String(64), nullable=False),
        sa.Column("address", sa.String(64), nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("code", sa.String(64), nullable=False),
        sa.Column("request_id", sa.String(64), nullable=False),
    )
    op.create_index("audit_by_tenant", "audit_log", ["tenant", "place"])
    if op.get_bind().dialect.name == "postgresql":
        for statement in _KEEP_POSTGRESQL:
            op.execute(statement)
    else:
        for verb in ("update", "delete"):
            op.execute(_KEEP_SQLITE.format(verb=verb, VERB=verb.upper()))


def _what_they_are_told() -> None:
    op.create_table(
        "webhook_outbox",
        sa.Column("place", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(64), nullable=False, unique=True),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("video_id", sa.String(64), nullable=False),
        sa.Column("event", sa.String(32), nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("payload", sa.Text, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("gives_up_at", sa.Float, nullable=False),
        sa.Column("next_at", sa.Float, nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("claim", sa.Integer, nullable=False),
        sa.Column("claimed_until", sa.Float, nullable=False),
        sa.Column("last_status", sa.Integer),
        sa.Column("last_error", sa.String(200)),
        sa.Column("delivered_at", sa.Float),
        sa.Column("traceparent", sa.String(64)),
    )
    op.create_index("webhooks_due", "webhook_outbox", ["status", "next_at"])
    op.create_index("webhooks_by_video", "webhook_outbox", ["video_id"])
    op.create_table(
        "webhook_secrets",
        sa.Column("place", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("secret", sa.String(128), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("retires_at", sa.Float),
    )
    op.create_index("ix_webhook_secrets_tenant", "webhook_secrets", ["tenant"])
