"""API keys as the database keeps them: a name, a scope, and the digest of a token that nobody but its owner has."""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Column, Float, Row, String, Table, insert, or_, select, update

from indexer.catalog import Catalog
from indexer.records import CatalogError
from indexer.tables import metadata

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("digest", String(64), nullable=False),  # SHA-256 of the token, hex
    Column("name", String(200), nullable=False),
    Column("scope", String(16), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    Column("last_used_at", Float),
    Column("revoked_at", Float),  # a row stays, so that its id is never given again and its stems keep an owner
)


class ApiKeyNotFound(CatalogError):
    """No API key has this id."""

    def __init__(self, key_id: str) -> None:
        super().__init__(f"no API key has the id {key_id!r}")
        self.key_id = key_id


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


class ApiKeys:
    """Every query on the table; each method is one transaction on the catalog's database."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def add(self, key: ApiKey) -> None:
        async with self._catalog._write() as sql:
            await sql.execute(insert(api_keys).values(vars(key)))

    async def find(self, key_id: str) -> ApiKey | None:
        """One key, whether it works or not."""
        async with self._catalog._read() as sql:
            found = (await sql.execute(select(api_keys).where(api_keys.c.id == key_id))).first()
        return _api_key(found) if found else None

    async def all(self) -> list[ApiKey]:
        """Every key that was ever made, oldest first."""
        async with self._catalog._read() as sql:
            return [_api_key(row) for row in await sql.execute(select(api_keys).order_by(api_keys.c.created_at))]

    async def revoke(self, key_id: str, now: float) -> None:
        """End a key, from this commit on; ending it twice changes nothing. Raises ApiKeyNotFound."""
        async with self._catalog._write() as sql:
            known = (await sql.execute(select(api_keys.c.id).where(api_keys.c.id == key_id))).first()
            if known is None:
                raise ApiKeyNotFound(key_id)
            this = (api_keys.c.id == key_id) & api_keys.c.revoked_at.is_(None)
            await sql.execute(update(api_keys).where(this).values(revoked_at=now))

    async def note_uses(self, used_at: Mapping[str, float]) -> None:
        """Record when keys were used; a later time that another process has recorded stays."""
        async with self._catalog._write() as sql:
            for key_id, when in used_at.items():
                earlier = or_(api_keys.c.last_used_at.is_(None), api_keys.c.last_used_at < when)
                await sql.execute(update(api_keys).where(api_keys.c.id == key_id, earlier).values(last_used_at=when))


def _api_key(row: Row[tuple[object, ...]]) -> ApiKey:
    return ApiKey(**row._mapping)
