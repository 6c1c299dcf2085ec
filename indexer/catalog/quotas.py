"""How much each owner's stems take, counted in the transactions that add and delete them, and never over a quota.

Two owners are charged for a stem: the API key that sent it, and `EVERYBODY`. One transaction writes at a time, so two
uploads at once cannot exceed a quota together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Select, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from indexer.catalog.records import CatalogError
from indexer.catalog.tables import quota_holdings, quota_usage

EVERYBODY = "*"


@dataclass(frozen=True)
class Usage:
    """Stems, and bytes of their audio as uploaded."""

    stems: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Quota:
    """The most an owner may hold; None: no limit."""

    stems: int | None = None
    bytes: int | None = None


class QuotaExceeded(CatalogError):
    """An upload would take its key, or the whole installation, over its quota; deleting stems gives room."""

    public = "This {whose} holds {used} {what} of the {quota} it may, and the upload has {asked}: delete some first."
    whose: Literal["key", "installation"]
    what: Literal["stems", "bytes"]
    used: int
    asked: int
    quota: int


@dataclass(frozen=True)
class Charge:
    """Who pays for an upload: `owner`, up to `own`, and everybody, up to `overall`; `sizes` is bytes by SHA-256."""

    owner: str
    sizes: Mapping[str, int]
    own: Quota
    overall: Quota

    @property
    def accounts(self) -> tuple[tuple[Literal["key", "installation"], str, Quota], ...]:
        """Who is charged, and up to what."""
        return (("key", self.owner, self.own), ("installation", EVERYBODY, self.overall))


async def charge_for(sql: AsyncConnection, charge: Charge, created: Mapping[int, str]) -> None:
    """Count new stems (SHA-256 by row) in the transaction that makes them; QuotaExceeded must undo it all."""
    asked = Usage(len(created), sum(charge.sizes[sha256] for sha256 in created.values()))
    if not created:
        return
    for whose, owner, quota in charge.accounts:
        found = (await sql.execute(usage_of(owner))).all()
        refuse_if_over(whose, quota, usage_in(found), asked)
        if not found:
            await sql.execute(insert(quota_usage).values(owner=owner, stems=0, bytes=0))
        await _count(sql, owner, asked)
    for row, sha256 in created.items():
        values = {"stem_row": row, "owner": charge.owner, "bytes": charge.sizes[sha256]}
        await sql.execute(insert(quota_holdings).values(values))


async def give_back(sql: AsyncConnection, row: int) -> None:
    """Count a stem no more, in the transaction that deletes it."""
    gone = delete(quota_holdings).where(quota_holdings.c.stem_row == row).returning(quota_holdings)
    held = (await sql.execute(gone)).first()
    if held is None:  # added before there were quotas, or by no request
        return
    for owner in (held.owner, EVERYBODY):
        await _count(sql, owner, Usage(-1, -held.bytes))


def usage_of(owner: str) -> Select[Any]:
    """The statement that finds what an owner's stems take; see `usage_in`."""
    return select(quota_usage.c.stems, quota_usage.c.bytes).where(quota_usage.c.owner == owner)


def usage_in(rows: Sequence[Any]) -> Usage:
    return Usage(*rows[0]) if rows else Usage()


async def _count(sql: AsyncConnection, owner: str, more: Usage) -> None:
    counted = {"stems": quota_usage.c.stems + more.stems, "bytes": quota_usage.c.bytes + more.bytes}
    await sql.execute(update(quota_usage).where(quota_usage.c.owner == owner).values(counted))


def refuse_if_over(whose: Literal["key", "installation"], quota: Quota, used: Usage, asked: Usage) -> None:
    """Raises QuotaExceeded."""
    if quota.stems is not None and used.stems + asked.stems > quota.stems:
        raise QuotaExceeded(whose, "stems", used.stems, asked.stems, quota.stems)
    if quota.bytes is not None and used.bytes + asked.bytes > quota.bytes:
        raise QuotaExceeded(whose, "bytes", used.bytes, asked.bytes, quota.bytes)
