"""Embeddings: what a worker stores of a stem under each fingerprint, and what an index reads of them."""

import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import BindParameter, Row, and_, bindparam, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from indexer.catalog.caseless import caseless
from indexer.catalog.database import OnDatabase, chunks, retried, tick
from indexer.catalog.generations import lacks, laid, live_fingerprint, seen
from indexer.catalog.music import analysed
from indexer.catalog.records import Changes, Problem, StemEmbeddings, StemJob, StemMusic
from indexer.catalog.tables import WINDOW_BYTES, clock, embeddings, stems

FORGOTTEN_AT_ONCE = 100  # embeddings dropped in one transaction, while which no other writer has its turn


class Embeddings(OnDatabase):
    """A stem has one set of them for each model that has seen it."""

    # What the worker asks and stores.

    @retried
    async def stem_for_embedding(self, stem_id: str) -> StemJob | None:
        """The stem a job names; None when it is gone."""
        query = select(*(stems.c[name] for name in _JOB_FIELDS)).where(
            stems.c.id == stem_id, stems.c.state != "deleted"
        )
        found = await self._database.rows(query)
        return StemJob(**{**found[0]._mapping, "sources": found[0].sources or {}}) if found else None

    @retried
    async def embeddings_exist(self, row: int, fingerprint: str) -> bool:
        """Whether a stem has been analysed and embedded by this model; what a release without beats did is not all."""
        return bool(await self._database.rows(select(stems.c.row).where(stems.c.row == row, laid(fingerprint))))

    @retried
    async def store_embeddings(
        self,
        row: int,
        fingerprint: str,
        windows: NDArray[np.int64],
        starts_s: NDArray[np.float64],
        embedding: NDArray[np.complex64],
        beats: NDArray[np.float64] | None = None,
        music: StemMusic | None = None,
    ) -> bool:
        """Keep a stem's embeddings; under the live fingerprint the stem is ready from this commit on.

        A second call changes nothing.

        Args:
            row, fingerprint: of which stem, and which model.
            windows, starts_s, embedding: see StemEmbeddings.
            beats: likewise; None: all windows are in clock time.
            music: what the analysis found that the windows were laid by.

        Returns:
            False, and nothing was stored: the stem was deleted meanwhile, or its tempo changed, so that it is to be
            analysed and embedded once more.
        """
        assert windows.dtype == np.int64
        assert starts_s.dtype == np.float64
        assert embedding.dtype == np.complex64
        assert len(windows) == len(starts_s) == len(embedding)
        assert np.isfinite(embedding).all(), "an index would drop such a key without a word"
        assert beats is None or (beats.dtype == np.float64 and len(beats) == len(windows))
        values = {
            "windows": windows.tobytes(),
            "starts_s": starts_s.tobytes(),
            "embedding": np.ascontiguousarray(embedding).tobytes(),
            "problem": None,
            "beats": (np.full(len(windows), np.nan) if beats is None else beats).tobytes(),
        }
        async with self._database.write() as sql:
            seq = await tick(sql)
            stem = (await sql.execute(select(stems).where(stems.c.row == row))).first()
            if stem is None or stem.state == "deleted":
                return False
            if music is not None:
                known = analysed(stem, music)
                if known is None:
                    return False
                known["key_caseless"] = caseless(known["key"])
                await sql.execute(update(stems).where(stems.c.row == row).values(known))
            await _put_embeddings(sql, row, fingerprint, values)
            if fingerprint == await live_fingerprint(sql):
                await sql.execute(
                    update(stems)
                    .where(stems.c.row == row)
                    .values(state="ready", problem=None, windows=len(windows), seq=seq)
                )
        return True

    @retried
    async def mark_failed(self, stem_id: str, problem: Problem, fingerprint: str | None = None) -> None:
        """A stem cannot be embedded; `problem` says why.

        If the fingerprint is not the live one (a reindex with a new model runs), the stem is still found, and fails
        when that model goes live. One that this model has embedded before stays as it is, with a warning: it could not
        be embedded again.
        """
        async with self._database.write() as sql:
            seq = await tick(sql)
            found = (await sql.execute(select(stems.c.row, stems.c.state).where(stems.c.id == stem_id))).first()
            if found is None or found.state == "deleted":
                return
            if fingerprint is not None and found.state == "ready" and await _kept(sql, found.row, fingerprint, problem):
                return
            if fingerprint is None or fingerprint == await live_fingerprint(sql):
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
        return [stem_id for (stem_id,) in await self._database.rows(query)]

    @retried
    async def count_lacking(self, fingerprint: str) -> int:
        """How many ready stems this model is to embed before its next generation goes live."""
        query = select(func.count()).where(lacks(fingerprint))
        return int((await self._database.rows(query))[0][0])

    @retried
    async def lacking(self, fingerprint: str, limit: int | None = None) -> list[str]:
        """Ids of these stems, the oldest first."""
        query = select(stems.c.id).where(lacks(fingerprint)).order_by(stems.c.row).limit(limit)
        return [stem_id for (stem_id,) in await self._database.rows(query)]

    # What the index reads.

    @retried
    async def embeddings_of(self, rows: Sequence[int], fingerprint: str) -> dict[int, StemEmbeddings]:
        """The embeddings of these stems under one fingerprint; stems that have none are left out."""
        records = await self._of_each(_EMBEDDINGS, rows, fingerprint=fingerprint)
        return {record.stem_row: _unpack(record) for record in records}

    @retried
    async def whole_to(self, fingerprint: str) -> int:
        """The clock; or its value just before the first ready stem that this model has not seen: it is put in later."""
        unseen = select(func.min(stems.c.seq)).where(stems.c.state == "ready", ~seen(fingerprint)).scalar_subquery()
        value, first = (await self._database.rows(select(clock.c.value, unseen)))[0]
        return int(value if first is None else first - 1)

    @retried
    async def changes_since(self, seq: int, fingerprint: str) -> Changes:
        """What an index that has seen everything up to `seq` must put in and take out.

        It has then seen everything up to the clock, or to just before a ready stem that its model has not seen.
        """
        upserted: dict[int, StemEmbeddings] = {}
        removed: set[int] = set()
        async with self._database.read() as sql:
            reached = int((await sql.execute(select(clock.c.value))).scalar_one())
            since = and_(stems.c.seq > seq, stems.c.seq <= reached)
            changed = list(await sql.execute(select(stems.c.row, stems.c.state, stems.c.seq).where(since)))
            unseen = {row: at for row, state, at in changed if state == "ready"}
            for chunk in chunks(list(unseen)):
                query = _WITH_CHROMA.where(embeddings.c.stem_row.in_(chunk), embeddings.c.fingerprint == fingerprint)
                for record in await sql.execute(query):
                    del unseen[record.stem_row]
                    if record.problem is None:
                        upserted[record.stem_row] = _unpack(record)
            removed.update(row for row, *_ in changed if row not in upserted)
        return Changes(upserted, frozenset(removed), min([reached, *(at - 1 for at in unseen.values())]))

    @retried
    async def gone_since(self, seq: int) -> frozenset[int]:
        """Rows of the stems that changed after `seq` and are not ready: `changes_since` without the embeddings."""
        query = select(stems.c.row).where(stems.c.seq > seq, stems.c.state != "ready")
        return frozenset(row for (row,) in await self._database.rows(query))

    async def all_embeddings(
        self, fingerprint: str, chunk: int = 200, *, after: int = 0
    ) -> AsyncIterator[dict[int, StemEmbeddings]]:
        """Every ready stem's embeddings under one fingerprint, some stems at a time, by ascending row after `after`."""
        while found := await self._embeddings_after(after, fingerprint, chunk):
            yield found
            after = max(found)

    @retried
    async def _embeddings_after(self, row: int, fingerprint: str, limit: int) -> dict[int, StemEmbeddings]:
        query = (
            _WITH_CHROMA.where(
                stems.c.state == "ready",
                embeddings.c.fingerprint == fingerprint,
                embeddings.c.problem.is_(None),
                embeddings.c.stem_row > row,
            )
            .order_by(embeddings.c.stem_row)
            .limit(limit)
        )
        return {record.stem_row: _unpack(record) for record in await self._database.rows(query)}

    async def forget_models(self, keep: Collection[str]) -> None:
        """Drop the embeddings of every fingerprint but these, of some stems in each transaction."""
        last: int | None = 0
        while last is not None:
            last = await self._forget_models_after(last, keep)

    @retried
    async def _forget_models_after(self, row: int, keep: Collection[str]) -> int | None:
        others = and_(embeddings.c.stem_row > row, embeddings.c.fingerprint.not_in(list(keep)))
        some = select(embeddings.c.stem_row).where(others).order_by(embeddings.c.stem_row).limit(FORGOTTEN_AT_ONCE)
        found = await self._database.rows(some)
        if not found:
            return None
        last: int = found[-1].stem_row
        async with self._database.write() as sql:
            await sql.execute(delete(embeddings).where(others, embeddings.c.stem_row <= last))
        return last


async def _put_embeddings(sql: AsyncConnection, row: int, fingerprint: str, values: Mapping[str, Any]) -> None:
    this = and_(embeddings.c.stem_row == row, embeddings.c.fingerprint == fingerprint)
    await sql.execute(delete(embeddings).where(this))
    await sql.execute(insert(embeddings).values(stem_row=row, fingerprint=fingerprint, **values))


async def _kept(sql: AsyncConnection, row: int, fingerprint: str, problem: Problem) -> bool:
    """Whether a stem has embeddings already; they stay, and are not asked for again."""
    this = and_(embeddings.c.stem_row == row, embeddings.c.fingerprint == fingerprint, embeddings.c.problem.is_(None))
    found = (await sql.execute(select(embeddings.c.windows, embeddings.c.beats).where(this))).first()
    if found is None:
        return False
    if found.beats is None:
        in_clock_time = np.full(len(found.windows) // WINDOW_BYTES, np.nan).tobytes()
        warning = f"It is found as an earlier release embedded it: {problem.get('detail', problem.get('type'))}"
        await sql.execute(update(embeddings).where(this).values(beats=in_clock_time))
        await sql.execute(update(stems).where(stems.c.row == row).values(music_warnings=[warning]))
    return True


def _unpack(record: Row[Any]) -> StemEmbeddings:
    windows = np.frombuffer(record.windows, dtype=np.int64)
    embedding = np.frombuffer(record.embedding, dtype=np.complex64)
    return StemEmbeddings(
        windows=windows,
        starts_s=np.frombuffer(record.starts_s, dtype=np.float64),
        beats=np.full(len(windows), np.nan) if record.beats is None else np.frombuffer(record.beats, dtype=np.float64),
        embedding=embedding.reshape(len(windows), -1) if len(windows) else embedding.reshape(0, 0),
        chroma=None if record.chroma is None else np.frombuffer(record.chroma, dtype=np.float32),
    )


_JOB_FIELDS = [field.name for field in fields(StemJob)]
_SOME: BindParameter[Any] = bindparam("some", expanding=True)
_WITH_CHROMA = select(embeddings, stems.c.chroma).join(stems, stems.c.row == embeddings.c.stem_row)
_EMBEDDINGS = _WITH_CHROMA.where(embeddings.c.stem_row.in_(_SOME), embeddings.c.fingerprint == bindparam("fingerprint"))
