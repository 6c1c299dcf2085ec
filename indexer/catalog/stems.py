"""Stems: put in, found, listed, filtered, changed, taken out."""

import math
import secrets
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import BindParameter, Row, Select, and_, bindparam, delete, exists, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.elements import ColumnElement

from indexer.catalog.caseless import FILTERED, caseless
from indexer.catalog.database import chunks, retried, tick
from indexer.catalog.jobs import Jobs
from indexer.catalog.music import FACTS, said_anew
from indexer.catalog.quotas import Charge, Usage, charge_for, give_back, refuse_if_over, usage_of
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
from indexer.catalog.tables import WINDOW_BYTES, embeddings, job_items, jobs, stem_tags, stems

LARGEST_ROW = 2**31 - 1
WRITTEN_BPM = 0.005  # tempi are written to two decimals, and a loop's length tells more of them
STEM_FIELDS = {field.name for field in fields(Stem)} - {"tags"}


class Stems(Jobs):
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
        refused = tuple(JobItem.refused(file) for file in files if isinstance(file, Rejected))
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
        found = await self._stems(_STEM, id=stem_id)
        if not found:
            raise StemNotFound(stem_id)
        return found[0]

    async def _stems(self, query: Select[Any], **values: Any) -> list[Stem]:
        records = await self._database.rows(query, **values)  # a stem with several tags comes several times
        return [_stem(list(group)) for _, group in groupby(records, key=lambda record: int(record.row))]

    @retried
    async def stems_by_row(self, rows: Collection[int]) -> dict[int, Stem]:
        """The stems of these rows that are ready; others are left out."""
        found: dict[int, Stem] = {}
        for chunk in chunks(list(rows)):
            some = await self._stems(_READY_STEMS, rows=chunk)
            found |= {stem.row: stem for stem in some}
        return found

    @retried
    async def durations(self, rows: Collection[int]) -> dict[int, float]:
        """How long these stems are, seconds; those that were deleted are left out."""
        found: dict[int, float] = {}
        for chunk in chunks(list(rows)):
            found |= {row: duration_s for row, duration_s in await self._database.rows(_DURATIONS, rows=chunk)}
        return found

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
        after = _parse_cursor(cursor)
        where = [stems.c.row > after, *_conditions(wanted)]
        where.append(stems.c.state == state if state else stems.c.state != "deleted")
        if sha256 is not None:
            where.append(stems.c.sha256 == sha256)
        page = await self._stems(_tagged(and_(*where), limit=limit + 1))
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
        async with self._database.read() as sql:
            query = select(func.min(stems.c.tempo_bpm), func.max(stems.c.tempo_bpm)).where(stems.c.state == "ready")
            slowest, fastest = (await sql.execute(query)).one()
        return slowest, fastest

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
            row = await _row_of(sql, stem_id)
            stem = (await sql.execute(select(stems).where(stems.c.row == row))).one()
            plain = {name: value for name, value in changed.items() if name != "tags"}
            columns = _with_caseless(plain | said_anew(stem, changed, beats))
            if columns.get("state") == "queued":
                columns["seq"] = await tick(sql)
                await sql.execute(delete(embeddings).where(embeddings.c.stem_row == row))
            if columns:
                await sql.execute(update(stems).where(stems.c.row == row).values(columns))
            if "tags" in changed:
                await _set_tags(sql, row, changed["tags"])
        return await self.stem(stem_id)

    @retried
    async def delete(self, stem_id: str) -> str:
        """Take a stem out, for good. Returns the SHA-256 of its audio. Raises StemNotFound."""
        async with self._database.write() as sql:
            row = await _row_of(sql, stem_id)
            sha256: str = (await sql.execute(select(stems.c.sha256).where(stems.c.row == row))).scalar_one()
            seq = await tick(sql)
            await sql.execute(update(stems).where(stems.c.row == row).values(state="deleted", sha256=None, seq=seq))
            await sql.execute(delete(embeddings).where(embeddings.c.stem_row == row))
            await sql.execute(delete(stem_tags).where(stem_tags.c.stem_row == row))
            await give_back(sql, row)
        return sha256

    @retried
    async def refuse_if_over(self, charge: Charge) -> None:
        """Look, before any work is done on it, whether an upload can fit the quotas. Raises QuotaExceeded."""
        async with self._database.read() as sql:
            known: set[str | None] = set()
            for chunk in chunks(list(charge.sizes)):
                known.update((await sql.execute(select(stems.c.sha256).where(stems.c.sha256.in_(chunk)))).scalars())
            new = [size for sha256, size in charge.sizes.items() if sha256 not in known]
            if new:
                await refuse_if_over(sql, charge, Usage(len(new), sum(new)))

    @retried
    async def usage(self, owner: str) -> Usage:
        """What the stems of an owner take."""
        async with self._database.read() as sql:
            return await usage_of(sql, owner)

    @retried
    async def known(self, digests: Collection[str]) -> set[str]:
        """Which of these bytes (SHA-256) a stem that was not deleted has."""
        found: set[str] = set()
        async with self._database.read() as sql:
            for chunk in chunks(list(digests)):
                found.update((await sql.execute(select(stems.c.sha256).where(stems.c.sha256.in_(chunk)))).scalars())
        return found

    @retried
    async def holds(self, sha256: str) -> bool:
        """Whether a stem that was not deleted has these bytes."""
        async with self._database.read() as sql:
            return (await sql.execute(select(stems.c.row).where(stems.c.sha256 == sha256))).first() is not None

    @retried
    async def rows_allowed(self, wanted: StemFilter) -> NDArray[np.int64] | None:
        """The rows of ready stems that pass the filter; None when it restricts nothing."""
        if wanted.is_empty:
            return None
        query = select(stems.c.row).where(stems.c.state == "ready", *_conditions(wanted)).order_by(stems.c.row)
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
        async with self._database.read() as sql:
            return int((await sql.execute(query)).scalar_one()) // WINDOW_BYTES

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
    made = await sql.execute(
        insert(stems).values(
            id=stem_id,
            sha256=file.sha256,
            file_name=file.file_name,
            title=said.title or file.file_name.rsplit(".", 1)[0].strip() or file.file_name,
            tempo_bpm=music.tempo_bpm,
            kind=music.kind,
            said_beats=music.beats,
            sources=dict(music.sources),
            **_with_caseless({name: getattr(said, name) for name in FILTERED} | {"key": music.key}),
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
    await _set_tags(sql, key[0], said.tags)
    return key[0], stem_id, True, "queued"


def _music_of(said: StemMetadata) -> SaidMusic:
    named = {name: getattr(said, name) for name in FACTS if getattr(said, name) is not None}
    return SaidMusic(**named, sources=dict.fromkeys(named, "said"))


def _with_caseless(said: Mapping[str, Any]) -> dict[str, Any]:
    """The columns for what was said, and those that filters look into."""
    return {**said, **{f"{name}_caseless": caseless(said[name]) for name in FILTERED if name in said}}


async def _set_tags(sql: AsyncConnection, row: int, tags: Iterable[str]) -> None:
    await sql.execute(delete(stem_tags).where(stem_tags.c.stem_row == row))
    if tagged := [{"stem_row": row, "tag": tag, "caseless": caseless(tag)} for tag in sorted(set(tags))]:
        await sql.execute(insert(stem_tags), tagged)


async def _row_of(sql: AsyncConnection, stem_id: str) -> int:
    query = select(stems.c.row).where(stems.c.id == stem_id, stems.c.state != "deleted")
    row = (await sql.execute(query)).scalar()
    if row is None:
        raise StemNotFound(stem_id)
    return int(row)


def _tagged(where: ColumnElement[bool], limit: int | None = None) -> Select[Any]:
    """Stems that were not deleted, by ascending row, each once for each of its tags, or once without one."""
    some = select(*_SHOWN).where(where, stems.c.state != "deleted").order_by(stems.c.row).limit(limit).subquery()
    joined = some.join(stem_tags, stem_tags.c.stem_row == some.c.row, isouter=True)
    return select(some, stem_tags.c.tag).select_from(joined).order_by(some.c.row)


def _stem(records: Sequence[Row[Any]]) -> Stem:
    """A stem from its row, once for each of its tags."""
    shown = {name: value for name, value in records[0]._mapping.items() if name in STEM_FIELDS}
    shown["warnings"] = (*shown["warnings"], *(records[0].music_warnings or ()))
    shown |= {name: shown[name] or {} for name in ("sources", "sure")}
    return Stem(**shown, tags=tuple(sorted(record.tag for record in records if record.tag is not None)))


def _one_of_each(texts: list[str]) -> list[str]:
    """Sorted; of spellings that a filter does not tell apart, the last."""
    return sorted({caseless(text): text for text in sorted(texts)}.values())


def _conditions(wanted: StemFilter) -> list[ColumnElement[bool]]:
    where: list[ColumnElement[bool]] = []
    for column, values in (
        (stems.c.instrument_caseless, wanted.instruments),
        (stems.c.track_caseless, wanted.tracks),
        (stems.c.collection_caseless, wanted.collections),
        (stems.c.key_caseless, wanted.keys),
    ):
        if values:
            where.append(column.in_(map(caseless, values)))
    if wanted.kinds:
        where.append(stems.c.kind.in_(wanted.kinds))
    for tag in wanted.tags:
        where.append(exists().where(stem_tags.c.stem_row == stems.c.row, stem_tags.c.caseless == caseless(tag)))
    if wanted.tempo_min is not None or wanted.tempo_max is not None:
        slowest = (wanted.tempo_min or 0.0) - WRITTEN_BPM
        fastest = (math.inf if wanted.tempo_max is None else wanted.tempo_max) + WRITTEN_BPM
        octaves = (0.5, 1.0, 2.0) if wanted.tempo_octaves else (1.0,)
        where.append(or_(*(stems.c.tempo_bpm.between(slowest * by, fastest * by) for by in octaves)))
    if wanted.beat_bpm is not None:
        where.append(_within(wanted.beat_bpm))
    if wanted.as_recorded_bpm is not None:
        where.append(or_(stems.c.beat_bpm.is_(None), _within(wanted.as_recorded_bpm)))
    if wanted.in_beat_time is not None:
        where.append(stems.c.beat_bpm.is_not(None) if wanted.in_beat_time else stems.c.beat_bpm.is_(None))
    if wanted.exclude:
        where.append(stems.c.id.not_in(wanted.exclude))
    if wanted.exclude_tracks:
        unwanted = [caseless(track) for track in wanted.exclude_tracks]
        where.append(or_(stems.c.track_caseless.is_(None), stems.c.track_caseless.not_in(unwanted)))
    return where


def _within(tempi: tuple[float, float]) -> ColumnElement[bool]:
    first, last = tempi
    both = and_ if first <= last else or_
    return both(stems.c.beat_bpm >= first, stems.c.beat_bpm <= last)


def _parse_cursor(cursor: str | None) -> int:
    if cursor is None:
        return 0
    if not (cursor.startswith("s") and cursor[1:].isdecimal() and len(cursor) < 20):
        raise BadCursor(cursor)
    if (row := int(cursor[1:])) > LARGEST_ROW:
        raise BadCursor(cursor)
    return row


_SHOWN = [stems.c[name] for name in (*sorted(STEM_FIELDS), "music_warnings")]
_ROWS: BindParameter[Any] = bindparam("rows", expanding=True)
_STEM = _tagged(stems.c.id == bindparam("id"))
_DURATIONS = select(stems.c.row, stems.c.duration_s).where(stems.c.row.in_(_ROWS), stems.c.state != "deleted")
_READY_STEMS = _tagged(and_(stems.c.row.in_(_ROWS), stems.c.state == "ready"))
