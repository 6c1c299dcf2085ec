"""What people say about stems, changed: of one, or of all that a filter means, some in each transaction."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sqlalchemy import and_, bindparam, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from indexer.catalog.caseless import FILTERED, caseless
from indexer.catalog.database import OnDatabase, retried, tick
from indexer.catalog.music import said_anew
from indexer.catalog.records import Stem, StemFilter, StemNotFound
from indexer.catalog.selecting import conditions, fast_order, stems_of, tagged
from indexer.catalog.tables import embeddings, stem_tags, stems
from indexer.catalog.words import SEARCHED, words_of

AT_ONCE = 100  # stems changed in one transaction, while which no other writer has its turn

Change = tuple[Mapping[str, Any], float | None]
"""Fields of StemMetadata by their names, and the beats of the clip, see `said_anew`."""


class Edits(OnDatabase):
    """Changes of what was said."""

    @retried
    async def change_metadata(self, stem_id: str, changed: Mapping[str, Any], beats: float | None = None) -> Stem:
        """Replace some fields of a stem's metadata. Raises StemNotFound.

        Args:
            stem_id: which stem.
            changed: by the names of StemMetadata's fields. Another tempo, or a fact taken back (None), sends a ready
                stem to be embedded again.
            beats: see `said_anew`.
        """
        async with self._database.write() as sql:
            row = await row_of(sql, stem_id)
            await _change(sql, await _one(sql, row), changed, beats)
            return await _one(sql, row)

    @retried
    async def count_stems(self, wanted: StemFilter) -> tuple[int, int]:
        """How many stems that were not deleted pass the filter, and the highest row of a stem."""
        where = conditions(wanted, postgresql=self._database.postgresql)
        count = select(func.count()).select_from(stems).where(stems.c.state != "deleted", *where)
        async with self._database.read() as sql:
            highest = (await sql.execute(select(func.max(stems.c.row)))).scalar() or 0
            return (await sql.execute(count)).scalar_one(), highest

    @retried
    async def change_some(
        self, wanted: StemFilter, change: Callable[[Stem], Change], after: int, until: int
    ) -> tuple[int, list[str], int | None]:
        """Change the next AT_ONCE stems that pass the filter, in one transaction.

        Args:
            wanted: which stems.
            change: what is changed of a stem.
            after: only stems of later rows,
            until: and of none after this one.

        Returns:
            how many were changed; the ids of those that now wait to be embedded again; the last row, and None where
            no more are to come.
        """
        postgresql = self._database.postgresql
        row = fast_order(wanted, postgresql=postgresql)
        where = and_(row > after, row <= until, *conditions(wanted, postgresql=postgresql))
        async with self._database.write() as sql:
            some = stems_of((await sql.execute(tagged(where, AT_ONCE, row))).all())
            queued = [stem.id for stem in some if await _change(sql, stem, *change(stem))]
        return len(some), queued, some[-1].row if len(some) == AT_ONCE else None


async def row_of(sql: AsyncConnection, stem_id: str) -> int:
    """The row of a stem that was not deleted. Raises StemNotFound."""
    query = select(stems.c.row).where(stems.c.id == stem_id, stems.c.state != "deleted")
    row = (await sql.execute(query)).scalar()
    if row is None:
        raise StemNotFound(stem_id)
    return int(row)


def searchable(said: Mapping[str, Any], tags: Iterable[str]) -> dict[str, Any]:
    """The columns for what was said, and those that filters and the search for words look into.

    Every change of a stem's text goes through here. `said` has all columns of SEARCHED.
    """
    caseless_too = {f"{name}_caseless": caseless(said[name]) for name in FILTERED if name in said}
    return {**said, **caseless_too, "words": " ".join(words_of([*(said[name] for name in SEARCHED), *tags]))}


async def set_tags(sql: AsyncConnection, row: int, tags: Iterable[str]) -> None:
    """Give a stem these tags and no others; `searchable` is told of them, too."""
    await sql.execute(delete(stem_tags).where(stem_tags.c.stem_row == row))
    if values := [{"stem_row": row, "tag": tag, "caseless": caseless(tag)} for tag in sorted(set(tags))]:
        await sql.execute(insert(stem_tags), values)


async def _one(sql: AsyncConnection, row: int) -> Stem:
    return stems_of((await sql.execute(_STEM, {"at": row})).all())[0]


async def _change(sql: AsyncConnection, stem: Stem, changed: Mapping[str, Any], beats: float | None) -> bool:
    """Whether the stem waits to be embedded now."""
    tags = changed.get("tags", stem.tags)
    plain = {name: value for name, value in changed.items() if name != "tags"}
    names = {name: getattr(stem, name) for name in SEARCHED}
    columns = searchable(names | plain | said_anew(stem, changed, beats), tags)
    queued = columns.get("state") == "queued"
    if queued:
        columns["seq"] = await tick(sql)
        await sql.execute(delete(embeddings).where(embeddings.c.stem_row == stem.row))
    await sql.execute(update(stems).where(stems.c.row == stem.row).values(columns))
    if "tags" in changed:
        await set_tags(sql, stem.row, tags)
    return queued


_STEM = tagged(stems.c.row == bindparam("at"))
