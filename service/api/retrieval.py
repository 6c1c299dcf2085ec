"""POST /retrieve: the mix comes in, is searched with, and hits go out."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexer import Catalog, LiveIndex
from model import SAMPLE_RATE, Clip
from service.api.ingest import decode_upload
from service.api.schemas import (
    AlignOut,
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
from service.search.mix import sum_stems
from service.search.retrieval import Embedder, Finder
from service.settings import Settings
from service.work.blobs import Blobs
from service.work.models import Models, note_of
from service.work.uploads import Decoder


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


@dataclass
class Retrieval:
    """Answers queries from one index generation and one model each."""

    settings: Settings
    catalog: Catalog
    blobs: Blobs
    embedder: Embedder
    decoder: Decoder
    models: Models
    live: LiveIndex
    metrics: Metrics

    def __post_init__(self) -> None:
        self._finder = Finder(self.settings, self.catalog, self.embedder, self.live)

    async def answer(self, query: RetrieveIn) -> RetrieveOut:
        """The stems that fit, best first.

        Raises:
            AudioError: the mix cannot be used.
            NoMix: neither a file nor stems were sent, or both.
            StemNotFound, MixNotReady: a stem of the mix is unknown, or failed.
            IndexUnavailable, QueueError: not now.
        """
        if (query.file is None) == (not query.stem_id):
            raise NoMix
        watch = Stopwatch(self.metrics)
        index, (waveform, warnings) = await asyncio.gather(self.live.current(), self._mix(query, watch))
        found = await self._finder.find(index, waveform, query.as_filter(), query.limit, query.align, watch)
        stems = await self.catalog.stems_by_row(found.places)
        hits = [
            HitOut(
                rank=rank,
                score=place.score,
                start_s=place.start_s,
                stem=StemOut.of(stems[row]),
                windows=[WindowPair.model_validate(pair) for pair in sorted(place.pairs, key=lambda pair: pair.mix_s)],
            )
            for rank, (row, place) in enumerate(((r, p) for r, p in found.places.items() if r in stems), start=1)
        ]
        index, plan = found.index, found.plan
        model = self.models.of(index.fingerprint)
        return RetrieveOut(
            hits=hits,
            mix=MixOut(
                duration_s=len(waveform) / SAMPLE_RATE,
                searched_from_s=plan.begin / SAMPLE_RATE,
                searched_to_s=plan.end / SAMPLE_RATE,
                warnings=list(warnings),
            ),
            align=AlignOut(mode=query.align, shift_s=plan.step / SAMPLE_RATE, shifts=plan.shifts, range_s=plan.range_s),
            exact=found.exact,
            index=IndexOut.model_validate(index),
            model=ModelOut(fingerprint=index.fingerprint, trained=model.trained, note=note_of(model)),
            timing_ms=watch.done(),
        )

    async def _mix(self, query: RetrieveIn, watch: Stopwatch) -> tuple[NDArray[np.float32], tuple[str, ...]]:
        with watch.stage("decode"):
            if query.file is not None:
                clip = await decode_upload(self.decoder, query.file)
                return clip.waveform, clip.warnings
            clips = await asyncio.gather(*(self._stem_clip(stem_id) for stem_id in query.stem_id))
            return sum_stems([clip.waveform for clip in clips]), tuple(w for clip in clips for w in clip.warnings)

    async def _stem_clip(self, stem_id: str) -> Clip:
        stem = await self.catalog.stem(stem_id)
        if stem.state == "failed":
            raise MixNotReady(stem_id)
        async with AsyncExitStack() as stack:
            path = await stack.enter_async_context(self.blobs.fetch(stem.sha256))
            return await self.decoder.decode(path)
