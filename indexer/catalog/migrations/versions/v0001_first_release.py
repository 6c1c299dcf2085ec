"""The first release's tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make every table, and set the clock to 0."""
    clock = op.create_table(
        "clock", sa.Column("id", sa.Integer, primary_key=True), sa.Column("value", sa.Integer, nullable=False)
    )
    op.bulk_insert(clock, [{"id": 1, "value": 0}])
    _stems()
    _embeddings()
    _jobs()
    _generations()


def _stems() -> None:
    op.create_table(
        "stems",
        sa.Column("row", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(32), nullable=False, unique=True),
        sa.Column("sha256", sa.String(64), unique=True),
        sa.Column("file_name", sa.String, nullable=False),
        sa.Column("title", sa.String, nullable=False),
        sa.Column("instrument", sa.String, index=True),
        sa.Column("track", sa.String, index=True),
        sa.Column("collection", sa.String, index=True),
        sa.Column("tempo_bpm", sa.Float),
        sa.Column("key", sa.String),
        sa.Column("format", sa.String, nullable=False),
        sa.Column("duration_s", sa.Float, nullable=False),
        sa.Column("sample_rate", sa.Integer, nullable=False),
        sa.Column("channels", sa.Integer, nullable=False),
        sa.Column("warnings", sa.JSON, nullable=False),
        sa.Column("state", sa.String(16), nullable=False, index=True),
        sa.Column("problem", sa.JSON),
        sa.Column("windows", sa.Integer, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("seq", sa.Integer, nullable=False, index=True),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "stem_tags",
        sa.Column("stem_row", sa.Integer, sa.ForeignKey("stems.row", ondelete="CASCADE"), primary_key=True),
        sa.Column("tag", sa.String, primary_key=True, index=True),
    )


def _embeddings() -> None:
    op.create_table(
        "embeddings",
        sa.Column("stem_row", sa.Integer, sa.ForeignKey("stems.row", ondelete="CASCADE"), primary_key=True),
        sa.Column("fingerprint", sa.String(64), primary_key=True),
        sa.Column("windows", sa.LargeBinary, nullable=False),
        sa.Column("starts_s", sa.LargeBinary, nullable=False),
        sa.Column("embedding", sa.LargeBinary, nullable=False),
        sa.Column("problem", sa.JSON),
    )


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False, index=True),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("finished_at", sa.Float),
        sa.Column("request", sa.JSON, nullable=False),
        sa.Column("progress", sa.JSON),
        sa.Column("result", sa.JSON),
        sa.Column("problem", sa.JSON),
    )
    op.create_table(
        "job_items",
        sa.Column("job_id", sa.String(32), sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True),
        sa.Column("file_name", sa.String, nullable=False),
        sa.Column("stem_row", sa.Integer, sa.ForeignKey("stems.row")),
        sa.Column("created", sa.Integer, nullable=False),
        sa.Column("problem", sa.JSON),
    )


def _generations() -> None:
    op.create_table(
        "generations",
        sa.Column("generation", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "aliases",
        sa.Column("name", sa.String(16), primary_key=True),
        sa.Column("generation", sa.Integer, sa.ForeignKey("generations.generation"), nullable=False),
        sa.Column("previous", sa.Integer, sa.ForeignKey("generations.generation")),
        sa.Column("configured", sa.String(64), nullable=False),
    )
