"""A waveform in, the stems that fit it out: hear its beats, embed it at every place and in every key, search, score."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from indexer import (
    BestPlaces,
    Catalog,
    Index,
    LiveIndex,
    Place,
    QueryWindows,
    StemEmbeddings,
    StemFilter,
    StemMusic,
    best_places,
    search,
)
from model.audio import SAMPLE_RATE, SilentClip, Windows, tonic_of
from model.audio.grid import Grid
from service.metrics import Stopwatch
from service.search.copies import Groups, grouped
from service.search.costs import cost_of, harmony_costs, length_costs, trait_weights
from service.search.mix import Align, HeardMix, Plan, hear_mix, only, plan_beats, plan_windows
from service.search.stretching import octaves_of, same_tempi, speed_of
from service.settings import Settings
from service.work.jobs import FingerprintMismatch

SCORED_FIRST = 40  # candidate stems scored exactly before it is asked whether more could matter
SCORED_MOST = 1024
UNPROVEN = 16  # candidates scored for each hit where an approximate index can prove nothing: half as many find the same
SPARE = 5  # stems below the last hit, for hits that are deleted meanwhile

Complex64 = NDArray[np.complex64]


class Embedder(Protocol):
    """Whoever embeds a query: the queue has a worker do it; see `Queue.embed` for what is given and answered."""

    async def embed(
        self, fingerprint: str, waveform: NDArray[np.float32], laid: Windows, deadline_s: float
    ) -> Complex64: ...


@dataclass(frozen=True)
class Wish:
    """What a search is asked beside the stems that it may answer.

    `tempo_bpm` and `key`: of the mix; None: heard. `max_stretch`: how far the tempi of stems may lie from the mix's, as
    a share of the faster one. `max_transpose`: semitones, either way. `group_copies`: of stems that are the same audio
    one is a hit, and none that is the same as one of `mixed`, the rows of stems that make up the mix.
    """

    limit: int = 10
    align: Align = "beats"
    tempo_bpm: float | None = None
    key: str | None = None
    max_stretch: float = 0.12
    max_transpose: int = 2
    group_copies: bool = False
    mixed: tuple[int, ...] = ()
    ranked: int = 0
    """Stems to be scored exactly at least, for whoever wants to know the order below the hits."""


@dataclass(frozen=True, eq=False)
class Asked:
    """A mix as the stems of one time base are asked about it: with a grid those in beat time, else those in clock time.

    `queries` hold its windows, each in a `key`: semitones that stems are to be moved up. `tonic`: of the mix's key
    where somebody said it, see `harmony.tonic_of`; `chroma`: of the mix, see `harmony.chroma_of`.
    """

    plan: Plan
    queries: QueryWindows
    key: NDArray[np.int64]  # (q,)
    allowed: NDArray[np.int64] | None
    tonic: int | None = None
    chroma: NDArray[np.float32] | None = None

    def may_move(self, music: StemMusic, key: int) -> bool:
        """Whether a stem may be played so many semitones higher.

        What plays no notes stays. Where the mix's key and the stem's were both said, not heard, it moves into that key
        or its relative, or, where these are too far, not at all.
        """
        if not music.pitched:
            return key == 0
        tonic = None if music.sources.get("key", "heard") == "heard" else tonic_of(music.key or "")
        if self.tonic is None or tonic is None:
            return True
        right = (self.tonic - tonic + 6) % 12 - 6
        return key == (right if right in self.key else 0)

    def cost(self, music: StemMusic, key: int) -> float | None:
        """Of playing a stem at the mix's tempo and in a key; None where either has no beats."""
        if self.plan.grid is None or music.beats_s is None:
            return None
        speed = speed_of(self.plan.grid, music)
        return cost_of(speed, key) if 0.7 < speed < 1.43 else None

    @property
    def as_recorded(self) -> QueryWindows:
        """Of its windows those in the mix's own key."""
        return self.queries.some(self.key == 0)

    @property
    def sketched(self) -> QueryWindows:
        """In clock time every other delay: enough for candidates that are then scored at all of them."""
        return self.queries if self.plan.grid is not None else self.queries.some(self.queries.shift % 2 == 0)


@dataclass(frozen=True, eq=False)
class Scored:
    """A candidate at its best place and in its best key."""

    score: float
    row: int
    asked: Asked
    key: int
    found: BestPlaces
    music: StemMusic | None
    length_cost: float

    @property
    def place(self) -> Place:
        grid = self.asked.plan.grid
        place = self.found.place(self.row, between=grid is None)
        if grid is not None:
            assert self.music is not None
            place = _in_seconds(place, grid, self.music, self.key)
        chroma = None if self.music is None else self.music.chroma
        harmony_cost = float(harmony_costs(self.asked.chroma, [chroma], [self.key])[0, 0])
        return replace(place, score=self.score, harmony_cost=harmony_cost, length_cost=self.length_cost)


@dataclass(frozen=True)
class Found:
    """What a search of the catalog came to. Stems are told by their rows, best first."""

    index: Index  # that answered
    plan: Plan
    scored: list[Scored]  # the hits, SPARE further ones, and what else was to be ranked
    copies: dict[int, list[int]]  # of them, where they were grouped
    exact: bool

    @cached_property
    def places(self) -> dict[int, Place]:
        """Of each of them, by row."""
        return {one.row: one.place for one in self.scored}


class Finder:
    """Finds the stems that fit a waveform: all of a retrieval but what comes in and goes out."""

    def __init__(self, settings: Settings, catalog: Catalog, embedder: Embedder, live: LiveIndex) -> None:
        self._settings = settings
        self._catalog = catalog
        self._embedder = embedder
        self._live = live

    @staticmethod
    async def hear(waveform: NDArray[np.float32], wish: Wish, watch: Stopwatch) -> HeardMix:
        """What the wish says of a mix, else what is heard in it."""
        with watch.stage("hear"):
            return await asyncio.to_thread(hear_mix, waveform, wish.tempo_bpm, wish.key)

    async def find(
        self,
        index: Index,
        waveform: NDArray[np.float32],
        wanted: StemFilter,
        wish: Wish,
        watch: Stopwatch,
        heard: HeardMix | None = None,
    ) -> Found:
        """The stems that fit a mix, where, and how they are to be played.

        Where the mix has a tempo, stems with a beat grid are compared in beat time, in keys nearby. As recorded all are
        compared that may have its tempo, or none. The better of both counts.

        Args:
            index: live when the question came.
            waveform: float32 (samples,), 16 kHz.
            wanted: the stems that may be answered.
            wish: what else is asked.
            watch: times the stages.
            heard: of the mix before stems were laid into it; None: it is listened to.

        Raises:
            SilentClip: the mix, or the stretch of it that is looked at.
            IndexUnavailable, QueueError: not now.
        """
        heard = heard or await self.hear(waveform, wish, watch)
        index, asked = await self.ask(index, waveform, wanted, wish, heard, watch)
        looked_at = wish.limit
        while True:
            best, searched = await self._ranked(index, asked, replace(wish, limit=looked_at), watch)
            groups = Groups({row: [] for row in best})
            if wish.group_copies:
                with watch.stage("group"):
                    enough = max(wish.limit + SPARE, wish.ranked)
                    groups = await grouped(self._catalog, index.fingerprint, [*best], enough, wish.mixed)
            ordered = [best[row] for row in groups.copies]
            scores = [one.score for one in ordered]
            exact = all(search.proven(scores, some, wish.limit) for some in searched)
            # Copies may have taken the places of stems that were not looked at.
            missed = len(ordered) < wish.limit or groups.looked_at.get(ordered[wish.limit - 1].row, 0) > looked_at
            if exact or not missed or len(best) < looked_at or looked_at >= SCORED_MOST:
                break
            looked_at = min(4 * looked_at, SCORED_MOST)
        scored = await self._on_beats(index, asked, ordered[: max(wish.limit + SPARE, wish.ranked)])
        return Found(index, asked[0].plan, scored, groups.copies, exact)

    async def ask(
        self,
        index: Index,
        waveform: NDArray[np.float32],
        wanted: StemFilter,
        wish: Wish,
        heard: HeardMix,
        watch: Stopwatch,
    ) -> tuple[Index, list[Asked]]:
        """A mix as the stems of each time base are asked about it, and the index whose model embedded it.

        Args, Raises: as for `find`.
        """
        plans = await self._plans(waveform, wanted, wish, heard)
        with watch.stage("embed"):
            try:
                return index, [await self._embed(index, waveform, heard, *plan) for plan in plans]
            except FingerprintMismatch:  # another model may have gone live, and the workers hold the former one no more
                newest = await self._live.current()
                if newest.fingerprint == index.fingerprint:
                    raise
                return newest, [await self._embed(newest, waveform, heard, *plan) for plan in plans]

    async def _ranked(
        self, index: Index, asked: list[Asked], wish: Wish, watch: Stopwatch
    ) -> tuple[dict[int, Scored], list[search.Candidates]]:
        """Every stem that was scored, by row, best first; and the candidates of each time base that they were."""
        scored: list[Scored] = []
        searched: list[search.Candidates] = []
        for each in asked:
            some, candidates = await self._search(index, each, wish, watch)
            scored += some
            searched.append(candidates)
        best: dict[int, Scored] = {}
        for one in sorted(scored, key=lambda one: (-one.score, one.row)):
            best.setdefault(one.row, one)
        return best, searched

    async def _on_beats(self, index: Index, asked: list[Asked], found: list[Scored]) -> list[Scored]:
        """The same; of stems in the mix's own tempo that the clock found, the place is the best on their beats.

        The score tells which stem, and tells repeats and halves of a beat badly apart; the beats tell where.
        """
        rows = [one.row for one in found if one.asked.plan.grid is None]
        in_beats = next((each for each in asked if each.plan.grid is not None), None)
        if in_beats is None or not rows:
            return found
        music = await self._catalog.music_of(rows)
        alike = [row for row in rows if row in music and in_beats.cost(music[row], 0) == 0]
        stems = await self._catalog.embeddings_of(alike, index.fingerprint)
        by_beats = {row: timed(stem, in_beats=True) for row, stem in stems.items()}
        places = await asyncio.to_thread(best_places, index.fold, in_beats.as_recorded, by_beats)
        return [
            replace(one, asked=in_beats, key=0, found=places, music=music[one.row])
            if one.asked.plan.grid is None and one.row in places.scores
            else one
            for one in found
        ]

    async def _plans(
        self, waveform: NDArray[np.float32], wanted: StemFilter, wish: Wish, heard: HeardMix
    ) -> list[tuple[Plan, NDArray[np.int64] | None]]:
        """How the mix is laid for each time base that stems are in, and the stems that may be answered in it."""
        settings = self._settings
        plans: list[tuple[Plan, NDArray[np.int64] | None]] = []
        across = [each for grid in heard.grids for each in octaves_of(grid, wish.max_stretch) if wish.align == "beats"]
        for grid, tempi in across:
            plan = plan_beats(waveform, grid)
            near = replace(wanted, in_beat_time=True, beat_bpm=tempi)
            allowed = await self._catalog.rows_allowed(near)
            if plan is not None and (allowed is None or len(allowed)):
                plans.append((plan.in_keys(wish.max_transpose), allowed))
        longest = _samples(settings.grid_query_s) if wish.align == "grid" else None
        clock = plan_windows(
            waveform[:longest],
            window=_samples(settings.window_s),
            stride=_samples(settings.stride_s),
            search=wish.align != "grid",
        )
        if plans and heard.sure.get("tempo_bpm", True):
            # As recorded, no stem of another tempo locks in.
            wanted = replace(wanted, as_recorded_bpm=same_tempi(heard.grids[0].tempo_bpm))
        allowed = await self._catalog.rows_allowed(wanted)
        return plans if plans and allowed is not None and not len(allowed) else [*plans, (clock, allowed)]

    async def _embed(
        self,
        index: Index,
        waveform: NDArray[np.float32],
        heard: HeardMix,
        plan: Plan,
        allowed: NDArray[np.int64] | None,
    ) -> Asked:
        laid = only(waveform, plan.laid)
        embedding = await self._embedder.embed(index.fingerprint, *laid, self._settings.query_timeout_s)
        queries, key = plan.queries(waveform, embedding)
        if not len(key):
            raise SilentClip(peak_db=_peak_db(waveform[plan.begin : plan.end]), floor_db=-80.0)
        queries = replace(queries, trait_weights=trait_weights(heard.chroma, key.tolist()))
        tonic = tonic_of(heard.key or "") if heard.sources.get("key") == "said" else None
        return Asked(plan, queries, key, allowed, tonic, heard.chroma)

    async def _search(
        self, index: Index, asked: Asked, wish: Wish, watch: Stopwatch
    ) -> tuple[list[Scored], search.Candidates]:
        """Candidates from the index, scored exactly; more of them until the answer is proven or it is enough."""
        wanted = max(wish.limit, wish.ranked)
        with watch.stage("index"):
            queries = asked.sketched if index.approximate else asked.queries
            found = await asyncio.to_thread(search.candidates, index, queries, wanted, asked.allowed)
        best: dict[int, Scored] = {}
        seen: set[int] = set()
        a_hit = UNPROVEN if index.approximate else 4
        enough = max(SCORED_FIRST, min(a_hit * wish.limit, SCORED_MOST), wish.ranked)
        while True:
            some = found.first(enough)
            with watch.stage("rescore"):
                unseen = [row for row in some.rows.tolist() if row not in seen]
                stems = await self._catalog.embeddings_of(unseen, index.fingerprint)
                music = await self._catalog.music_of(unseen)
                best |= await asyncio.to_thread(score_stems, index, asked, stems, music)
                seen.update(unseen)
            exact = search.proven((one.score for one in best.values()), some, wish.limit)
            if exact or index.approximate or len(seen) >= SCORED_MOST or (found.complete and enough >= len(found.rows)):
                return [*best.values()], some
            if enough >= len(found.rows):
                if found.k >= search.LARGEST_K:
                    return [*best.values()], some
                with watch.stage("index"):
                    found = await asyncio.to_thread(
                        search.candidates, index, asked.queries, wish.limit, asked.allowed, k=2 * found.k
                    )
            enough = min(4 * enough, SCORED_MOST)


def score_stems(
    index: Index, asked: Asked, stems: Mapping[int, StemEmbeddings], music: Mapping[int, StemMusic]
) -> dict[int, Scored]:
    """Each stem at its best place and in its best key, less all that is taken off: see costs.py.

    Args:
        index: its model scores.
        asked: the mix, in one time base.
        stems, music: by row. A stem that has no window in that time base is left out.
    """
    grid = asked.plan.grid
    in_beats = grid is not None
    every = {row: timed(stem, in_beats=in_beats) for row, stem in stems.items() if row in music or not in_beats}
    in_time = {row: stem for row, stem in every.items() if len(stem.starts_s)}
    shifts, at = np.unique(asked.queries.shift, return_index=True)
    key = asked.key[at]  # of each shift
    keys, at = np.unique(key, return_inverse=True)
    chroma = [music[row].chroma if row in music else None for row in in_time]
    length = length_costs([len(stem.starts_s) for stem in in_time.values()])
    costs = length[:, None] + harmony_costs(asked.chroma, chroma, keys.tolist())  # (stems, keys)
    if grid is not None:
        for row, cost in zip(in_time, costs, strict=True):
            speed = speed_of(grid, music[row])
            may_move = (asked.may_move(music[row], semitones) for semitones in keys.tolist())
            cost += [cost_of(speed, to) if may else np.inf for to, may in zip(keys.tolist(), may_move, strict=True)]
    found = best_places(index.fold, asked.queries, in_time, costs[:, at])
    lost = dict(zip(in_time, length.tolist(), strict=True))
    return {
        row: Scored(score, row, asked, int(key[shifts == found.shifts[row]][0]), found, music.get(row), lost[row])
        for row, score in found.scores.items()
    }


def timed(stem: StemEmbeddings, *, in_beats: bool) -> StemEmbeddings:
    """A stem's windows in one time base; with `in_beats`, beats stand where seconds do."""
    some = stem.some(np.isfinite(stem.beats) == in_beats)
    return replace(some, starts_s=some.beats) if in_beats else some


def _in_seconds(place: Place, grid: Grid, music: StemMusic, key: int) -> Place:
    """A place that is told in beats, in seconds of the mix and of the stem's own audio."""
    assert music.beats_s is not None, "it was found in beat time"
    stem = Grid(music.beats_s)
    mix_s = grid.seconds_at(np.array([pair.mix_s for pair in place.pairs]))
    stem_s = stem.seconds_at(np.array([pair.stem_s for pair in place.pairs]))
    pairs = [
        pair._replace(mix_s=round(float(at), 6), stem_s=round(float(there), 6))
        for pair, at, there in zip(place.pairs, mix_s, stem_s, strict=True)
    ]
    begins = place.start_s - float(grid.beats_s[0]) * grid.tempo_bpm / 60  # the stem's beat at the mix's second 0
    speed = speed_of(grid, music)
    return Place(
        score=place.score,
        start_s=round(float(stem.seconds_at(np.array(begins))), 6),
        pairs=tuple(pairs),
        speed=speed,
        transpose=key,
        cost=cost_of(speed, key),
    )


def _samples(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE)


def _peak_db(waveform: NDArray[np.float32]) -> float:
    return float(20 * np.log10(max(1e-10, float(np.abs(waveform).max()))))
