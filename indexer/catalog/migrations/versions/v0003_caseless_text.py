"""What filters compare: each text that they ask for, without its case and in one spelling; and no text that no answer
could hold, which a decoder may have said."""

import json

import sqlalchemy as sa
from alembic import op

from indexer.catalog.caseless import caseless

revision = "0003"
down_revision = "0002"
AT_ONCE = 1000  # rows
FILTERED = ("instrument", "track", "collection", "key")


def upgrade() -> None:
    """Add the columns and fill them from what is there."""
    for name in FILTERED:
        op.add_column("stems", sa.Column(f"{name}_caseless", sa.String))
    op.add_column("stem_tags", sa.Column("caseless", sa.String))
    sql = op.get_bind()
    _fill_stems(sql)
    tags = sa.table("stem_tags", sa.column("tag"), sa.column("caseless"))
    for tag in sql.execute(sa.select(tags.c.tag).distinct()).scalars().all():
        sql.execute(sa.update(tags).where(tags.c.tag == tag).values(caseless=caseless(tag)))
    for name in FILTERED:
        op.create_index(f"ix_stems_{name}_caseless", "stems", [f"{name}_caseless"])
    op.create_index("ix_stem_tags_caseless", "stem_tags", ["caseless"])
    for table, column in (("stems", "warnings"), ("stems", "problem"), ("job_items", "problem")):
        _replace_lone_surrogates(sql, table, column)


def _fill_stems(sql: sa.Connection) -> None:
    stems = sa.table("stems", *map(sa.column, ("row", *FILTERED, *(f"{name}_caseless" for name in FILTERED))))
    update = sa.update(stems).where(stems.c.row == sa.bindparam("at"))
    update = update.values({f"{name}_caseless": sa.bindparam(f"new_{name}") for name in FILTERED})
    some = sa.select(stems.c.row, *(stems.c[name] for name in FILTERED)).order_by(stems.c.row).limit(AT_ONCE)
    last = 0
    while found := sql.execute(some.where(stems.c.row > last)).all():
        new = [{f"new_{name}": caseless(text) for name, text in zip(FILTERED, row[1:], strict=True)} for row in found]
        sql.execute(update, [{"at": row[0]} | values for row, values in zip(found, new, strict=True)])
        last = found[-1][0]


def _replace_lone_surrogates(sql: sa.Connection, table: str, column: str) -> None:
    """In JSON, where they stand as `\\ud800`; UTF-8 has nothing for them."""
    value = sa.column(column, sa.JSON(none_as_null=True))
    rows = sa.table(table, value)
    for (held,) in sql.execute(sa.select(value).where(sa.cast(value, sa.String).like("%\\ud%", escape="/"))).all():
        text = json.dumps(held, ensure_ascii=False)
        clean = text.encode(errors="replace").decode()
        if clean != text:
            same = sa.cast(value, sa.String) == json.dumps(held)
            sql.execute(sa.update(rows).where(same).values({column: json.loads(clean)}))
