"""Saved searches: what somebody asks again and again, by a name."""

import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import delete, func, insert, select, update

from indexer.catalog.database import OnDatabase, retried
from indexer.catalog.records import SearchNotFound, TooManySearches
from indexer.catalog.tables import searches

MOST_SEARCHES = 100  # of one owner


class Searches(OnDatabase):
    """Each belongs to its owner, whom others do not see."""

    @retried
    async def saved_searches(self, owner: str) -> dict[str, dict[str, Any]]:
        """All of an owner's, by name."""
        query = select(searches.c.name, searches.c.wanted).where(searches.c.owner == owner)
        return dict(sorted((row.name, row.wanted) for row in await self._database.rows(query)))

    @retried
    async def saved_search(self, owner: str, name: str) -> dict[str, Any]:
        """One. Raises SearchNotFound."""
        found = await self._database.rows(select(searches.c.wanted).where(*_this(owner, name)))
        if not found:
            raise SearchNotFound(name)
        wanted: dict[str, Any] = found[0].wanted
        return wanted

    @retried
    async def save_search(self, owner: str, name: str, wanted: Mapping[str, Any]) -> None:
        """Save one; another of this name is replaced. Raises TooManySearches."""
        values = {"wanted": dict(wanted), "saved_at": time.time()}
        async with self._database.write() as sql:
            if (await sql.execute(update(searches).where(*_this(owner, name)).values(values))).rowcount:
                return
            held = (await sql.execute(select(func.count()).where(searches.c.owner == owner))).scalar_one()
            if held >= MOST_SEARCHES:
                raise TooManySearches(MOST_SEARCHES)
            await sql.execute(insert(searches).values(owner=owner, name=name, **values))

    @retried
    async def delete_search(self, owner: str, name: str) -> None:
        """Forget one. Raises SearchNotFound."""
        async with self._database.write() as sql:
            if not (await sql.execute(delete(searches).where(*_this(owner, name)))).rowcount:
                raise SearchNotFound(name)


def _this(owner: str, name: str) -> tuple[Any, Any]:
    return searches.c.owner == owner, searches.c.name == name
