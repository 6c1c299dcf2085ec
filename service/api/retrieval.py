"""POST /retrieve: the mix comes in, is searched with, and hits go out."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from indexer import Catalog, Index, LiveIndex, Place, Stem, StemFilter
from model.audio import SAMPLE_RATE, Waveform, Windows
from model.errors import Told
from service.api.keys import Caller
from service.api.mixes import Mix, Mixes
from service.api.schemas import (
    AlignOut,
    BandOut,
    CopyOut,
    HitOut,
    IndexOut,
    MixOut,
    ModelOut,
    RetrieveIn,
    RetrieveOut,
    SlotOut,
    StemOut,
    WindowPair,
)
from service.metrics import Metrics, Stopwatch
from service.search.mix import HeardMix
from service.search.remembered import Remembering
from service.search.retrieval import Embedder, Finder, Found, Wish
from service.search.sureness import Sureness
from service.settings import Settings
from service.work.models import Models, note_of
from service.work.queue import Queue, Share
from service.work.streams import QueueFull
from service.work.turns import Turns

SEARCHES = 3  # at most, for as many hits as were asked for while stems are deleted
FEWEST_SEARCHES = 2  # that go on at a time


class QueryTimeout(Told):
    public = "The search took longer than {seconds:g} s."
    seconds: float


@dataclass(frozen=True)
class _Shared:
    """An Embedder for one caller."""

    queue: Queue
    share: Share

    async def embed(
        self, fingerprint: str, waveform: Waveform, laid: Windows, deadline_s: float
    ) -> NDArray[np.complex64]:
        return await self.queue.embed(fingerprint, waveform, laid, deadline_s, self.share)


@dataclass
class Retrieval:
    """Answers queries from one index generation and one model each."""

    settings: Settings
    catalog: Catalog
    mixes: Mixes
    queue: Queue
    models: Models
    live: LiveIndex
    metrics: Metrics

    def __post_init__(self) -> None:
        self.turns = Turns(FEWEST_SEARCHES, self.settings.max_queued_queries, self._full)

    async def answer(self, query: RetrieveIn, caller: Caller) -> RetrieveOut:
        """The stems that fit, best first, for a caller who takes turns with others.

        Raises:
            AudioError, NoMix, MixNotFound, StemNotFound, MixNotReady, PlacedBeyondEnd: see `Mixes`.
            QueryTimeout: it waited and worked for longer than the settings allow.
            IndexUnavailable, QueueError: not now.
        """
        async with self.turn(caller):
            return await self._answer(query, caller, Stopwatch(self.metrics))

    @asynccontextmanager
    async def turn(self, caller: Caller) -> AsyncIterator[None]:
        """A caller's turn, and the time that a query may take, waiting included. Raises QueryTimeout, QueueFull."""
        try:
            async with asyncio.timeout(self.settings.query_timeout_s) as deadline, self.turns.turn(caller.who):
                yield
        except TimeoutError:
            if deadline.expired():
                raise QueryTimeout(self.settings.query_timeout_s) from None
            raise

    def embedder(self, who: str) -> Embedder:
        """The queue, as a caller asks it: with its share of what the workers have before them."""
        return _Shared(self.queue, Share(who, self.turns.share))

    def size_turns(self, batch_limits: Iterable[float]) -> None:
        """Let as many searches go on at a time as keep workers of these batch limits busy."""
        self.turns.resize(max(FEWEST_SEARCHES, sum(2 * max(1, round(limit) // 16) for limit in batch_limits)))

    async def _answer(self, query: RetrieveIn, caller: Caller, watch: Stopwatch) -> RetrieveOut:
        index, mix = await self._begun(query, caller, watch)
        embedder = self.embedder(caller.who)
        if mix.mix_id is not None:
            embedder = Remembering(embedder, self.mixes.shelf, mix.mix_id)
        finder = Finder(self.settings, self.catalog, embedder, self.live)
        heard = await finder.hear(mix.waveform, query.as_wish(), watch)
        if query.placed:
            mix = await self.mixes.lay(mix, query.placed, watch)  # its tempo and key stay what they were
            heard = replace(heard, chroma=(await finder.hear(mix.waveform, query.as_wish(), watch)).chroma)
        search = _Search(query, mix, heard, query.as_wish(mix.rows), query.as_filter(mix.stem_ids), finder, watch)
        if query.complete:
            return await self._complete(index, search)
        for _ in range(SEARCHES):
            found = await search.find(index)
            stems = await self._stems(found, found.places)
            places = {row: place for row, place in found.places.items() if row in stems}
            if len(places) >= query.limit or len(places) == len(found.places):
                break
            index = await self.live.current()  # more stems were deleted meanwhile than were to spare
        shown = [*places.items()][: query.limit]
        return self._told(search, found, [self._hit(*one, found, stems, rank) for rank, one in enumerate(shown, 1)])

    async def _begun(self, query: RetrieveIn, caller: Caller, watch: Stopwatch) -> tuple[Index, Mix]:
        """The index and the mix, which is made meanwhile; where there is no index, the mix is given up."""
        making = asyncio.create_task(self.mixes.of(query, caller.owner, watch))
        try:
            return await self.live.current(), await making
        finally:
            making.cancel()
            await asyncio.gather(making, return_exceptions=True)  # nothing goes on when the turn is over

    async def _complete(self, index: Index, search: "_Search") -> RetrieveOut:
        """The best stem of each instrument that is wanted, and what else would do: each by a search of its own, which
        finds more than sets do that are scored together."""
        hits, slots, exact = list[HitOut](), list[SlotOut](), True
        for name in search.query.complete:
            found = await search.find(index, instruments=(name,), limit=search.query.limit + 1)
            index, exact = found.index, exact and found.exact
            stems = await self._stems(found, found.places)
            there = [(row, place) for row, place in found.places.items() if row in stems][: search.query.limit + 1]
            told = [self._hit(row, place, found, stems) for row, place in there]
            hits += [hit.model_copy(update={"rank": len(hits) + 1}) for hit in told[:1]]
            slots.append(
                SlotOut(
                    instrument=name,
                    rank=len(hits) if told else None,
                    alternatives=told[1:],
                    note=None if told else "No stem that passes the filters is of this instrument.",
                )
            )
        return self._told(search, replace(found, exact=exact), hits, BandOut(slots=slots))

    async def _stems(self, found: Found, rows: Iterable[int]) -> dict[int, Stem]:
        """Those that are still there, of these hits and their copies."""
        rows = [*rows]
        return await self.catalog.stems_by_row([*rows, *chain(*(found.copies[row] for row in rows))])

    def _hit(self, row: int, place: Place, found: Found, stems: Mapping[int, Stem], rank: int = 0) -> HitOut:
        root_path = self.settings.root_path
        # Where one place is tried, scores mean another thing than where the best of many counts, as it was learnt.
        notes = self.models.of(found.index.fingerprint).notes if found.plan.shifts > 1 else {}
        known = Sureness.of_notes(notes)
        return HitOut(
            rank=rank,
            score=place.score,
            sureness=None if known is None else round(known.of(place.score), 3),
            cost=place.cost,
            harmony_cost=place.harmony_cost,
            length_cost=place.length_cost,
            speed=place.speed,
            transpose=place.transpose,
            start_s=place.start_s,
            stem=StemOut.of(stems[row], root_path),
            copies=[CopyOut.of(stems[copy], root_path) for copy in found.copies[row] if copy in stems],
            windows=[WindowPair.model_validate(pair) for pair in sorted(place.pairs, key=lambda pair: pair.mix_s)],
        )

    def _told(self, search: "_Search", found: Found, hits: list[HitOut], band: BandOut | None = None) -> RetrieveOut:
        index, plan, heard, mix = found.index, found.plan, search.heard, search.mix
        grid = heard.grids[0] if heard.grids else None
        model = self.models.of(index.fingerprint)
        align = search.query.align
        return RetrieveOut(
            hits=hits,
            band=band,
            mix_id=mix.mix_id,
            mix=MixOut(
                duration_s=len(mix.waveform) / SAMPLE_RATE,
                tempo_bpm=None if grid is None else grid.tempo_bpm,
                first_beat_s=None if grid is None else float(grid.beats_s[0]),
                key=heard.key,
                sources=heard.sources,
                sure=heard.sure,
                searched_from_s=plan.begin / SAMPLE_RATE,
                searched_to_s=plan.end / SAMPLE_RATE,
                warnings=list(mix.warnings),
            ),
            align=AlignOut(
                mode="search" if align == "beats" and plan.grid is None else align,
                shift_s=plan.step / SAMPLE_RATE,
                shifts=plan.shifts,
                range_s=plan.range_s,
            ),
            exact=found.exact,
            index=IndexOut.model_validate(index),
            model=ModelOut(fingerprint=index.fingerprint, trained=model.trained, note=note_of(model)),
            timing_ms=search.watch.done(),
        )

    def _full(self, waiting: int) -> QueueFull:
        return QueueFull("queries", waiting, self.settings.max_queued_queries, retry_after_s=1.0)


@dataclass(frozen=True, eq=False)
class _Search:
    """A query with what it is asked by: its mix, stems laid into it, and what was heard of it."""

    query: RetrieveIn
    mix: Mix
    heard: HeardMix
    wish: Wish
    filter: StemFilter
    finder: Finder
    watch: Stopwatch

    async def find(self, index: Index, instruments: tuple[str, ...] | None = None, limit: int | None = None) -> Found:
        """What the query asks, of other instruments and as many hits where that is said."""
        wanted = self.filter if instruments is None else replace(self.filter, instruments=instruments)
        wish = self.wish if limit is None else replace(self.wish, limit=limit)
        return await self.finder.find(index, self.mix.waveform, wanted, wish, self.watch, self.heard)
