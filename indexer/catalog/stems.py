"""Stems: put in, found, listed, filtered, changed, taken out."""

import secrets
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import BindParameter, and_, bindparam, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from indexer.catalog.caseless import caseless
from indexer.catalog.database import retried, tick
from indexer.catalog.edits import Edits, row_of, searchable, set_tags
from indexer.catalog.jobs import Jobs
from indexer.catalog.music import FACTS
from indexer.catalog.quotas import Charge, Quota, Usage, charge_for, give_back, refuse_if_over, usage_in, usage_of
from indexer.catalog.records import (
    BadCursor,
    Job,
    JobItem,
    Rejected,
    SaidMusic,
    Stem,
    StemFilter,
    StemMetadata,
    StemNotFound,
    StemState,
    Upload,
)
from indexer.catalog.selecting import conditions, fast_order, stems_of, tagged
from indexer.catalog.tables import WINDOW_BYTES, embeddings, job_items, jobs, stem_tags, stems

LARGEST_ROW = 2**31 - 1


class Stems(Edits, Jobs):
    """What people see of a catalog, and change in it."""

    @retried
    async def add(self, files: Sequence[Upload | Rejected], charge: Charge | None = None) -> tuple[Job, list[str]]:
        """Record one request's files as an ingest job.

        Bytes that are here already are the same stem: nothing is made anew, except that a failed one is tried again.
        Where every file was refused the job keeps their number and not one of them: no quota would count them.
        `charge` says who pays for the stems that are made.

        Returns:
            the job, and the ids of the stems that now wait to be embedded.

        Raises:
            QuotaExceeded: nothing was recorded.
        """
        job_id, now = secrets.token_hex(8), time.time()
        refused = tuple(
            JobItem(file.file_name, None, "failed", False, file.problem) for file in files if isinstance(file, Rejected)
        )
        if refused and len(refused) == len(files):
            await self._keep_count(job_id, len(refused), now)
            return replace(await self.job(job_id), items=refused), []
        waiting: list[str] = []
        items: list[dict[str, Any]] = []
        made: dict[int, str] = {}
        async with self._database.write() as sql:
            await sql.execute(
                insert(jobs).values(id=job_id, kind="ingest", state="running", created_at=now, request={})
            )
            for position, file in enumerate(files):
                item: dict[str, Any] = {"job_id": job_id, "position": position, "file_name": file.file_name}
                if isinstance(file, Rejected):
                    item |= {"stem_row": None, "created": 0, "problem": dict(file.problem)}
                else:
                    row, stem_id, created, state = await _add_stem(sql, file, now)
                    item |= {"stem_row": row, "created": int(created), "problem": None}
                    if state == "queued":
                        waiting.append(stem_id)
                    if created:
                        made[row] = file.sha256
                items.append(item)
            if items:
                await sql.execute(insert(job_items), items)
            if charge is not None:
                await charge_for(sql, charge, made)
        return await self.job(job_id), waiting

    @retried
    async def stem(self, stem_id: str) -> Stem:
        """One stem. Raises StemNotFound."""
        found = stems_of(await self._database.rows(_STEM, id=stem_id))
        if not found:
            raise StemNotFound(stem_id)
        return found[0]

    @retried
    async def stems_by_row(self, rows: Collection[int]) -> dict[int, Stem]:
        """The stems of these rows that are ready; others are left out."""
        return {stem.row: stem for stem in stems_of(await self._of_each(_READY_STEMS, rows))}

    @retried
    async def durations(self, rows: Collection[int]) -> dict[int, float]:
        """How long these stems are, seconds; those that were deleted are left out."""
        return {row: duration_s for row, duration_s in await self._of_each(_DURATIONS, rows)}

    @retried
    async def list_stems(
        self,
        wanted: StemFilter,
        *,
        state: StemState | None = None,
        sha256: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> tuple[list[Stem], str | None]:
        """A page of stems, oldest first, and the cursor of the next page. Raises BadCursor."""
        after, postgresql = _parse_cursor(cursor), self._database.postgresql
        row = fast_order(wanted, postgresql=postgresql)
        where = [row > after, *conditions(wanted, postgresql=postgresql)]
        where.append(stems.c.state == state if state else stems.c.state != "deleted")
        if sha256 is not None:
            where.append(stems.c.sha256 == sha256)
        page = stems_of(await self._database.rows(tagged(and_(*where), limit=limit + 1, row=row)))
        return page[:limit], (f"s{page[limit - 1].row}" if len(page) > limit else None)

    @retried
    async def values(self) -> dict[str, list[str]]:
        """Which instruments, tags, tracks, collections, keys and kinds the catalog holds, sorted."""
        columns = {
            "instruments": stems.c.instrument,
            "tracks": stems.c.track,
            "collections": stems.c.collection,
            "keys": stems.c.key,
            "kinds": stems.c.kind,
        }
        found: dict[str, list[str]] = {}
        async with self._database.read() as sql:
            for name, column in columns.items():
                query = select(column).where(column.is_not(None), stems.c.state == "ready").distinct()
                found[name] = list((await sql.execute(query)).scalars())
            tags = select(stem_tags.c.tag).join(stems).where(stems.c.state == "ready").distinct()
            found["tags"] = list((await sql.execute(tags)).scalars())
        # Sorted here: how a database orders text depends on where it was set up.
        return {name: _one_of_each(values) for name, values in found.items()}

    @retried
    async def tempo_range(self) -> tuple[float | None, float | None]:
        """The slowest and the fastest tempo of a ready stem, beats a minute; None where none states one."""
        query = select(func.min(stems.c.tempo_bpm), func.max(stems.c.tempo_bpm)).where(stems.c.state == "ready")
        slowest, fastest = (await self._database.rows(query))[0]
        return slowest, fastest

    @retried
    async def delete(self, stem_id: str) -> str:
        """Take a stem out, for good. Returns the SHA-256 of its audio. Raises StemNotFound."""
        async with self._database.write() as sql:
            row = await row_of(sql, stem_id)
            sha256: str = (await sql.execute(select(stems.c.sha256).where(stems.c.row == row))).scalar_one()
            seq = await tick(sql)
            gone = {"state": "deleted", "sha256": None, "words": None, "seq": seq}
            await sql.execute(update(stems).where(stems.c.row == row).values(gone))
            await sql.execute(delete(embeddings).where(embeddings.c.stem_row == row))
            await sql.execute(delete(stem_tags).where(stem_tags.c.stem_row == row))
            await give_back(sql, row)
        return sha256

    @retried
    async def refuse_if_over(self, charge: Charge, known: Collection[str]) -> None:
        """Look, before any work is done on it, whether an upload can fit the quotas; nothing is reserved.

        `known`: which of its bytes cost nothing. Raises QuotaExceeded.
        """
        new = [size for sha256, size in charge.sizes.items() if sha256 not in known]
        for whose, owner, quota in charge.accounts:
            if new and quota != Quota():
                refuse_if_over(whose, quota, await self.usage(owner), Usage(len(new), sum(new)))

    @retried
    async def usage(self, owner: str) -> Usage:
        """What the stems of an owner take."""
        return usage_in(await self._database.rows(usage_of(owner)))

    @retried
    async def known(self, digests: Collection[str]) -> set[str]:
        """Which of these bytes (SHA-256) a stem that was not deleted has."""
        return {sha256 for (sha256,) in await self._of_each(_KNOWN, digests)}

    @retried
    async def holds(self, sha256: str) -> bool:
        """Whether a stem that was not deleted has these bytes."""
        return bool(await self.known([sha256]))

    @retried
    async def rows_allowed(self, wanted: StemFilter) -> NDArray[np.int64] | None:
        """The rows of ready stems that pass the filter; None when it restricts nothing."""
        if wanted.is_empty:
            return None
        row = fast_order(wanted, postgresql=self._database.postgresql)
        where = conditions(wanted, postgresql=self._database.postgresql)
        query = select(stems.c.row).where(stems.c.state == "ready", *where).order_by(row)
        return np.array([row for (row,) in await self._database.rows(query)], dtype=np.int64)

    @retried
    async def ready_rows(self) -> NDArray[np.int64]:
        """The rows of all ready stems, ascending."""
        query = select(stems.c.row).where(stems.c.state == "ready").order_by(stems.c.row)
        return np.array([row for (row,) in await self._database.rows(query)], dtype=np.int64)

    @retried
    async def window_count(self, fingerprint: str) -> int:
        """How many windows the ready stems have under one model."""
        size = func.coalesce(func.sum(func.length(embeddings.c.windows)), 0)
        query = select(size).join(stems).where(stems.c.state == "ready", embeddings.c.fingerprint == fingerprint)
        return int((await self._database.rows(query))[0][0]) // WINDOW_BYTES

    @retried
    async def waiting(self) -> int:
        """How many stems are queued."""
        query = select(func.count()).where(stems.c.state == "queued")
        return int((await self._database.rows(query))[0][0])

    @retried
    async def counts(self) -> dict[str, int]:
        """How many stems are queued, ready and failed."""
        query = select(stems.c.state, func.count()).where(stems.c.state != "deleted").group_by(stems.c.state)
        found = {state: n for state, n in await self._database.rows(query)}
        return {state: found.get(state, 0) for state in ("queued", "ready", "failed")}


async def _add_stem(sql: AsyncConnection, file: Upload, now: float) -> tuple[int, str, bool, StemState]:
    known = select(stems.c.row, stems.c.id, stems.c.state).where(stems.c.sha256 == file.sha256)
    found = (await sql.execute(known)).first()
    if found is None:
        return await _insert_stem(sql, file, now)
    state: StemState = found.state
    if state == "failed":
        state = "queued"
        await sql.execute(update(stems).where(stems.c.row == found.row).values(state=state, problem=None))
    return found.row, found.id, False, state


async def _insert_stem(sql: AsyncConnection, file: Upload, now: float) -> tuple[int, str, bool, StemState]:
    said, facts, stem_id = file.metadata, file.facts, secrets.token_hex(8)
    assert facts is not None, "bytes that no stem has are decoded first"
    music = file.music or _music_of(said)
    columns = {
        "file_name": file.file_name,
        "title": said.title or file.file_name.rsplit(".", 1)[0].strip() or file.file_name,
        "key": music.key,
        **{name: getattr(said, name) for name in ("instrument", "track", "collection", "favourite", "rating")},
    }
    made = await sql.execute(
        insert(stems).values(
            id=stem_id,
            sha256=file.sha256,
            tempo_bpm=music.tempo_bpm,
            kind=music.kind,
            said_beats=music.beats,
            sources=dict(music.sources),
            **searchable(columns, said.tags),
            format=facts.format,
            duration_s=facts.duration_s,
            sample_rate=facts.sample_rate,
            channels=facts.channels,
            warnings=[*facts.warnings, *music.warnings],
            state="queued",
            created_at=now,
            seq=0,
        )
    )
    key = made.inserted_primary_key
    assert key is not None
    await set_tags(sql, key[0], said.tags)
    return key[0], stem_id, True, "queued"


def _music_of(said: StemMetadata) -> SaidMusic:
    named = {name: getattr(said, name) for name in FACTS if getattr(said, name) is not None}
    return SaidMusic(**named, sources=dict.fromkeys(named, "said"))


def _one_of_each(texts: list[str]) -> list[str]:
    """Sorted; of spellings that a filter does not tell apart, the last."""
    return sorted({caseless(text): text for text in sorted(texts)}.values())


def _parse_cursor(cursor: str | None) -> int:
    if cursor is None:
        return 0
    if not (cursor.startswith("s") and cursor[1:].isdecimal() and len(cursor) < 20):
        raise BadCursor(cursor)
    if (row := int(cursor[1:])) > LARGEST_ROW:
        raise BadCursor(cursor)
    return row


_SOME: BindParameter[Any] = bindparam("some", expanding=True)
_KNOWN = select(stems.c.sha256).where(stems.c.sha256.in_(_SOME))
_STEM = tagged(stems.c.id == bindparam("id"))
_DURATIONS = select(stems.c.row, stems.c.duration_s).where(stems.c.row.in_(_SOME), stems.c.state != "deleted")
_READY_STEMS = tagged(and_(stems.c.row.in_(_SOME), stems.c.state == "ready"))
