"""What each tenant's videos take up, summed along an index: every scrape of /metrics and every bounded upload asks."""

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.create_index("videos_by_stored_bytes", "videos", ["tenant", "stored_bytes"])
