"""Whose job it is, when it must start and end, what it costs; idempotency keys count within a tenant."""

import sqlalchemy as sa
from alembic import op

from serving.jobs.idempotency import LOCAL, key_of

revision = "0002"
down_revision = "0001"

_videos = sa.table("videos", sa.column("id"), sa.column("idempotency_key"))


def upgrade() -> None:
    for column in (
        sa.Column("step", sa.Integer),
        sa.Column("steps", sa.Integer),
        sa.Column("target_version", sa.String(200)),
        sa.Column("tenant", sa.String(64), nullable=False, server_default="local"),
        sa.Column("priority", sa.Integer, nullable=False, server_default="0"),
        sa.Column("rank", sa.Float, nullable=False, server_default="0"),
        sa.Column("not_before", sa.Float),
        sa.Column("queue_deadline_at", sa.Float),
        sa.Column("deadline_at", sa.Float),
        sa.Column("gpu_seconds_estimate", sa.Float),
        sa.Column("gpu_seconds", sa.Float),
        sa.Column("traceparent", sa.String(64)),
        sa.Column("webhook_url", sa.Text),
        sa.Column("manifest", sa.Text),
    ):
        op.add_column("videos", column)
    op.execute("UPDATE videos SET rank = created_at")
    op.create_index("videos_by_queue", "videos", ["status", "tenant", "rank"])
    op.create_index("videos_by_tenant", "videos", ["tenant", "place"])
    connection = op.get_bind()
    keyed = sa.select(_videos).where(_videos.c.idempotency_key.is_not(None))
    for video_id, key in connection.execute(keyed).all():
        hashed = sa.update(_videos).where(_videos.c.id == video_id).values(idempotency_key=key_of(LOCAL, key))
        connection.execute(hashed)
