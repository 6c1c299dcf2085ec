"""A waveform in, the stems that fit it out: embed at every delay, search, score exactly, refine the places."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from indexer import (
    BestPlaces,
    Catalog,
    Extent,
    Index,
    LiveIndex,
    Place,
    QueryWindows,
    StemEmbeddings,
    StemFilter,
    best_places,
    promising_places,
    search,
)
from model.audio import SAMPLE_RATE, SilentClip, cut_windows
from service.metrics import Stopwatch
from service.search.mix import Plan, plan_windows
from service.settings import Settings
from service.work.jobs import FingerprintMismatch

COARSER = (4, 2, 1)  # times the step of the shifts: what is tried, in this order
FEWEST_SHIFTS = 8  # fewer do not tell how fast the score varies
SMOOTH = 0.25  # a grid is fine enough if one twice as coarse would miss no more of the score than this share
DRAWN = 0.5  # peaks between two shifts are still drawn if the grid misses no more, but places of one stem compete
DRAWN_PROBES = 8  # windows halfway between two shifts that tell how much it misses
DRAWN_EACH = 8  # places of one stem that are looked at
DRAWN_OTHERS = (32, 8)  # places beside the best of each stem in each round; a round draws through the peaks before it
SCORED_FIRST = 40  # candidate stems scored exactly before it is asked whether more could matter
SCORED_MOST = 1024
REFINED_BEYOND = 5  # stems below the last hit that refinement may lift into the answer
PLACES_EACH = 64  # places of one stem that may be refined beside each other
OTHER_PLACES = 96  # of all stems, beside the best place of each: of similar ones the right one must be told
FEWEST_OTHERS = 24  # of them in the last rounds
CONFIRM_EACH = 4  # further windows of a longer mix for each place that they confirm
WORTHWHILE = 0.01  # a round that lifts the scores by less of them is the last, once the grid is fine enough
FINEST_S = 0.0015  # no grid is halved below this

Align = Literal["search", "grid"]
Complex64 = NDArray[np.complex64]


class Embedder(Protocol):
    """Whoever embeds a query: the queue has a worker do it; see `Queue.embed` for what is given and answered."""

    async def embed(
        self, fingerprint: str, waveform: NDArray[np.float32], starts: NDArray[np.int64], window: int, deadline_s: float
    ) -> Complex64: ...


@dataclass(frozen=True)
class _Mix:
    """A mix as the index is asked about it: its windows on the coarsest grid of shifts that tells their score.

    `smooth`: one peak between two shifts is drawn well, and no other can hide there. `drawn`: peaks are drawn well
    enough to tell which of them are worth a closer look; the finest grid may not even do that. `extent`: None where
    all of the mix is searched.
    """

    waveform: NDArray[np.float32]
    plan: Plan
    queries: QueryWindows
    smooth: bool
    drawn: bool
    extent: Extent | None


@dataclass(frozen=True)
class _Scored:
    """The candidates of a query, each at its best place on the grid of shifts."""

    found: dict[int, BestPlaces]  # by stem row
    stems: dict[int, StemEmbeddings]
    exact: bool

    def first(self, n: int) -> list[int]:
        """The rows of the n best, best first."""
        return sorted(self.found, key=lambda row: (-self.found[row].scores[row], row))[:n]

    def places(self, rows: Iterable[int]) -> dict[int, Place]:
        """Where these stems fit best, without what lies around."""
        return {row: self.found[row].place(row, curve=False) for row in rows}


@dataclass(frozen=True)
class Found:
    """What a search of the catalog came to. Stems are told by their rows, best first."""

    index: Index  # that answered
    plan: Plan
    places: dict[int, Place]  # of the hits
    spare: dict[int, Place]  # of the next ones, for hits that are deleted meanwhile
    others: dict[int, Place]  # of further stems to be ranked, on the grid of shifts
    exact: bool


class Finder:
    """Finds the stems that fit a waveform: all of a retrieval but what comes in and goes out."""

    def __init__(
        self, settings: Settings, catalog: Catalog, embedder: Embedder, live: LiveIndex, *, drawn: float = DRAWN
    ) -> None:
        """`drawn`: of what a grid of shifts may miss halfway; where it misses more, refinement halves it. 0: always."""
        self._settings = settings
        self._catalog = catalog
        self._embedder = embedder
        self._live = live
        self._drawn = drawn

    async def find(
        self,
        index: Index,
        waveform: NDArray[np.float32],
        wanted: StemFilter,
        limit: int,
        align: Align,
        watch: Stopwatch,
        *,
        ranked: int = 0,
    ) -> Found:
        """The stems that fit a mix, and where.

        Args:
            index: live when the question came.
            waveform: float32 (samples,), 16 kHz.
            wanted: the stems that may be answered.
            limit: hits wanted.
            align: whether the mix starts anywhere or on the windows' grid.
            watch: times the stages.
            ranked: stems to be scored exactly at least, where the index can name so many: for whoever wants to know the
                order below the hits.

        Raises:
            SilentClip: the mix, or the stretch of it that is looked at.
            IndexUnavailable, QueueError: not now.
        """
        plan = self._plan(waveform, align)
        with watch.stage("embed"):
            index, mix = await self._embed_mix(index, waveform, plan)
        scored = await self._search(index, mix, wanted, limit, ranked, watch)
        if align == "search":
            with watch.stage("refine"):
                ordered = await self._refine(index, mix, scored, limit)
        else:
            ordered = scored.places(scored.first(limit + REFINED_BEYOND))
        places = dict([*ordered.items()][:limit])
        spare = {row: place for row, place in ordered.items() if row not in places}
        others = scored.places(row for row in scored.first(ranked) if row not in places)
        return Found(index, mix.plan, places, spare, others, scored.exact)

    def _plan(self, waveform: NDArray[np.float32], align: Align) -> Plan:
        settings = self._settings
        longest = settings.query_s if align == "search" else settings.grid_query_s
        return plan_windows(
            waveform,
            window=_samples(settings.window_s),
            stride=_samples(settings.stride_s),
            step=_samples(settings.shift_s),
            longest=_samples(longest),
            search=align == "search",
        )

    async def _embed_mix(self, index: Index, waveform: NDArray[np.float32], plan: Plan) -> tuple[Index, _Mix]:
        """The mix's windows by the index's model, and that index.

        Another model may have gone live, and the workers hold the former one no more; then by that one.
        """
        try:
            return index, await self._embed_shifts(index, waveform, plan)
        except FingerprintMismatch:
            newest = await self._live.current()
            if newest.fingerprint == index.fingerprint:
                raise
            return newest, await self._embed_shifts(newest, waveform, plan)

    async def _embed_shifts(self, index: Index, waveform: NDArray[np.float32], plan: Plan) -> _Mix:
        """The mix's windows, at as few shifts as the model and this mix allow."""
        embedding = np.zeros((len(plan.starts), index.fold.embedding_dim), np.complex64)
        known = np.zeros(len(plan.starts), np.bool_)
        for times in COARSER:
            if times > 1 and plan.shifts < FEWEST_SHIFTS * times:
                continue
            coarse = plan.coarser(times)
            wanted = np.isin(plan.starts, coarse.starts)
            missing = np.flatnonzero(wanted & ~known)
            embedding[missing] = await self._embed(index.fingerprint, waveform, plan.starts[missing], plan.length)
            known |= wanted
            queries = _query_windows(coarse, embedding[wanted])
            smooth = False
            if coarse.shifts > 2:  # of fewer there is nothing to tell
                missed = await asyncio.to_thread(search.missed_by_half, index.fold, queries)
                smooth = missed is not None and missed <= SMOOTH
            if smooth:
                break
        if not len(queries.offset_s):
            raise SilentClip(peak_db=_peak_db(waveform[plan.begin : plan.end]), floor_db=-80.0)
        drawn = smooth or (coarse.shifts > 2 and await self._is_drawn(index, waveform, coarse, queries))
        extent = _extent(plan, len(waveform), self._settings)
        return _Mix(waveform, coarse, queries, smooth, drawn, extent)

    async def _is_drawn(self, index: Index, waveform: NDArray[np.float32], plan: Plan, queries: QueryWindows) -> bool:
        """Whether the score between two shifts is more or less what they draw, seen halfway between some of them."""
        before, after = search.neighbouring_shifts(queries, DRAWN_PROBES)
        if not len(before):
            return False
        starts = np.round((queries.offset_s[before] + queries.offset_s[after]) / 2 * SAMPLE_RATE).astype(np.int64)
        embedding = await self._embed(index.fingerprint, waveform, starts, plan.length)
        missed = await asyncio.to_thread(search.missed_between, index.fold, queries, before, after, embedding)
        return missed <= self._drawn

    async def _embed(
        self, fingerprint: str, waveform: NDArray[np.float32], starts: NDArray[np.int64], length: int
    ) -> Complex64:
        if len(starts) * length < int(starts.max() - starts.min()):  # windows far apart, of a long mix
            waveform, starts = cut_windows(waveform, starts, length).reshape(-1), np.arange(len(starts)) * length
        begin, end = int(starts.min()), int(starts.max()) + length
        return await self._embedder.embed(
            fingerprint, waveform[begin:end], starts - begin, length, self._settings.query_timeout_s
        )

    async def _search(
        self, index: Index, mix: _Mix, wanted: StemFilter, limit: int, ranked: int, watch: Stopwatch
    ) -> _Scored:
        """Candidates from the index, scored exactly; more of them until the answer is proven or it is enough."""
        queries = mix.queries
        with watch.stage("index"):
            allowed = await self._catalog.rows_allowed(wanted)
            found = await asyncio.to_thread(search.candidates, index, queries, max(limit, ranked), allowed)
        best: dict[int, BestPlaces] = {}
        stems: dict[int, StemEmbeddings] = {}
        enough = max(SCORED_FIRST, 4 * limit, ranked)
        while True:
            some = found.first(enough)
            with watch.stage("rescore"):
                unseen = [row for row in some.rows.tolist() if row not in stems]
                fresh = await self._catalog.embeddings_of(unseen, index.fingerprint)
                scored = await asyncio.to_thread(best_places, index.fold, queries, fresh, mix.extent)
                best |= dict.fromkeys(scored.scores, scored)
                stems |= fresh
            exact = search.proven((places.scores[row] for row, places in best.items()), some, limit)
            if exact or len(stems) >= SCORED_MOST or (found.complete and enough >= len(found.rows)):
                return _Scored(best, stems, exact)
            if enough >= len(found.rows):
                if found.k >= search.LARGEST_K:
                    return _Scored(best, stems, exact)
                with watch.stage("index"):
                    found = await asyncio.to_thread(search.candidates, index, queries, limit, allowed, k=2 * found.k)
            enough = min(4 * enough, SCORED_MOST)

    async def _refine(self, index: Index, mix: _Mix, scored: _Scored, limit: int) -> dict[int, Place]:
        """The best places on the fine grid, in order of their scores there: of the hits, and of a few more."""
        stems = {row: scored.stems[row] for row in scored.first(limit + REFINED_BEYOND)}
        spacing_s, fine_s = mix.plan.step / SAMPLE_RATE, self._settings.fine_shift_s
        each = 1 if mix.smooth else DRAWN_EACH if mix.drawn else PLACES_EACH
        found = await asyncio.to_thread(
            promising_places, index.fold, mix.queries, stems, each, apart_s=spacing_s, extent=mix.extent
        )
        every = [(row, place) for row, places in found.items() for place in places]
        if mix.drawn:
            places = every
            for others in (0, 0) if mix.smooth else DRAWN_OTHERS:
                places.sort(key=lambda found: (-found[1].peak, found[0]))
                places = _first_and_best(places, others, lambda place: place.peak)
                places = await self._on_finer_grid(index, mix, stems, places, spacing_s, fine_s)
        else:
            places = await self._by_halving(index, mix, stems, every)
        places.sort(key=lambda found: (-found[1].score, found[0]))
        if self._settings.confirm_windows and mix.extent is not None:
            places = await self._confirm(index, mix, mix.extent, stems, places)
            places.sort(key=lambda found: (-found[1].score, found[0]))
        return dict(_first_and_best(places, 0, lambda place: place.score))

    async def _by_halving(
        self, index: Index, mix: _Mix, stems: Mapping[int, StemEmbeddings], every: list[tuple[int, Place]]
    ) -> list[tuple[int, Place]]:
        """The places of a score that varies too fast for the grid of shifts.

        The grid is halved until it is fine enough. The first round takes the best place of each stem and the most
        promising others: on a coarse grid the right place may score below a similar one. Half of the others stay for
        the next round. While scores still rise, halving goes on below the step that the settings ask for.
        """
        places = _first_and_best(every, OTHER_PLACES, lambda place: place.promise)
        spacing_s, others, rise = mix.plan.step / SAMPLE_RATE, OTHER_PLACES, 1.0
        while spacing_s > self._settings.fine_shift_s * 1.01 or (rise > WORTHWHILE and spacing_s > FINEST_S):
            before = _mean_score(places)
            places = await self._on_finer_grid(index, mix, stems, places, spacing_s, spacing_s / 2)
            places = [(row, replace(place, curve=())) for row, place in places]  # from here on both sides are tried
            rise = (_mean_score(places) - before) / max(1e-9, abs(before))
            spacing_s, others = spacing_s / 2, max(FEWEST_OTHERS, others // 2)
            places.sort(key=lambda found: (-found[1].score, found[0]))
            places = _first_and_best(places, others, lambda place: place.score)
        return places

    async def _confirm(
        self,
        index: Index,
        mix: _Mix,
        extent: Extent,
        stems: Mapping[int, StemEmbeddings],
        places: list[tuple[int, Place]],
    ) -> list[tuple[int, Place]]:
        """The best place of each stem and as many others, each with what the rest of the mix says of it.

        Each place gets equally many further windows, as far as its stem has them: of chosen places, a mean over fewer
        windows is higher by chance.
        """
        places = _first_and_best(places, len(stems), lambda place: place.score)
        for each in range(CONFIRM_EACH, 0, -1):
            further = [search.further_pairs(place, stems[row], each, extent) for row, place in places]
            offsets_s = np.array(sorted({at_s for pairs in further for _, at_s in pairs}), np.float64)
            if len(offsets_s) <= self._settings.confirm_windows:
                break
        if not len(offsets_s):
            return places
        starts = np.round(offsets_s * SAMPLE_RATE).astype(np.int64)
        embedding = await self._embed(index.fingerprint, mix.waveform, starts, mix.plan.length)
        audible = _audible(embedding)
        none = np.zeros(np.count_nonzero(audible), np.int64)
        heard = QueryWindows(embedding[audible], offsets_s[audible], shift=none, window=none)

        def confirmed() -> list[tuple[int, Place]]:
            return [
                (row, search.with_pairs(index.fold, place, stems[row], pairs, heard))
                for (row, place), pairs in zip(places, further, strict=True)
            ]

        return await asyncio.to_thread(confirmed)

    async def _on_finer_grid(
        self,
        index: Index,
        mix: _Mix,
        stems: Mapping[int, StemEmbeddings],
        places: list[tuple[int, Place]],
        spacing_s: float,
        fine_s: float,
    ) -> list[tuple[int, Place]]:
        """The same places, each moved by half a spacing at most where that is better."""
        offsets_s = search.refine_offsets(
            [place for _, place in places],
            shift_s=spacing_s,
            fine_shift_s=fine_s,
            first_s=0.0,
            last_s=(len(mix.waveform) - mix.plan.length) / SAMPLE_RATE,
            drawn=mix.drawn,
        )
        if not len(offsets_s):
            return places
        starts = np.round(offsets_s * SAMPLE_RATE).astype(np.int64)
        embedding = await self._embed(index.fingerprint, mix.waveform, starts, mix.plan.length)
        audible = _audible(embedding)
        moved = await asyncio.to_thread(
            search.refined,
            index.fold,
            dict(enumerate(place for _, place in places)),
            {number: stems[row] for number, (row, _) in enumerate(places)},
            embedding[audible],
            offsets_s[audible],
            shift_s=spacing_s,
        )
        return [(row, moved[number]) for number, (row, _) in enumerate(places)]


def _query_windows(plan: Plan, embedding: Complex64) -> QueryWindows:
    """The plan's windows that are not silent."""
    audible = _audible(embedding)
    return QueryWindows(
        embedding=embedding[audible],
        offset_s=plan.starts[audible] / SAMPLE_RATE,
        shift=plan.shift[audible],
        window=plan.window[audible],
    )


def _extent(plan: Plan, samples: int, settings: Settings) -> Extent | None:
    """A stretch of a mix around the one that is searched; None where that is all of it."""
    if samples <= plan.end - plan.begin:
        return None
    longest = max(_samples(settings.grid_query_s), plan.end - plan.begin)
    first = max(0, min((plan.begin + plan.end - longest) // 2, samples - longest))
    last = min(samples, first + longest) - plan.length
    return Extent(first / SAMPLE_RATE, last / SAMPLE_RATE, settings.stride_s)


def _first_and_best(
    places: list[tuple[int, Place]], others: int, worth: Callable[[Place], float]
) -> list[tuple[int, Place]]:
    """The first place of each stem, and of all other places those that are worth most."""
    firsts: dict[int, Place] = {}
    rest: list[tuple[int, Place]] = []
    for row, place in places:
        if row in firsts:
            rest.append((row, place))
        else:
            firsts[row] = place
    return [*firsts.items(), *sorted(rest, key=lambda found: -worth(found[1]))[:others]]


def _mean_score(places: list[tuple[int, Place]]) -> float:
    return sum(place.score for _, place in places) / max(1, len(places))


def _samples(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE)


def _audible(embedding: Complex64) -> NDArray[np.bool_]:
    """Which rows are embeddings; a worker answers a silent window with zeros."""
    return np.asarray(np.abs(embedding).any(axis=1))


def _peak_db(waveform: NDArray[np.float32]) -> float:
    return float(20 * np.log10(max(1e-10, float(np.abs(waveform).max()))))
