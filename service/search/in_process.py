"""A catalog and a search of it in this process and in a folder that is thrown away: no HTTP, no queue, no decoder."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from indexer import (
    Catalog,
    ClipFacts,
    FolderStore,
    HermitianFold,
    Index,
    LiveIndex,
    Place,
    StemFilter,
    StemMetadata,
    Upload,
)
from model.audio import SAMPLE_RATE, cut_windows, is_silent, window_starts
from model.evaluation.retimed import RetimedBank
from model.training.stems import StemBank
from service.metrics import Metrics, Stopwatch
from service.search.retrieval import Finder
from service.settings import Settings
from service.work.device import Device
from service.work.models import Models, note_of

Waveform = NDArray[np.float32]


class DirectEmbedder:
    """A worker's device without a queue before it; an `Embedder` for `Finder`. It counts the windows of queries."""

    def __init__(self, settings: Settings) -> None:
        self._device = Device(settings)
        self.embedded = 0

    async def embed(
        self, fingerprint: str, waveform: Waveform, starts: NDArray[np.int64], window: int, deadline_s: float
    ) -> NDArray[np.complex64]:
        """As a worker answers; nobody waits for it, so the deadline is of no account."""
        self.embedded += len(starts)
        embedding = np.zeros((len(starts), self._device.require(fingerprint)), np.complex64)
        audible, embedded = await self.audible(fingerprint, waveform, starts, window)
        embedding[audible] = embedded
        return embedding

    async def audible(
        self, fingerprint: str, waveform: Waveform, starts: NDArray[np.int64], window: int
    ) -> tuple[NDArray[np.int64], NDArray[np.complex64]]:
        """Which windows are not silent, int64 (m,), and their embeddings, complex64 (m, D)."""
        length = min(window, len(waveform))
        sounding = [at for at, start in enumerate(starts) if not is_silent(waveform[start : start + length])]
        audible = np.array(sounding, np.int64)
        if not sounding:
            return audible, np.empty((0, self._device.require(fingerprint)), np.complex64)
        windows = cut_windows(waveform, starts[audible], length)
        return audible, await asyncio.to_thread(self._device.embed, fingerprint, windows)


class SearchedCatalog:
    """The parts of the service that a search needs, in a folder of their own."""

    def __init__(self, settings: Settings, catalog: Catalog, models: Models) -> None:
        self._settings = settings
        self._catalog = catalog
        self._models = models
        self._fingerprint = models.configured_fingerprint
        self.embedder = DirectEmbedder(settings)
        store = FolderStore(settings.index_folder, settings.index_limits)
        self._live = LiveIndex(catalog, store, self._fold, window_s=settings.window_s, stride_s=settings.stride_s)
        self.finder = Finder(settings, catalog, self.embedder, self._live)
        self._metrics = Metrics()
        self.stems = 0
        """How many are searched."""

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings) -> AsyncIterator[SearchedCatalog]:
        models = Models(settings)
        catalog = await Catalog.open(settings.resolved_database_url)
        try:
            generation = await catalog.new_generation(models.configured_fingerprint)
            await catalog.go_live(generation, configured=models.configured_fingerprint)
            yield cls(settings, catalog, models)
        finally:
            await catalog.close()

    @property
    def notes(self) -> Mapping[str, str]:
        """Of the model's checkpoint."""
        return self._models.of(self._fingerprint).notes

    @property
    def model(self) -> dict[str, Any]:
        """What a reader of the figures must know of the model."""
        model = self._models.of(self._fingerprint)
        return {"fingerprint": self._fingerprint, "trained": model.trained, "note": note_of(model)}

    async def add(self, bank: StemBank | RetimedBank, track: int) -> tuple[int, ...]:
        """Put a track's stems in, embedded as a worker embeds them; the row of each, one for the same audio."""
        banked, waveforms = bank.tracks[track], bank.waveforms(track)
        facts = ClipFacts("wav", banked.samples / SAMPLE_RATE, SAMPLE_RATE, channels=1)
        uploads = [
            Upload(hashlib.sha256(waveform.tobytes()).hexdigest(), name, StemMetadata(track=banked.name), facts)
            for name, waveform in zip(banked.stems, waveforms, strict=True)
        ]
        job, waiting = await self._catalog.add(uploads)
        window, stride = (round(s * SAMPLE_RATE) for s in (self._settings.window_s, self._settings.stride_s))
        starts = window_starts(banked.samples, window, stride)
        rows: list[int] = []
        for item, waveform in zip(job.items, waveforms, strict=True):
            assert item.stem_id is not None, "nothing was rejected"
            stem = await self._catalog.stem(item.stem_id)
            rows.append(stem.row)
            if item.stem_id in waiting:
                waiting.remove(item.stem_id)
                audible, embedding = await self.embedder.audible(self._fingerprint, waveform, starts, window)
                await self._catalog.store_embeddings(
                    stem.row, self._fingerprint, audible, starts[audible] / SAMPLE_RATE, embedding
                )
        return tuple(rows)

    def finder_that(self, *, drawn: float) -> Finder:
        """Another finder over the same catalog, to be put in place of `finder`; see `Finder`."""
        return Finder(self._settings, self._catalog, self.embedder, self._live, drawn=drawn)

    async def go_live(self) -> Index:
        """Build the index of what has been put in."""
        alias = await self._catalog.alias()
        assert alias is not None
        await self._live.build(alias.generation, self._fingerprint, await self._fold(self._fingerprint))
        await self._live.open()
        index = await self._live.current()
        self.stems = index.stems
        return index

    async def find(
        self, mix: Waveform, align: Literal["search", "grid"], limit: int
    ) -> tuple[dict[int, Place], dict[str, float]]:
        """Every stem that the search can rank, best first, by its row; and the milliseconds of each stage."""
        watch = Stopwatch(self._metrics)
        found = await self.finder.find(
            await self._live.current(), mix, StemFilter(), limit, align, watch, ranked=self.stems
        )
        return found.places | found.others, watch.done()

    async def _fold(self, fingerprint: str) -> HermitianFold:
        return await asyncio.to_thread(self._models.fold, fingerprint)
