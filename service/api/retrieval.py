"""POST /retrieve: the mix comes in, is searched with, and hits go out."""

import asyncio
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from indexer import Catalog, LiveIndex, Stem
from model.audio import SAMPLE_RATE, Windows
from service.api.ingest import for_decoder
from service.api.schemas import (
    AlignOut,
    CopyOut,
    HitOut,
    IndexOut,
    MixOut,
    ModelOut,
    RetrieveIn,
    RetrieveOut,
    StemOut,
    WindowPair,
)
from service.metrics import Metrics, Stopwatch
from service.search.retrieval import Finder
from service.settings import Settings
from service.work.blobs import Blobs
from service.work.models import Models, note_of
from service.work.queue import Queue, Share
from service.work.streams import QueueFull
from service.work.turns import Budget, Turns
from service.work.uploads import Decoder

SEARCHES = 3  # at most, for as many hits as were asked for while stems are deleted
FEWEST_SEARCHES = 2  # that go on at a time


class NoMix(Exception):
    """A query has neither a file nor stem ids, or both."""

    public = "Send either `file`, or `stem_id` once or more."

    def __init__(self) -> None:
        super().__init__("Send either `file`, or `stem_id` once or more.")


class MixNotReady(Exception):
    """A mix is made of stems of which one failed."""

    public = "The stem {stem_id} of the mix could not be used itself."

    def __init__(self, stem_id: str) -> None:
        super().__init__(f"The stem {stem_id} of the mix could not be used itself.")
        self.stem_id = stem_id


class QueryTimeout(Exception):
    """A query waited and worked for longer than it may."""

    public = "The search took longer than {seconds:g} s."

    def __init__(self, seconds: float) -> None:
        super().__init__(f"a query took longer than {seconds:g} s")
        self.seconds = seconds


@dataclass(frozen=True)
class _Shared:
    """The queue, as one caller asks it."""

    queue: Queue
    share: Share

    async def embed(
        self, fingerprint: str, waveform: NDArray[np.float32], laid: Windows, deadline_s: float
    ) -> NDArray[np.complex64]:
        return await self.queue.embed(fingerprint, waveform, laid, deadline_s, self.share)


@dataclass
class Retrieval:
    """Answers queries from one index generation and one model each."""

    settings: Settings
    catalog: Catalog
    blobs: Blobs
    queue: Queue
    decoder: Decoder
    budget: Budget
    models: Models
    live: LiveIndex
    metrics: Metrics

    def __post_init__(self) -> None:
        self.turns = Turns(FEWEST_SEARCHES, self.settings.max_queued_queries, self._full)

    async def answer(self, query: RetrieveIn, who: str) -> RetrieveOut:
        """The stems that fit, best first, for a caller `who` takes turns with others.

        Raises:
            AudioError: the mix cannot be used.
            NoMix: neither a file nor stems were sent, or both.
            StemNotFound, MixNotReady: a stem of the mix is unknown, or failed.
            QueryTimeout: it waited and worked for longer than the settings allow.
            IndexUnavailable, QueueError: not now.
        """
        if (query.file is None) == (not query.stem_id):
            raise NoMix
        watch = Stopwatch(self.metrics)
        try:
            async with asyncio.timeout(self.settings.query_timeout_s) as deadline, self.turns.turn(who):
                return await self._answer(query, who, watch)
        except TimeoutError:
            if deadline.expired():
                raise QueryTimeout(self.settings.query_timeout_s) from None
            raise

    def size_turns(self, batch_limits: Iterable[float]) -> None:
        """Let as many searches go on at a time as keep workers of these batch limits busy."""
        self.turns.resize(max(FEWEST_SEARCHES, sum(2 * max(1, round(limit) // 16) for limit in batch_limits)))

    async def _answer(self, query: RetrieveIn, who: str, watch: Stopwatch) -> RetrieveOut:
        finder = Finder(self.settings, self.catalog, _Shared(self.queue, Share(who, self.turns.share)), self.live)
        index, (waveform, warnings, mixed) = await asyncio.gather(self.live.current(), self._mix(query, watch))
        for _ in range(SEARCHES):
            found = await finder.find(index, waveform, query.as_filter(), query.as_wish(mixed), watch)
            ranked = found.places | found.spare
            stems = await self.catalog.stems_by_row([*ranked, *chain(*(found.copies[row] for row in ranked))])
            places = {row: place for row, place in ranked.items() if row in stems}
            if len(places) >= query.limit or len(places) == len(ranked):
                break
            index = await self.live.current()  # more stems were deleted meanwhile than were to spare
        hits = [
            HitOut(
                rank=rank,
                score=place.score,
                cost=place.cost,
                speed=place.speed,
                transpose=place.transpose,
                start_s=place.start_s,
                stem=StemOut.of(stems[row], self.settings.root_path),
                copies=[
                    CopyOut.of(stems[copy], self.settings.root_path) for copy in found.copies[row] if copy in stems
                ],
                windows=[WindowPair.model_validate(pair) for pair in sorted(place.pairs, key=lambda pair: pair.mix_s)],
            )
            for rank, (row, place) in enumerate([*places.items()][: query.limit], start=1)
        ]
        index, plan, heard = found.index, found.plan, found.heard
        grid = heard.grids[0] if heard.grids else None
        model = self.models.of(index.fingerprint)
        return RetrieveOut(
            hits=hits,
            mix=MixOut(
                duration_s=len(waveform) / SAMPLE_RATE,
                tempo_bpm=None if grid is None else grid.tempo_bpm,
                first_beat_s=None if grid is None else float(grid.beats_s[0]),
                key=heard.key,
                sources=heard.sources,
                sure=heard.sure,
                searched_from_s=plan.begin / SAMPLE_RATE,
                searched_to_s=plan.end / SAMPLE_RATE,
                warnings=list(warnings),
            ),
            align=AlignOut(
                mode="search" if query.align == "beats" and plan.grid is None else query.align,
                shift_s=plan.step / SAMPLE_RATE,
                shifts=plan.shifts,
                range_s=plan.range_s,
            ),
            exact=found.exact,
            index=IndexOut.model_validate(index),
            model=ModelOut(fingerprint=index.fingerprint, trained=model.trained, note=note_of(model)),
            timing_ms=watch.done(),
        )

    async def _mix(
        self, query: RetrieveIn, watch: Stopwatch
    ) -> tuple[NDArray[np.float32], tuple[str, ...], tuple[int, ...]]:
        """The mix, warnings of its files, and the rows of the stems that make it up."""
        with watch.stage("decode"):
            if query.file is not None:
                async with for_decoder(query.file) as audio:
                    clip = await self.decoder.decode(audio, budget=self.budget)
                return clip.waveform, clip.warnings, ()
            stems = [await self.catalog.stem(stem_id) for stem_id in dict.fromkeys(query.stem_id)]
            for stem in stems:
                if stem.state == "failed":
                    raise MixNotReady(stem.id)
            return *(await self._sum(stems)), tuple(stem.row for stem in stems)

    async def _sum(self, stems: Sequence[Stem]) -> tuple[NDArray[np.float32], tuple[str, ...]]:
        """The mix of some stems that start together, as long as the longest; the score ignores its loudness.

        However many there are, two waveforms of that length are held.
        """
        longest = math.ceil(max(stem.duration_s for stem in stems) * SAMPLE_RATE) + 1
        length = 0
        warnings: list[str] = []
        taken = await self.budget.take(2 * longest)
        mix = np.zeros(longest, np.float32)
        self.budget.until_forgotten(mix, taken // 2)
        try:
            for stem in stems:
                async with self.blobs.fetch(stem.sha256) as path:
                    clip = await self.decoder.decode(path)
                mix[: len(clip.waveform)] += clip.waveform
                length = max(length, len(clip.waveform))
                warnings += clip.warnings
        finally:
            self.budget.give_back(taken - taken // 2)
        return mix[:length], tuple(warnings)

    def _full(self, waiting: int) -> QueueFull:
        return QueueFull("queries", waiting, self.settings.max_queued_queries, retry_after_s=1.0)
