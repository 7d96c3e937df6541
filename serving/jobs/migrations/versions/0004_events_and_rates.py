"""Every change of a job as an event, what jobs of a shape take, and which jobs a retry made."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "video_events",
        sa.Column("video_id", sa.String(64), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("stage", sa.String(32), nullable=False),
        sa.Column("progress", sa.Integer, nullable=False),
        sa.Column("step", sa.Integer),
        sa.Column("steps", sa.Integer),
    )
    op.create_index("video_events_by_time", "video_events", ["at"])
    op.create_table(
        "render_rates",
        sa.Column("model", sa.String(200), primary_key=True),
        sa.Column("shape", sa.String(200), primary_key=True),
        sa.Column("work", sa.Float, nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("jobs", sa.Integer, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
    )
    op.add_column("videos", sa.Column("by_retry", sa.Boolean, nullable=False, server_default=sa.false()))
    op.create_index("videos_by_deadline", "videos", ["status", "deadline_at"])
    op.create_index("videos_by_queue_deadline", "videos", ["status", "queue_deadline_at"])
    op.create_index("videos_by_end", "videos", ["status", "completed_at"])
