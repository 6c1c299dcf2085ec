"""Musical time: a stem's tempo, key and kind with their sources, its beat grid, and windows that begin on it."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the columns; tempi and keys that are here already were said by somebody."""
    for column in (
        sa.Column("kind", sa.String(16)),
        sa.Column("pitched", sa.Boolean),
        sa.Column("sources", sa.JSON),
        sa.Column("sure", sa.JSON),
        sa.Column("said_beats", sa.Float),
        sa.Column("beat_bpm", sa.Float),
        sa.Column("beats_s", sa.LargeBinary),
        sa.Column("music_warnings", sa.JSON),
    ):
        op.add_column("stems", column)
    op.create_index("ix_stems_beat_bpm", "stems", ["beat_bpm"])
    op.add_column("embeddings", sa.Column("beats", sa.LargeBinary))
    stems = sa.table("stems", sa.column("tempo_bpm"), sa.column("key"), sa.column("sources", sa.JSON))
    tempo, key = stems.c.tempo_bpm.is_not(None), stems.c.key.is_not(None)
    for which, said in (
        (sa.and_(tempo, ~key), {"tempo_bpm": "said"}),
        (sa.and_(~tempo, key), {"key": "said"}),
        (sa.and_(tempo, key), {"tempo_bpm": "said", "key": "said"}),
    ):
        op.get_bind().execute(sa.update(stems).where(which).values(sources=said))
