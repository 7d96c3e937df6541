"""What each process has counted, for the one that is asked."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "process_metrics",
        sa.Column("process", sa.String(64), primary_key=True),
        sa.Column("role", sa.String(32), nullable=False),
        sa.Column("families", sa.Text, nullable=False),
        sa.Column("seen_at", sa.Float, nullable=False),
    )
