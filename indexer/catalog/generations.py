"""Generations of the index, and the alias `live` that points at the one that answers."""

import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Select, and_, exists, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.elements import ColumnElement

from indexer.catalog.database import OnDatabase, retried, tick
from indexer.catalog.records import Alias, LiveMoved, NothingToRollBackTo
from indexer.catalog.tables import WINDOW_BYTES, aliases, clock, embeddings, generations, stems

LIVE = "live"


class Generations(OnDatabase):
    """Which index answers, and of which model."""

    @retried
    async def new_generation(self, fingerprint: str) -> int:
        """A number for an index about to be built; never given twice."""
        async with self._database.write() as sql:
            made = await sql.execute(insert(generations).values(fingerprint=fingerprint, created_at=time.time()))
            key = made.inserted_primary_key
            assert key is not None
            return int(key[0])

    @retried
    async def fingerprint_of(self, generation: int) -> str:
        """The model that a generation is of."""
        return str((await self._database.rows(_fingerprint_of(generation)))[0][0])

    @retried
    async def alias(self) -> Alias | None:
        """Where `live` points; None before the first index."""
        return (await self.position())[0]

    @retried
    async def position(self) -> tuple[Alias | None, int]:
        """Where `live` points and the clock, from one instant: what an index compares itself with."""
        return _position((await self._database.rows(_POSITION))[0])

    @retried
    async def go_live(self, generation: int, configured: str, *, instead_of: int | None = None) -> bool:
        """Point `live` at a generation, if every ready stem has been embedded by its model, as `lacks` means it.

        Check and switch are one transaction: no stem can become ready in between. Stems that its model could not embed
        become failed; queued ones stay queued. Returns False when some ready stem is not embedded yet.

        Raises LiveMoved: another generation than `instead_of` answers, since somebody rolled back.
        """
        async with self._database.write() as sql:
            seq = await tick(sql)
            fingerprint = str((await sql.execute(_fingerprint_of(generation))).scalar_one())
            before = await alias_of(sql)
            if before is not None and instead_of is not None and before.generation != instead_of:
                raise LiveMoved(before.generation, instead_of)
            if (await sql.execute(select(stems.c.row).where(lacks(fingerprint)).limit(1))).first():
                return False
            await _fail_unembeddable(sql, fingerprint, seq)
            await _count_windows(sql, fingerprint)
            if before is None:
                await sql.execute(insert(aliases).values(name=LIVE, generation=generation, configured=configured))
            else:
                await sql.execute(
                    update(aliases)
                    .where(aliases.c.name == LIVE)
                    .values(generation=generation, previous=before.generation, configured=configured)
                )
        return True

    @retried
    async def roll_back(self) -> Alias:
        """Point `live` at the previous generation; a second call points it back.

        Stems that only the present model has embedded are queued again, and those that it alone could not embed answer
        again; what an earlier release embedded answers as it did. Raises NothingToRollBackTo.
        """
        async with self._database.write() as sql:
            seq = await tick(sql)
            before = await alias_of(sql)
            if before is None or before.previous is None or before.previous_fingerprint is None:
                raise NothingToRollBackTo
            fingerprint = before.previous_fingerprint
            unseen = and_(stems.c.state == "ready", ~seen(fingerprint))
            await sql.execute(update(stems).where(unseen).values(state="queued", seq=seq))
            refused = and_(stems.c.state == "failed", seen(fingerprint), seen(before.fingerprint, refused=True))
            await sql.execute(update(stems).where(refused).values(state="ready", problem=None, seq=seq))
            await _fail_unembeddable(sql, fingerprint, seq)
            await _count_windows(sql, fingerprint)
            await sql.execute(
                update(aliases)
                .where(aliases.c.name == LIVE)
                .values(generation=before.previous, previous=before.generation)
            )
            after = await alias_of(sql)
            assert after is not None
            return after


def _of_stem(fingerprint: str) -> ColumnElement[bool]:
    return and_(embeddings.c.stem_row == stems.c.row, embeddings.c.fingerprint == fingerprint)


def seen(fingerprint: str, *, refused: bool = False) -> ColumnElement[bool]:
    """A stem that a model has embedded, or could not; with `refused`, that it could not."""
    seen = exists().where(_of_stem(fingerprint))
    return seen.where(embeddings.c.problem.is_not(None)) if refused else seen


def laid(fingerprint: str) -> ColumnElement[bool]:
    """A stem that was analysed for it too: a release that knew no beats stored none."""
    done = or_(embeddings.c.beats.is_not(None), embeddings.c.problem.is_not(None))
    return exists().where(_of_stem(fingerprint), done)


def lacks(fingerprint: str) -> ColumnElement[bool]:
    """A ready stem that is to be embedded before this model's next generation: never seen by it, or by an earlier
    release only, whose embeddings answer until then."""
    return and_(stems.c.state == "ready", ~laid(fingerprint))


def _fingerprint_of(generation: int) -> Select[tuple[str]]:
    return select(generations.c.fingerprint).where(generations.c.generation == generation)


async def _count_windows(sql: AsyncConnection, fingerprint: str) -> None:
    """Let stems show what this model has of them: where a release cuts windows otherwise, models differ."""
    count = select(func.length(embeddings.c.windows) // WINDOW_BYTES).where(_of_stem(fingerprint)).scalar_subquery()
    await sql.execute(
        update(stems).where(stems.c.state == "ready", seen(fingerprint), stems.c.windows != count).values(windows=count)
    )


async def _fail_unembeddable(sql: AsyncConnection, fingerprint: str, seq: int) -> None:
    problem = select(embeddings.c.problem).where(_of_stem(fingerprint)).scalar_subquery()
    refused = and_(stems.c.state == "ready", seen(fingerprint, refused=True))
    await sql.execute(update(stems).where(refused).values(state="failed", problem=problem, seq=seq))


_PRESENT, _BEFORE = generations.alias("present"), generations.alias("before")
# What every query asks, built once.
_POSITION = (
    select(
        clock.c.value,
        aliases.c.generation,
        _PRESENT.c.fingerprint,
        aliases.c.previous,
        _BEFORE.c.fingerprint.label("previous_fingerprint"),
        aliases.c.configured,
    )
    .select_from(clock)
    .join(aliases, aliases.c.name == LIVE, isouter=True)
    .join(_PRESENT, _PRESENT.c.generation == aliases.c.generation, isouter=True)
    .join(_BEFORE, _BEFORE.c.generation == aliases.c.previous, isouter=True)
)


def _position(found: Sequence[Any]) -> tuple[Alias | None, int]:
    seq, *alias = found
    return None if alias[0] is None else Alias(*alias), int(seq)


async def alias_of(sql: AsyncConnection) -> Alias | None:
    return _position((await sql.execute(_POSITION)).one())[0]


async def live_fingerprint(sql: AsyncConnection) -> str | None:
    alias = await alias_of(sql)
    return alias.fingerprint if alias else None
