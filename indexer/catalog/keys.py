"""API keys as the database keeps them: a name, a scope, and the digest of a token that nobody but its owner has."""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import insert, or_, select, update

from indexer.catalog.database import OnDatabase, retried
from indexer.catalog.records import ApiKeyNotFound
from indexer.catalog.tables import api_keys


@dataclass(frozen=True)
class ApiKey:
    """One API key; times are seconds since 1970."""

    id: str
    digest: str
    name: str
    scope: str
    created_at: float
    expires_at: float | None = None
    last_used_at: float | None = None
    revoked_at: float | None = None

    def works_at(self, now: float) -> bool:
        """Whether it was neither revoked nor has expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


class ApiKeys(OnDatabase):
    """Every query on the table; each method is one transaction on the catalog's database."""

    @retried
    async def add(self, key: ApiKey) -> None:
        async with self._database.write() as sql:
            await sql.execute(insert(api_keys).values(vars(key)))

    @retried
    async def find(self, key_id: str) -> ApiKey | None:
        """One key, whether it works or not."""
        found = await self._database.rows(select(api_keys).where(api_keys.c.id == key_id))
        return ApiKey(**found[0]._mapping) if found else None

    @retried
    async def all(self) -> list[ApiKey]:
        """Every key that was ever made, oldest first."""
        found = await self._database.rows(select(api_keys).order_by(api_keys.c.created_at))
        return [ApiKey(**row._mapping) for row in found]

    @retried
    async def revoke(self, key_id: str, now: float) -> None:
        """End a key, from this commit on; ending it twice changes nothing. Raises ApiKeyNotFound."""
        async with self._database.write() as sql:
            known = (await sql.execute(select(api_keys.c.id).where(api_keys.c.id == key_id))).first()
            if known is None:
                raise ApiKeyNotFound(key_id)
            this = (api_keys.c.id == key_id) & api_keys.c.revoked_at.is_(None)
            await sql.execute(update(api_keys).where(this).values(revoked_at=now))

    @retried
    async def note_uses(self, used_at: Mapping[str, float]) -> None:
        """Record when keys were used; a later time that another process has recorded stays."""
        async with self._database.write() as sql:
            for key_id, when in used_at.items():
                earlier = or_(api_keys.c.last_used_at.is_(None), api_keys.c.last_used_at < when)
                await sql.execute(update(api_keys).where(api_keys.c.id == key_id, earlier).values(last_used_at=when))
