"""What one API process holds while it lives, opened and closed as one."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace

from indexer import ApiKeys, Catalog, HermitianFold, IndexStore, IndexUnavailable, LiveIndex, open_store
from service.api.counts import Counts
from service.api.errors import problem
from service.api.export import Export
from service.api.fitted import Fitted
from service.api.ingest import Ingest
from service.api.keys import KeyRing
from service.api.mixes import Mixes
from service.api.operating import ReadyOut, WorkerOut
from service.api.rates import RateLimiter
from service.api.reindex import Reindexer
from service.api.retrieval import Retrieval
from service.api.schemas import IndexOut, ModelOut
from service.metrics import Metrics
from service.settings import Settings
from service.work.blobs import Blobs
from service.work.decoding import DecodeLimits
from service.work.fitted import FittedFiles
from service.work.jobs import Kind, QueueError
from service.work.models import Models, UnknownCheckpoint, note_of
from service.work.queue import Queue, open_queue
from service.work.shelf import Shelf
from service.work.streams import connect
from service.work.turns import Budget
from service.work.uploads import Decoder

log = logging.getLogger("phalar.backend")
FOLLOW_S = 1.0  # how often the index catches up with the catalog when nobody asks
SIZE_S = 5.0  # how often it is looked how many workers live
FORGET_S = 3600.0  # how often old jobs are forgotten
SAMPLE_BYTES = 4  # float32
NOTE_USES_S = 30.0  # how often it is written down when keys were last used


@dataclass
class Backend:
    """Catalog, keys, audio, queue, models, index, and the work that goes on beside requests."""

    settings: Settings
    catalog: Catalog
    keys: KeyRing
    rates: RateLimiter
    blobs: Blobs
    queue: Queue
    decoder: Decoder
    models: Models
    live: LiveIndex
    counts: Counts
    ingest: Ingest
    fitted: Fitted
    export: Export
    retrieval: Retrieval
    reindexer: Reindexer
    metrics: Metrics
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings) -> AsyncIterator["Backend"]:
        """Open everything; loading the index goes on in the background, and /readyz says so."""
        settings.make_data_folder()
        async with AsyncExitStack() as stack:
            catalog = await Catalog.open(settings.resolved_database_url)
            stack.push_async_callback(catalog.close)
            queue = open_queue(settings)
            stack.push_async_callback(queue.aclose)
            rates = RateLimiter(
                connect(settings.resolved_redis_url, settings.redis_ca), settings.redis_prefix, settings.rates
            )
            stack.push_async_callback(rates.aclose)
            # Twice what uploads may take: a query does not wait for them.
            limits = replace(DecodeLimits.of(settings), processes=2 * settings.decoders)
            decoder = await stack.enter_async_context(Decoder(limits))
            budget = Budget(settings.decoded_bytes // SAMPLE_BYTES)
            counts = Counts(catalog)
            blobs = Blobs(settings.resolved_blob_url)
            fitted = Fitted(catalog, blobs, decoder, FittedFiles(settings.fitted_folder, settings.fitted_bytes))
            shelf = Shelf.of(settings)
            stack.push_async_callback(shelf.aclose)
            mixes = Mixes(catalog, blobs, decoder, budget, shelf)
            models = await asyncio.to_thread(Models, settings)
            metrics = Metrics()

            async def fold_of(fingerprint: str) -> HermitianFold:
                return await asyncio.to_thread(models.fold, fingerprint)

            live = LiveIndex(
                catalog, index_store(settings), fold_of, window_s=settings.window_s, stride_s=settings.stride_s
            )
            reindexer = Reindexer(settings, catalog, queue, models, live, problem)
            stack.push_async_callback(reindexer.close)
            backend = cls(
                settings,
                catalog,
                KeyRing(settings, ApiKeys(catalog.database)),
                rates,
                blobs,
                queue,
                decoder,
                models,
                live,
                counts,
                Ingest(settings, catalog, blobs, queue, decoder, budget, counts, fitted.files, problem),
                fitted,
                Export(settings, decoder, fitted),
                Retrieval(settings, catalog, mixes, queue, models, live, metrics),
                reindexer,
                metrics,
            )
            stack.push_async_callback(backend._stop)
            backend._start()
            yield backend

    async def readiness(self) -> ReadyOut:
        """What /readyz reports."""
        alias = await self.catalog.alias()
        fingerprint = alias.fingerprint if alias else self.models.configured_fingerprint
        try:
            model = await asyncio.to_thread(self.models.of, fingerprint)
            shown = ModelOut(fingerprint=fingerprint, trained=model.trained, note=note_of(model))
        except UnknownCheckpoint as error:
            shown = ModelOut(fingerprint=fingerprint, trained=False, note=problem(error)["detail"])
        index = self.live.held
        depths, workers = await self._queue_state()
        return ReadyOut(
            status=self.live.status if depths else "starting",
            model=shown,
            index=index and IndexOut.model_validate(index),
            queue={str(kind): depth for kind, depth in depths.items()},
            stems=await self.counts.now(),
            workers={
                name: WorkerOut(
                    device=str(said.get("device", "")),
                    driver=str(said.get("driver", "")),
                    batch=int(said.get("batch_limit", 0)),
                    embeddings_per_s=round(float(said.get("embeddings_per_s", 0.0)), 2),
                )
                for name, said in workers.items()
            },
            decoders=self.decoder.confinement or "limits-only",
        )

    async def exposition(self) -> bytes:
        """What /metrics reports."""
        depths, workers = await self._queue_state()
        return self.metrics.exposition(
            depths=depths, workers=workers, stems=await self.counts.now(), index=self.live.held
        )

    async def _queue_state(self) -> tuple[dict[Kind, int], dict[str, dict[str, float | str]]]:
        """What waits, and what each worker last said; nothing while Redis is away."""
        try:
            return await self.queue.depths(), await self.queue.worker_stats()
        except QueueError:
            return {}, {}

    def _start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._open_index()),
            asyncio.create_task(_every(self.settings.sweep_s, self.ingest.sweep)),
            asyncio.create_task(_every(self.settings.sweep_s, self.reindexer.resume)),
            asyncio.create_task(_every(FOLLOW_S, self._follow)),
            asyncio.create_task(_every(NOTE_USES_S, self.keys.flush_uses)),
            asyncio.create_task(_every(SIZE_S, self._size_turns)),
            asyncio.create_task(_every(FORGET_S, self.ingest.forget_jobs)),
        ]

    async def _size_turns(self) -> None:
        workers = await self.queue.worker_stats()
        self.retrieval.size_turns(float(said.get("batch_limit", 0)) for said in workers.values())

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _open_index(self) -> None:
        while True:
            try:
                await self.reindexer.point_alias()
                await self.live.open()
                await self.reindexer.resume()
            except IndexUnavailable as error:
                log.warning("%s", error)
                await asyncio.sleep(max(FOLLOW_S, error.retry_after_s))
            except Exception:
                log.exception("the index could not be opened; trying again")
                await asyncio.sleep(FOLLOW_S)
            else:
                return

    async def _follow(self) -> None:
        try:
            await self.live.check()
            if self.live.status == "ready":
                await self.live.current()
                await self.live.absorb()
                await self.reindexer.seal_if_due()
        except IndexUnavailable:
            return  # /readyz says so, and its connection has logged why


def index_store(settings: Settings) -> IndexStore:
    """Where the settings keep the index. Raises QdrantNotInstalled."""
    return open_store(
        settings.index_folder,
        settings.index_limits,
        url=settings.index_url,
        api_key=settings.index_key.get_secret_value() if settings.index_key else None,
        timeout_s=settings.index_timeout_s,
        prefix=settings.index_prefix,
        mode=settings.qdrant_mode,
    )


async def _every(seconds: float, work: Callable[[], Awaitable[object]]) -> None:
    """Do something for ever; a failure is logged and does not end it."""
    while True:
        await asyncio.sleep(seconds)
        try:
            await work()
        except Exception as error:
            log.warning("%s failed and will be tried again: %s", getattr(work, "__qualname__", work), error)
