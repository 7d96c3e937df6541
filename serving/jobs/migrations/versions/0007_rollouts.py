"""Which version of a registered model serves whom."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "rollouts",
        sa.Column("model", sa.String(200), primary_key=True),
        sa.Column("stable", sa.String(200), nullable=False),
        sa.Column("proven", sa.Boolean, nullable=False),
        sa.Column("candidate", sa.String(200)),
        sa.Column("previous", sa.String(200)),
        sa.Column("rejected", sa.String(200)),
        sa.Column("phase", sa.String(16), nullable=False),
        sa.Column("since", sa.Float, nullable=False),
        sa.Column("percent", sa.Integer, nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("leader", sa.String(64)),
        sa.Column("leads_until", sa.Float),
    )
