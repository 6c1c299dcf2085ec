"""A catalog and a search of it in this process and in a folder that is thrown away: no HTTP, no queue, no decoder."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from model.audio import SAMPLE_RATE, Windows
from model.audio.analysis import analyse
from model.audio.hearing import Hearing
from model.audio.said import Said
from model.evaluation.retimed import RetimedBank, key_of
from model.training.stems import StemBank
from service.metrics import Metrics, Stopwatch
from service.search.band import Band, Play
from service.search.remembered import Remembering
from service.search.retrieval import Asked, Finder, Scored, Wish
from service.settings import Settings
from service.work.batches import cut, loud
from service.work.device import Device
from service.work.laying import lay
from service.work.models import Models, note_of

Waveform = NDArray[np.float32]


class DirectEmbedder:
    """A worker's device without a queue before it; an `Embedder` for `Finder`."""

    def __init__(self, settings: Settings) -> None:
        self._device = Device(settings)

    async def embed(
        self, fingerprint: str, waveform: Waveform, laid: Windows, deadline_s: float
    ) -> NDArray[np.complex64]:
        """As a worker answers; nobody waits for it, so the deadline is of no account."""
        audible = loud(waveform, [laid])
        embedding = self._device.silence(fingerprint, laid)
        if len(audible):
            windows = cut(waveform, laid[audible])
            embedding[audible] = await asyncio.to_thread(self._device.embed, fingerprint, windows)
        return embedding

    async def stem(
        self, fingerprint: str, waveform: Waveform, parts: tuple[Windows, ...]
    ) -> tuple[NDArray[np.int64], NDArray[np.complex64]]:
        """Which windows of a stem are not silent, int64 (m,), and their embeddings, complex64 (m, D)."""
        every = np.concatenate([await self.embed(fingerprint, waveform, part, 0.0) for part in parts])
        audible = np.flatnonzero(np.abs(every).any(axis=1)).astype(np.int64)
        return audible, every[audible]


class SearchedCatalog:
    """The parts of the service that a search needs, in a folder of their own."""

    def __init__(self, settings: Settings, catalog: Catalog, models: Models) -> None:
        self.settings = settings
        self.catalog = catalog
        self._models = models
        self._fingerprint = models.configured_fingerprint
        self._embedder = DirectEmbedder(settings)
        store = FolderStore(settings.index_folder, settings.index_limits)
        self._live = LiveIndex(catalog, store, self._fold, window_s=settings.window_s, stride_s=settings.stride_s)
        self.finder = Finder(settings, catalog, self._embedder, self._live)
        self._metrics = Metrics()
        self.stems = 0
        """How many are searched."""
        self._ids: dict[int, str] = {}  # by row

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

    @classmethod
    @asynccontextmanager
    async def thrown_away(cls, checkpoint: Path | None, **chosen: Any) -> AsyncIterator[SearchedCatalog]:
        """One in a folder that is thrown away, with the model of a checkpoint, None being the service's."""
        with tempfile.TemporaryDirectory(prefix="phalar-evaluation-") as folder:
            # What the service keeps must lie here, whatever the environment says: a user's catalog stays untouched.
            chosen |= {"data": Path(folder), "database_url": None, "blob_url": None, "redis_url": None}
            chosen |= {"checkpoints": None} | ({} if checkpoint is None else {"checkpoint": checkpoint})
            async with cls.open(Settings(**chosen)) as opened:
                yield opened

    @property
    def notes(self) -> Mapping[str, str]:
        """Of the model's checkpoint."""
        return self._models.of(self._fingerprint).notes

    @property
    def model(self) -> dict[str, Any]:
        """What a reader of the figures must know of the model."""
        model = self._models.of(self._fingerprint)
        return {"fingerprint": self._fingerprint, "trained": model.trained, "note": note_of(model)}

    async def add(
        self, bank: StemBank | RetimedBank, track: int, instruments: Sequence[str] | None = None
    ) -> tuple[int, ...]:
        """Put a track's stems in, each of its instrument and in the track's key, embedded as a worker embeds them; the
        row of each, one for the same audio."""
        banked, waveforms = bank.tracks[track], bank.waveforms(track)
        key = await asyncio.to_thread(key_of, bank, track)
        said = None if key is None else Said(key=key, sources={"key": "said"})
        played: Sequence[str | None] = instruments or [None] * len(waveforms)
        facts = ClipFacts("wav", banked.samples / SAMPLE_RATE, SAMPLE_RATE, channels=1)
        uploads = [
            Upload(
                hashlib.sha256(waveform.tobytes()).hexdigest(),
                name,
                StemMetadata(track=banked.name, instrument=instrument, key=key),
                facts,
            )
            for name, waveform, instrument in zip(banked.stems, waveforms, played, strict=True)
        ]
        job, waiting = await self.catalog.add(uploads)
        together = await asyncio.to_thread(Hearing, waveforms.sum(axis=0))
        rows: list[int] = []
        for item, waveform in zip(job.items, waveforms, strict=True):
            assert item.stem_id is not None, "nothing was rejected"
            stem = await self.catalog.stem(item.stem_id)
            rows.append(stem.row)
            self._ids[stem.row] = stem.id
            if item.stem_id in waiting:
                waiting.remove(item.stem_id)
                analysis = await asyncio.to_thread(analyse, waveform, said, together)
                laid = lay(waveform, analysis, self.settings)
                audible, embedding = await self._embedder.stem(self._fingerprint, laid.waveform, laid.parts)
                starts_s = np.concatenate([part.starts for part in laid.parts])[audible] / SAMPLE_RATE
                await self.catalog.store_embeddings(
                    stem.row, self._fingerprint, audible, starts_s, embedding, laid.beats[audible], laid.music
                )
        return tuple(rows)

    async def go_live(self) -> Index:
        """Build the index of what has been put in."""
        alias = await self.catalog.alias()
        assert alias is not None
        fold = await self._fold(self._fingerprint)
        await self._live.build(alias.generation, self._fingerprint, fold, self.settings.index_type)
        await self._live.open()
        index = await self._live.current()
        self.stems = index.stems
        return index

    async def ask(self, mix: Waveform, wish: Wish) -> tuple[Index, list[Asked]]:
        """A mix as the stems of each time base are asked about it."""
        watch = Stopwatch(self._metrics)
        heard = await self.finder.hear(mix, wish, watch)
        return await self.finder.ask(await self._live.current(), mix, StemFilter(), wish, heard, watch)

    async def find(self, mix: Waveform, wish: Wish) -> tuple[dict[int, Place], dict[str, float]]:
        """Every stem that the search can rank, best first, by its row; and the milliseconds of each stage."""
        watch = Stopwatch(self._metrics)
        wish = replace(wish, ranked=self.stems)
        found = await self.finder.find(await self._live.current(), mix, StemFilter(), wish, watch)
        return found.places, watch.done()

    async def band(
        self, mix: Waveform, instruments: Sequence[str], left_out: Collection[int], play: Play
    ) -> tuple[dict[str, list[Scored]], Band]:
        """By instrument every stem that the search can rank, best first, without some, by their rows; and the band that
        makes a set of them. The mix is embedded once."""
        embedder = Remembering(self._embedder, Kept(), "")
        finder = Finder(self.settings, self.catalog, embedder, self._live)
        index, watch = await self._live.current(), Stopwatch(self._metrics)
        wish = Wish(ranked=self.stems)
        heard = await finder.hear(mix, wish, watch)
        exclude = tuple(self._ids[row] for row in left_out)
        found: dict[str, list[Scored]] = {}
        for name in instruments:
            wanted = StemFilter(instruments=(name,), exclude=exclude)
            found[name] = (await finder.find(index, mix, wanted, wish, watch, heard)).scored
        return found, Band(self.catalog, embedder, index, mix, play, self.settings.query_timeout_s)

    async def _fold(self, fingerprint: str) -> HermitianFold:
        return await asyncio.to_thread(self._models.fold, fingerprint)


class Kept(dict[str, bytes]):
    """A `Keeper` for as long as it lives."""

    async def put(self, name: str, data: bytes, about: bytes = b"") -> bool:
        self[name] = data
        return True

    async def get(self, name: str) -> tuple[bytes, bytes] | None:  # type: ignore[override]
        data = super().get(name)
        return None if data is None else (b"", data)
