"""How a job ends in its worker: answered, stored or failed, and then acknowledged."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import numpy as np

from indexer import Catalog, CatalogUnavailable
from model.audio import SAMPLE_RATE
from service.metrics import Figures
from service.work.batches import QueryWork, StemWork, Work
from service.work.jobs import UploadJob
from service.work.queue import Queue
from service.work.streams import QueueUnavailable

log = logging.getLogger("phalar.worker")
T = TypeVar("T")

STORE_ATTEMPTS = 5
FIRST_PAUSE_S = 0.2


class Endings:
    """Of one worker; `stopping` ends its patience with a catalog that is away."""

    def __init__(self, catalog: Catalog, queue: Queue, figures: Figures, stopping: asyncio.Event) -> None:
        self._catalog = catalog
        self._queue = queue
        self._figures = figures
        self._stopping = stopping

    async def reply(self, work: Work) -> None:
        """Answer a query: complex64, a row for each of its windows, zeros where one is silent."""
        assert isinstance(work, QueryWork)
        found = np.concatenate(work.embedding)
        embedding = np.zeros((len(work.job.laid), found.shape[1]), np.complex64)
        embedding[work.windows] = found
        self._figures.queries += 1
        await self.settle(self._queue.reply(work.job, embedding))

    async def store(self, work: StemWork) -> None:
        """Store a stem's embeddings; what cannot be stored stays queued."""
        job = work.job
        starts = np.concatenate([part.starts for part in work.parts])[work.windows]
        starts_s, beats = starts.astype(np.float64) / SAMPLE_RATE, work.beats[work.windows]
        embedding = np.concatenate(work.embedding)
        try:
            with self._figures.timed("store"):
                kept = await self.persist(
                    lambda: self._catalog.store_embeddings(
                        work.row, job.fingerprint, work.windows, starts_s, embedding, beats, work.music
                    )
                )
            self._figures.stems += 1
            if not kept:
                log.info("stem %s was deleted meanwhile", job.stem_id)
        except Exception:
            log.exception("stem %s could not be stored and stays queued", job.stem_id)
        finally:
            await self.done(job)

    async def fail(self, job: UploadJob, said: dict[str, Any]) -> None:
        """Mark a stem as failed, with what its uploader is told."""
        self._figures.stems_failed += 1
        log.warning("stem %s failed: %s", job.stem_id, said.get("detail"))
        try:
            await self.persist(lambda: self._catalog.mark_failed(job.stem_id, said, job.fingerprint))
        except Exception:
            log.exception("stem %s could not be marked as failed and stays queued", job.stem_id)
        await self.done(job)

    async def persist(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Run it; a database that is away or locked is tried again for some seconds."""
        attempt, pause = 1, FIRST_PAUSE_S
        while True:
            try:
                return await operation()
            except CatalogUnavailable as error:
                if attempt == STORE_ATTEMPTS or self._stopping.is_set():
                    raise
                log.warning("the catalog does not answer, trying again: %s", error)
            await asyncio.sleep(pause)
            attempt, pause = attempt + 1, 2 * pause

    async def done(self, job: UploadJob) -> None:
        await self.settle(self._queue.done(job))

    async def settle(self, acknowledging: Awaitable[None]) -> None:
        """A job that cannot be acknowledged now comes again, and is found done."""
        try:
            await acknowledging
        except QueueUnavailable as error:
            log.warning("a job was done and could not be acknowledged: %s", error)
