"""What is found by words: a column of every stem's and an index of it; favourites and ratings; saved searches."""

import sqlalchemy as sa
from alembic import op

from indexer.catalog.words import words_of

revision = "0005"
down_revision = "0004"
AT_ONCE = 1000  # rows
SEARCHED = ("title", "file_name", "instrument", "track", "collection")
OLD, NEW = ("INSERT INTO stem_words(stem_words, rowid, words) VALUES ('delete', old.row, old.words);",
            "INSERT INTO stem_words(rowid, words) VALUES (new.row, new.words);")  # fmt: skip
# SQLite's index holds no text of its own; each length of beginnings that is asked for has a list of its own.
SQLITE = (
    "CREATE VIRTUAL TABLE stem_words USING fts5(words, content='stems', content_rowid='row', tokenize='ascii', "
    "detail='none', columnsize=0, prefix='1 2 3 4 5 6 7 8 9 10 11 12')",
    "INSERT INTO stem_words(stem_words) VALUES ('rebuild')",
    f"CREATE TRIGGER stem_words_new AFTER INSERT ON stems BEGIN {NEW} END",
    f"CREATE TRIGGER stem_words_gone AFTER DELETE ON stems BEGIN {OLD} END",
    f"CREATE TRIGGER stem_words_changed AFTER UPDATE OF words ON stems WHEN old.words IS NOT new.words "
    f"BEGIN {OLD} {NEW} END",
)
POSTGRESQL = "CREATE INDEX ix_stems_words ON stems USING gin (array_to_tsvector(string_to_array(words, ' ')))"


def upgrade() -> None:
    """Add the columns and the table; index the words of the stems that are here."""
    for column in (sa.Column("words", sa.String), sa.Column("favourite", sa.Boolean), sa.Column("rating", sa.Integer)):
        op.add_column("stems", column)
    for name in ("favourite", "rating"):
        op.create_index(f"ix_stems_{name}", "stems", [name])
    op.create_table(
        "searches",
        sa.Column("owner", sa.String(64), primary_key=True),
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("wanted", sa.JSON, nullable=False),
        sa.Column("saved_at", sa.Float, nullable=False),
    )
    sql = op.get_bind()
    _fill_words(sql)
    for statement in [POSTGRESQL] if sql.dialect.name == "postgresql" else SQLITE:
        sql.exec_driver_sql(statement)


def _fill_words(sql: sa.Connection) -> None:
    stems = sa.table("stems", *map(sa.column, ("row", "state", "words", *SEARCHED)))
    tags = sa.table("stem_tags", sa.column("stem_row"), sa.column("tag"))
    update = sa.update(stems).where(stems.c.row == sa.bindparam("at")).values(words=sa.bindparam("found"))
    some = sa.select(stems.c.row, *(stems.c[name] for name in SEARCHED)).where(stems.c.state != "deleted")
    last = 0
    while rows := sql.execute(some.where(stems.c.row > last).order_by(stems.c.row).limit(AT_ONCE)).all():
        between = tags.c.stem_row.between(rows[0].row, rows[-1].row)
        said: dict[int, list[str | None]] = {row[0]: [*row[1:]] for row in rows}
        for tag in sql.execute(sa.select(tags).where(between)):
            said.get(tag.stem_row, []).append(tag.tag)
        sql.execute(update, [{"at": row, "found": " ".join(words_of(texts))} for row, texts in said.items()])
        last = rows[-1].row
