"""How much of each pitch class sounds in a stem. What is here already gets it by a reindex."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the column."""
    op.add_column("stems", sa.Column("chroma", sa.LargeBinary))
