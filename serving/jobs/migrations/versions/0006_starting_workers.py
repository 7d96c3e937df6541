"""A worker says from its first moment that it is there, and why it has no model yet."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("workers", sa.Column("state", sa.String(16), nullable=False, server_default="warm"))
    op.add_column("workers", sa.Column("why", sa.String(64)))
