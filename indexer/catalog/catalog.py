"""Every query on the tables: stems, their embeddings per fingerprint, jobs, generations, the alias.

SQL is the only truth. Everything that must never be lost or answered wrongly is decided in one transaction here; the
queue and the index can be rebuilt from these tables at any time.

**The clock.** Each change that the index must see (a stem became ready, was deleted, was sent back) takes the next
number of one counter row in its own transaction. Numbers appear in commit order, so whoever has applied every change up
to n has missed nothing below n.

**One writer at a time.** Every writing transaction holds that row from its first statement to its commit (in SQLite,
the one write lock). So what it reads stays true until it commits, rows are numbered in the order in which they appear,
and no two writers deadlock, with any number of processes. See docs/decisions/one-writer-at-a-time.md.
"""

import secrets
import time
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import BindParameter, Row, Select, and_, bindparam, delete, exists, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.elements import ColumnElement

from indexer.catalog.database import Database, retried
from indexer.catalog.quotas import Charge, Usage, charge_for, give_back, refuse_if_over, usage_of
from indexer.catalog.records import (
    Alias,
    BadCursor,
    Changes,
    Job,
    JobItem,
    JobNotFound,
    NothingToRollBackTo,
    Problem,
    Rejected,
    Stem,
    StemEmbeddings,
    StemFilter,
    StemJob,
    StemNotFound,
    StemState,
    Upload,
)
from indexer.catalog.tables import aliases, clock, embeddings, generations, job_items, jobs, stem_tags, stems

LIVE = "live"
SQL_CHUNK = 500  # values in one IN (...); SQLite allows 32,766 and asyncpg 32,767
LARGEST_ROW = 2**31 - 1


@dataclass
class Catalog:
    """The catalog of one installation. Open it with `Catalog.open`; every method is one transaction.

    A method whose database is away, or that another transaction stood in the way of, is tried again for a few seconds;
    then it raises CatalogUnavailable.
    """

    _database: Database

    @classmethod
    async def open(cls, url: str) -> Self:
        """Connect; make the tables, or bring an older release's up to date.

        Args:
            url: `sqlite+aiosqlite:///file` or `postgresql+asyncpg://user:password@host/name`.

        Raises:
            UnsupportedDatabase, NewerSchema, ForeignTables: see indexer.catalog.records.
        """
        return cls(await Database.open(url))

    @property
    def database(self) -> Database:
        """For what else lives in the same database."""
        return self._database

    async def close(self) -> None:
        await self._database.close()

    def alone(self, *names: str) -> AbstractAsyncContextManager[None]:
        """Hold these names until the context ends: of all processes on this database, one at a time holds a name.

        For what SQL alone cannot make one step, such as bytes in a store and the stem that names them. SQLite, which
        is for one API process, keeps them in this process.
        """
        return self._database.alone(names)

    # ---------------------------------------------------------------- stems

    @retried
    async def add(self, files: Sequence[Upload | Rejected], charge: Charge | None = None) -> tuple[Job, list[str]]:
        """Record one request's files as an ingest job.

        Bytes that are here already are the same stem: nothing is made anew, except that a failed one is tried again.
        `charge` says who pays for the stems that are made.

        Returns:
            the job, and the ids of the stems that now wait to be embedded.

        Raises:
            QuotaExceeded: nothing was recorded.
        """
        job_id, now = secrets.token_hex(8), time.time()
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
        for chunk in _chunks(list(rows)):
            some = await self._stems(_READY_STEMS, rows=chunk)
            found |= {stem.row: stem for stem in some}
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
        """Which instruments, tags, tracks, collections and keys the catalog holds, sorted."""
        columns = {
            "instruments": stems.c.instrument,
            "tracks": stems.c.track,
            "collections": stems.c.collection,
            "keys": stems.c.key,
        }
        found: dict[str, list[str]] = {}
        async with self._database.read() as sql:
            for name, column in columns.items():
                query = select(column).where(column.is_not(None), stems.c.state == "ready").distinct()
                found[name] = list((await sql.execute(query)).scalars())
            tags = select(stem_tags.c.tag).join(stems).where(stems.c.state == "ready").distinct()
            found["tags"] = list((await sql.execute(tags)).scalars())
        # Sorted here: how a database orders text depends on where it was set up.
        return {name: sorted(values) for name, values in found.items()}

    @retried
    async def tempo_range(self) -> tuple[float | None, float | None]:
        """The slowest and the fastest tempo of a ready stem, beats a minute; None where none states one."""
        async with self._database.read() as sql:
            query = select(func.min(stems.c.tempo_bpm), func.max(stems.c.tempo_bpm)).where(stems.c.state == "ready")
            slowest, fastest = (await sql.execute(query)).one()
        return slowest, fastest

    @retried
    async def change_metadata(self, stem_id: str, changed: Mapping[str, Any]) -> Stem:
        """Replace some fields of a stem's metadata (keys are StemMetadata's fields). Raises StemNotFound."""
        columns = {name: value for name, value in changed.items() if name != "tags"}
        async with self._database.write() as sql:
            row = await _row_of(sql, stem_id)
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
            seq = await _tick(sql)
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
            for chunk in _chunks(list(charge.sizes)):
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
    async def window_count(self) -> int:
        """How many windows the ready stems have under the live model; another one cuts them the same."""
        async with self._database.read() as sql:
            query = select(func.coalesce(func.sum(stems.c.windows), 0)).where(stems.c.state == "ready")
            return int((await sql.execute(query)).scalar_one())

    @retried
    async def counts(self) -> dict[str, int]:
        """How many stems are queued, ready and failed."""
        query = select(stems.c.state, func.count()).where(stems.c.state != "deleted").group_by(stems.c.state)
        found = {state: n for state, n in await self._database.rows(query)}
        return {state: found.get(state, 0) for state in ("queued", "ready", "failed")}

    # ---------------------------------------------------------------- what the worker does

    @retried
    async def stem_for_embedding(self, stem_id: str) -> StemJob | None:
        """The stem a job names; None when it is gone."""
        query = select(stems.c.row, stems.c.id, stems.c.sha256, stems.c.state).where(
            stems.c.id == stem_id, stems.c.state != "deleted"
        )
        found = await self._database.rows(query)
        return StemJob(*found[0]) if found else None

    @retried
    async def embeddings_exist(self, row: int, fingerprint: str) -> bool:
        query = select(embeddings.c.stem_row).where(
            embeddings.c.stem_row == row, embeddings.c.fingerprint == fingerprint
        )
        return bool(await self._database.rows(query))

    @retried
    async def store_embeddings(
        self,
        row: int,
        fingerprint: str,
        windows: NDArray[np.int64],
        starts_s: NDArray[np.float64],
        embedding: NDArray[np.complex64],
    ) -> bool:
        """Keep a stem's embeddings; under the live fingerprint the stem is ready from this commit on.

        Doing it twice is doing it once. Returns False when the stem was deleted meanwhile.
        """
        assert windows.dtype == np.int64
        assert starts_s.dtype == np.float64
        assert embedding.dtype == np.complex64
        assert len(windows) == len(starts_s) == len(embedding)
        assert np.isfinite(embedding).all(), "an index would drop such a key without a word"
        values = {
            "windows": windows.tobytes(),
            "starts_s": starts_s.tobytes(),
            "embedding": np.ascontiguousarray(embedding).tobytes(),
            "problem": None,
        }
        async with self._database.write() as sql:
            seq = await _tick(sql)
            state = (await sql.execute(select(stems.c.state).where(stems.c.row == row))).scalar()
            if state in (None, "deleted"):
                return False
            await _put_embeddings(sql, row, fingerprint, values)
            if fingerprint == await _live_fingerprint(sql):
                await sql.execute(
                    update(stems)
                    .where(stems.c.row == row)
                    .values(state="ready", problem=None, windows=len(windows), seq=seq)
                )
        return True

    @retried
    async def mark_failed(self, stem_id: str, problem: Problem, fingerprint: str | None = None) -> None:
        """A stem cannot be embedded; `problem` says why.

        Under a fingerprint that is not live (a reindex with a new model is on its way) the stem goes on answering, and
        fails when that model takes over.
        """
        async with self._database.write() as sql:
            seq = await _tick(sql)
            found = (await sql.execute(select(stems.c.row, stems.c.state).where(stems.c.id == stem_id))).first()
            if found is None or found.state == "deleted":
                return
            if fingerprint is None or fingerprint == await _live_fingerprint(sql):
                await sql.execute(
                    update(stems).where(stems.c.row == found.row).values(state="failed", problem=dict(problem), seq=seq)
                )
            else:
                nothing = {"windows": b"", "starts_s": b"", "embedding": b"", "problem": dict(problem)}
                await _put_embeddings(sql, found.row, fingerprint, nothing)

    @retried
    async def queued(self, *, older_than_s: float = 0.0) -> list[str]:
        """Ids of the stems that wait for the live model, oldest first, if they have waited this long."""
        query = (
            select(stems.c.id)
            .where(stems.c.state == "queued", stems.c.created_at <= time.time() - older_than_s)
            .order_by(stems.c.row)
        )
        async with self._database.read() as sql:
            return list((await sql.execute(query)).scalars())

    @retried
    async def lacking(self, fingerprint: str) -> list[str]:
        """Ids of the ready stems that a model other than the live one has not seen yet, oldest first."""
        async with self._database.read() as sql:
            query = select(stems.c.id).where(_lacks(fingerprint)).order_by(stems.c.row)
            return list((await sql.execute(query)).scalars())

    # ---------------------------------------------------------------- what the index reads

    @retried
    async def embeddings_of(self, rows: Sequence[int], fingerprint: str) -> dict[int, StemEmbeddings]:
        """The embeddings of these stems under one fingerprint; stems that have none are left out."""
        found: dict[int, StemEmbeddings] = {}
        for chunk in _chunks(list(rows)):
            records = await self._database.rows(_EMBEDDINGS, rows=chunk, fingerprint=fingerprint)
            found |= {record.stem_row: _unpack(record) for record in records}
        return found

    @retried
    async def clock_value(self) -> int:
        async with self._database.read() as sql:
            return int((await sql.execute(select(clock.c.value))).scalar_one())

    @retried
    async def changes_since(self, seq: int, fingerprint: str) -> Changes:
        """What an index that has seen everything up to `seq` must put in and take out."""
        upserted: dict[int, StemEmbeddings] = {}
        removed: set[int] = set()
        async with self._database.read() as sql:
            reached = int((await sql.execute(select(clock.c.value))).scalar_one())
            changed = list(
                await sql.execute(select(stems.c.row, stems.c.state).where(stems.c.seq > seq, stems.c.seq <= reached))
            )
            ready = [row for row, state in changed if state == "ready"]
            for chunk in _chunks(ready):
                query = select(embeddings).where(
                    embeddings.c.stem_row.in_(chunk), embeddings.c.fingerprint == fingerprint
                )
                for record in await sql.execute(query):
                    if record.problem is None:
                        upserted[record.stem_row] = _unpack(record)
            removed.update(row for row, _ in changed if row not in upserted)
        return Changes(upserted, frozenset(removed), reached)

    @retried
    async def gone_since(self, seq: int) -> frozenset[int]:
        """Rows of the stems that changed after `seq` and are not ready: `changes_since` without the embeddings."""
        query = select(stems.c.row).where(stems.c.seq > seq, stems.c.state != "ready")
        return frozenset(row for (row,) in await self._database.rows(query))

    async def all_embeddings(self, fingerprint: str, chunk: int = 200) -> AsyncIterator[dict[int, StemEmbeddings]]:
        """Every ready stem's embeddings under one fingerprint, some stems at a time, by ascending row."""
        after = 0
        while found := await self._embeddings_after(after, fingerprint, chunk):
            yield found
            after = max(found)

    @retried
    async def _embeddings_after(self, row: int, fingerprint: str, limit: int) -> dict[int, StemEmbeddings]:
        query = (
            select(embeddings)
            .join(stems, stems.c.row == embeddings.c.stem_row)
            .where(
                stems.c.state == "ready",
                embeddings.c.fingerprint == fingerprint,
                embeddings.c.problem.is_(None),
                embeddings.c.stem_row > row,
            )
            .order_by(embeddings.c.stem_row)
            .limit(limit)
        )
        async with self._database.read() as sql:
            return {record.stem_row: _unpack(record) for record in await sql.execute(query)}

    # ---------------------------------------------------------------- generations and the alias

    @retried
    async def new_generation(self, fingerprint: str) -> int:
        """A number for an index about to be built; never given twice."""
        async with self._database.write() as sql:
            made = await sql.execute(insert(generations).values(fingerprint=fingerprint, created_at=time.time()))
            key = made.inserted_primary_key
            assert key is not None
            return int(key[0])

    @retried
    async def alias(self) -> Alias | None:
        """Where `live` points; None before the first index."""
        async with self._database.read() as sql:
            return await _alias(sql)

    @retried
    async def position(self) -> tuple[Alias | None, int]:
        """Where `live` points and the clock, from one instant: what an index compares itself with."""
        seq, *found = (await self._database.rows(_POSITION))[0]
        return None if found[0] is None else Alias(*found), int(seq)

    @retried
    async def go_live(self, generation: int, configured: str) -> bool:
        """Point `live` at a generation, if every ready stem has been embedded by its model.

        The check and the switch are one transaction, so no stem can slip between. Stems that its model could not
        embed become failed; stems that wait go on waiting. Returns False when some ready stem is not embedded yet.
        """
        async with self._database.write() as sql:
            seq = await _tick(sql)
            fingerprint = await _fingerprint_of(sql, generation)
            before = await _alias(sql)
            if (await sql.execute(select(stems.c.row).where(_lacks(fingerprint)).limit(1))).first():
                return False
            await _fail_unembeddable(sql, fingerprint, seq)
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
        """Point `live` at the previous generation again; calling it twice comes back.

        Stems that only the present model has embedded wait again. Raises NothingToRollBackTo.
        """
        async with self._database.write() as sql:
            seq = await _tick(sql)
            before = await _alias(sql)
            if before is None or before.previous is None or before.previous_fingerprint is None:
                raise NothingToRollBackTo
            fingerprint = before.previous_fingerprint
            await sql.execute(update(stems).where(_lacks(fingerprint)).values(state="queued", seq=seq))
            await _fail_unembeddable(sql, fingerprint, seq)
            await sql.execute(
                update(aliases)
                .where(aliases.c.name == LIVE)
                .values(generation=before.previous, previous=before.generation)
            )
            after = await _alias(sql)
            assert after is not None
            return after

    @retried
    async def forget_models(self, keep: Collection[str]) -> int:
        """Drop the embeddings of every fingerprint but these. Returns how many stems' worth went."""
        async with self._database.write() as sql:
            gone = await sql.execute(delete(embeddings).where(embeddings.c.fingerprint.not_in(list(keep))))
            return gone.rowcount

    # ---------------------------------------------------------------- jobs

    @retried
    async def job(self, job_id: str) -> Job:
        """One job with its items. Raises JobNotFound."""
        async with self._database.read() as sql:
            record = (await sql.execute(select(jobs).where(jobs.c.id == job_id))).first()
            if record is None:
                raise JobNotFound(job_id)
            query = (
                select(job_items, stems.c.id.label("stem_id"), stems.c.state, stems.c.problem.label("stem_problem"))
                .join(stems, stems.c.row == job_items.c.stem_row, isouter=True)
                .where(job_items.c.job_id == job_id)
                .order_by(job_items.c.position)
            )
            items = tuple(_item(item) for item in await sql.execute(query))
        job = Job(**record._mapping, items=items)
        if job.kind == "ingest":
            waiting = any(item.state == "queued" for item in items)
            job = replace(job, state="running" if waiting else "done")
        return job

    @retried
    async def start_reindex(self, request: Mapping[str, Any]) -> tuple[Job, bool]:
        """A reindex job; if one is running already, that one. Returns the job and whether it is new."""
        async with self._database.write() as sql:
            running = (
                await sql.execute(select(jobs.c.id).where(jobs.c.kind == "reindex", jobs.c.state == "running"))
            ).scalar()
            job_id = running or secrets.token_hex(8)
            if running is None:
                await sql.execute(
                    insert(jobs).values(
                        id=job_id, kind="reindex", state="running", created_at=time.time(), request=dict(request)
                    )
                )
        return await self.job(job_id), running is None

    @retried
    async def unfinished_reindex(self) -> Job | None:
        """The reindex job that a restart found unfinished."""
        async with self._database.read() as sql:
            query = select(jobs.c.id).where(jobs.c.kind == "reindex", jobs.c.state == "running")
            job_id = (await sql.execute(query)).scalar()
        return await self.job(job_id) if job_id else None

    @retried
    async def report_progress(self, job_id: str, progress: Mapping[str, Any]) -> None:
        async with self._database.write() as sql:
            await sql.execute(update(jobs).where(jobs.c.id == job_id).values(progress=dict(progress)))

    @retried
    async def finish_job(
        self, job_id: str, *, result: Mapping[str, Any] | None = None, problem: Problem | None = None
    ) -> None:
        """End a job: done with a result, or failed with a problem."""
        async with self._database.write() as sql:
            await sql.execute(
                update(jobs)
                .where(jobs.c.id == job_id)
                .values(
                    state="failed" if problem else "done",
                    finished_at=time.time(),
                    result=dict(result) if result else None,
                    problem=dict(problem) if problem else None,
                )
            )


async def _tick(sql: AsyncConnection) -> int:
    """Take the next clock value."""
    advance = update(clock).where(clock.c.id == 1).values(value=clock.c.value + 1).returning(clock.c.value)
    return int((await sql.execute(advance)).scalar_one())


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
    made = await sql.execute(
        insert(stems).values(
            id=stem_id,
            sha256=file.sha256,
            file_name=file.file_name,
            title=said.title or file.file_name.rsplit(".", 1)[0],
            instrument=said.instrument,
            track=said.track,
            collection=said.collection,
            tempo_bpm=said.tempo_bpm,
            key=said.key,
            format=facts.format,
            duration_s=facts.duration_s,
            sample_rate=facts.sample_rate,
            channels=facts.channels,
            warnings=list(facts.warnings),
            state="queued",
            created_at=now,
            seq=0,
        )
    )
    key = made.inserted_primary_key
    assert key is not None
    await _set_tags(sql, key[0], said.tags)
    return key[0], stem_id, True, "queued"


async def _set_tags(sql: AsyncConnection, row: int, tags: Iterable[str]) -> None:
    await sql.execute(delete(stem_tags).where(stem_tags.c.stem_row == row))
    if tagged := [{"stem_row": row, "tag": tag} for tag in sorted(set(tags))]:
        await sql.execute(insert(stem_tags), tagged)


async def _row_of(sql: AsyncConnection, stem_id: str) -> int:
    query = select(stems.c.row).where(stems.c.id == stem_id, stems.c.state != "deleted")
    row = (await sql.execute(query)).scalar()
    if row is None:
        raise StemNotFound(stem_id)
    return int(row)


def _tagged(where: ColumnElement[bool], limit: int | None = None) -> Select[Any]:
    """Stems that were not deleted, by ascending row, each once for each of its tags, or once without one."""
    some = select(stems).where(where, stems.c.state != "deleted").order_by(stems.c.row).limit(limit).subquery()
    joined = some.join(stem_tags, stem_tags.c.stem_row == some.c.row, isouter=True)
    return select(some, stem_tags.c.tag).select_from(joined).order_by(some.c.row)


def _stem(records: Sequence[Row[Any]]) -> Stem:
    """A stem from its row, once for each of its tags."""
    shown = {name: value for name, value in records[0]._mapping.items() if name not in ("seq", "tag")}
    shown["warnings"] = tuple(shown["warnings"])
    return Stem(**shown, tags=tuple(sorted(record.tag for record in records if record.tag is not None)))


def _item(record: Row[Any]) -> JobItem:
    gone: Problem = {"type": "stem-deleted", "title": "The stem was deleted", "status": 410}
    if record.stem_row is None:
        return JobItem(record.file_name, None, "failed", False, record.problem)
    problem = gone if record.state == "deleted" else record.stem_problem
    return JobItem(record.file_name, record.stem_id, record.state, bool(record.created), problem)


def _conditions(wanted: StemFilter) -> list[ColumnElement[bool]]:
    where: list[ColumnElement[bool]] = []
    for column, values in (
        (stems.c.instrument, wanted.instruments),
        (stems.c.track, wanted.tracks),
        (stems.c.collection, wanted.collections),
        (stems.c.key, wanted.keys),
    ):
        if values:
            where.append(column.in_(values))
    for tag in wanted.tags:
        where.append(exists().where(stem_tags.c.stem_row == stems.c.row, stem_tags.c.tag == tag))
    if wanted.tempo_min is not None:
        where.append(stems.c.tempo_bpm >= wanted.tempo_min)
    if wanted.tempo_max is not None:
        where.append(stems.c.tempo_bpm <= wanted.tempo_max)
    if wanted.exclude:
        where.append(stems.c.id.not_in(wanted.exclude))
    if wanted.exclude_tracks:
        where.append(or_(stems.c.track.is_(None), stems.c.track.not_in(wanted.exclude_tracks)))
    return where


def _lacks(fingerprint: str) -> ColumnElement[bool]:
    seen = exists().where(embeddings.c.stem_row == stems.c.row, embeddings.c.fingerprint == fingerprint)
    return and_(stems.c.state == "ready", ~seen)


async def _put_embeddings(sql: AsyncConnection, row: int, fingerprint: str, values: Mapping[str, Any]) -> None:
    this = and_(embeddings.c.stem_row == row, embeddings.c.fingerprint == fingerprint)
    await sql.execute(delete(embeddings).where(this))
    await sql.execute(insert(embeddings).values(stem_row=row, fingerprint=fingerprint, **values))


async def _fail_unembeddable(sql: AsyncConnection, fingerprint: str, seq: int) -> None:
    query = (
        select(stems.c.row, embeddings.c.problem)
        .join(embeddings, embeddings.c.stem_row == stems.c.row)
        .where(stems.c.state == "ready", embeddings.c.fingerprint == fingerprint, embeddings.c.problem.is_not(None))
    )
    for row, problem in list(await sql.execute(query)):
        await sql.execute(update(stems).where(stems.c.row == row).values(state="failed", problem=problem, seq=seq))


_PRESENT, _BEFORE = generations.alias("present"), generations.alias("before")
_ALIAS = (
    aliases.c.generation,
    _PRESENT.c.fingerprint,
    aliases.c.previous,
    _BEFORE.c.fingerprint.label("previous_fingerprint"),
    aliases.c.configured,
)


# What every query asks, built once.
_POSITION = (
    select(clock.c.value, *_ALIAS)
    .select_from(clock)
    .join(aliases, aliases.c.name == LIVE, isouter=True)
    .join(_PRESENT, _PRESENT.c.generation == aliases.c.generation, isouter=True)
    .join(_BEFORE, _BEFORE.c.generation == aliases.c.previous, isouter=True)
)
_ROWS: BindParameter[Any] = bindparam("rows", expanding=True)
_STEM = _tagged(stems.c.id == bindparam("id"))
_READY_STEMS = _tagged(and_(stems.c.row.in_(_ROWS), stems.c.state == "ready"))
_EMBEDDINGS = select(embeddings).where(
    embeddings.c.stem_row.in_(_ROWS), embeddings.c.fingerprint == bindparam("fingerprint")
)


async def _alias(sql: AsyncConnection) -> Alias | None:
    query = (
        select(*_ALIAS)
        .join(_PRESENT, _PRESENT.c.generation == aliases.c.generation)
        .join(_BEFORE, _BEFORE.c.generation == aliases.c.previous, isouter=True)
        .where(aliases.c.name == LIVE)
    )
    found = (await sql.execute(query)).first()
    return Alias(*found) if found else None


async def _fingerprint_of(sql: AsyncConnection, generation: int) -> str:
    query = select(generations.c.fingerprint).where(generations.c.generation == generation)
    return str((await sql.execute(query)).scalar_one())


async def _live_fingerprint(sql: AsyncConnection) -> str | None:
    alias = await _alias(sql)
    return alias.fingerprint if alias else None


def _unpack(record: Row[Any]) -> StemEmbeddings:
    windows = np.frombuffer(record.windows, dtype=np.int64)
    embedding = np.frombuffer(record.embedding, dtype=np.complex64)
    return StemEmbeddings(
        windows=windows,
        starts_s=np.frombuffer(record.starts_s, dtype=np.float64),
        embedding=embedding.reshape(len(windows), -1) if len(windows) else embedding.reshape(0, 0),
    )


def _chunks(values: list[Any]) -> Iterable[list[Any]]:
    for start in range(0, len(values), SQL_CHUNK):
        yield values[start : start + SQL_CHUNK]


def _parse_cursor(cursor: str | None) -> int:
    if cursor is None:
        return 0
    if not (cursor.startswith("s") and cursor[1:].isdecimal() and len(cursor) < 20):
        raise BadCursor(cursor)
    if (row := int(cursor[1:])) > LARGEST_ROW:
        raise BadCursor(cursor)
    return row
