"""Micro-batches -> device -> catalog: what turns queued stems and queries into embeddings.

Three things go on at once. The taker keeps a few uploads in hand, and as many queries as fill the next micro-batch.
Preparers fetch and decode. One device thread embeds a micro-batch at a time, queries first, so a query waits for one
micro-batch at most. Nothing waits for a batch to fill: what came while the device worked is the next one. The event
loop itself never computes.
"""

import asyncio
import logging
import math
import os
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from indexer import Catalog, StemJob
from model.audio import SAMPLE_RATE, AudioError
from model.audio.analysis import analyse
from model.audio.hearing import Hearing
from model.device import facts_of
from service.metrics import Figures
from service.settings import Settings
from service.work.batches import Batch, QueryWork, Served, StemWork, Work, joined, loud, share_out, upload_limit
from service.work.blobs import BlobMissing, Blobs
from service.work.decoding import DecoderError
from service.work.device import Device, DeviceFull, DeviceLost, UnknownModel
from service.work.endings import Endings
from service.work.jobs import (
    AllWindowsSilent,
    EmbedFailed,
    FingerprintMismatch,
    Job,
    KilledItsWorker,
    NoMemory,
    Poisoned,
    QueryJob,
    StemNotEmbedded,
    UploadJob,
    WorkersLost,
)
from service.work.laying import lay, said_of
from service.work.queue import Queue
from service.work.streams import QueueUnavailable
from service.work.uploads import UPLOAD_NICE, Decoder, step_back

log = logging.getLogger("phalar.worker")
T = TypeVar("T")

FEWEST_HELD, MOST_HELD = 8, 64  # uploads in hand; those of a killed worker come back one at a time, so not many
TAKE_MS = 500  # how long a taker waits; also the longest it delays an exit
POLL_MS = 30  # how long it waits at most while its hands are full of uploads, or of queries
QUERY_BATCHES = 8  # micro-batches of queries before one of uploads that wait, so that these do not starve
FEWEST_QUERIES = 2  # in hand, so that a long one of a caller keeps nobody else waiting
LOOK_S = 0.05  # how often it is looked whether the queries in hand are still wanted
BEAT_S = 5.0

Describe = Callable[[Exception], dict[str, Any]]
"""How a failure is written down for whoever uploaded the stem: the API's problem, which this room knows nothing of."""


class Worker:
    """Takes jobs until `stop`."""

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        blobs: Blobs,
        queue: Queue,
        decoder: Decoder,
        describe: Describe,
        place: int = 0,
    ) -> None:
        self._place = place
        self.figures = Figures(pid=os.getpid())
        self._settings = settings
        self._catalog = catalog
        self._blobs = blobs
        self._queue = queue
        self._decoder = decoder
        self._describe = describe
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._analysing = ThreadPoolExecutor(settings.decoders, "analysis", step_back)
        self._device: Device | None = None
        self._about: dict[str, str] = {}
        self._held_limit = min(max(FEWEST_HELD, settings.most_windows // 2), MOST_HELD)
        self._checking: set[QueryJob] = set()
        self._queries: list[QueryWork] = []
        self._served = Served()
        self._stems: list[StemWork] = []
        self._query_batches = 0  # since the last one of stems
        self._asked_at = -math.inf  # when the device last had a query
        self._looked_at = 0.0  # whether queries in hand are still wanted
        self._preparing: set[asyncio.Task[None]] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._decoding = asyncio.Semaphore(settings.decoders)
        self._samples_held = 0
        self._together: tuple[frozenset[str], Hearing] | None = None  # of the track that was heard last
        self._samples_freed = asyncio.Condition()
        self._wake = asyncio.Event()
        self._room = asyncio.Event()  # set when the device has taken windows of queries
        self._stopping = asyncio.Event()
        self._ends = ends = Endings(catalog, queue, self.figures, self._stopping)
        self._done, self._fail, self._persist, self._settle = ends.done, ends.fail, ends.persist, ends.settle

    def stop(self) -> None:
        """Finish the batch that is on the device, give the rest back, and let `run` return."""
        self._stopping.set()
        self._wake.set()

    async def run(self) -> None:
        """Work until `stop`. An error here is a fault of ours; the supervisor starts another worker."""
        loops: list[asyncio.Task[None]] = []
        lost = False
        try:
            self._device = await self._in_thread(lambda: Device(self._settings, self._place))
            facts = facts_of(self._device.device)
            self._about = {"device": facts.name, "driver": facts.driver}  # for /readyz and /metrics
            log.info("ready on %s", facts)
            loops = [asyncio.create_task(loop()) for loop in (self._take, self._compute, self._beat)]
            ended, _ = await asyncio.wait(loops, return_when=asyncio.FIRST_COMPLETED)
            self.stop()
            for task in ended:
                task.result()  # raises what ended it
            await asyncio.gather(*loops)
        except DeviceLost:
            lost = True
            raise
        finally:
            for task in [*loops, *self._preparing]:
                task.cancel()
            await asyncio.gather(*loops, *self._preparing, *self._ending, return_exceptions=True)
            for threads in (self._thread, self._analysing):
                threads.shutdown(wait=True, cancel_futures=True)
            try:
                if not lost:  # what a device was lost with may be what it was lost by: its deliveries are counted
                    await self._queue.release()
            except QueueUnavailable as error:
                log.warning("what was in hand is taken over later: %s", error)

    # Taking.

    async def _take(self) -> None:
        away = False
        while not self._stopping.is_set():
            free = self._held_limit - self._queue.in_hand
            # Hardly more queries than fill the next micro-batch: the rest is for other workers.
            in_hand = len(self._checking) + len(self._queries)
            queries = in_hand < FEWEST_QUERIES or self._windows_asked < self._settings.most_windows
            block_ms = 0 if not queries else TAKE_MS if free > 0 else POLL_MS
            self._room.clear()
            try:
                jobs = await self._queue.take(max(free, 1), block_ms, uploads=free > 0, queries=queries)
            except QueueUnavailable as error:
                if not away:
                    log.error("%s; waiting for it", error)
                away = True
                continue
            away = False
            for job in jobs:
                self._accept(job)
            if not jobs and not queries:
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_MS / 1000):
                        await self._room.wait()

    @property
    def _windows_asked(self) -> int:
        """Windows of queries in hand that the device has not been given."""
        return sum(len(job.laid) for job in self._checking) + sum(work.left for work in self._queries)

    def _accept(self, job: Job) -> None:
        if isinstance(job, QueryJob):
            self._checking.add(job)
            _spawn(self._check(job), self._preparing)
        else:
            _spawn(self._bury(job) if isinstance(job, Poisoned) else self._prepare(job), self._preparing)

    async def _bury(self, poisoned: Poisoned) -> None:
        """End a job that kills its workers."""
        job = poisoned.job
        if isinstance(job, QueryJob):
            self.figures.queries_failed += 1
            await self._settle(self._queue.fail(job, WorkersLost()))
            return
        log.error("stem %s %s; it ends as failed", job.stem_id, poisoned.reason)
        await self._fail(job, self._describe(KilledItsWorker(poisoned.reason)))

    async def _beat(self) -> None:
        """Keep what is in hand from being taken over, and report."""
        pause = min(BEAT_S, self._settings.claim_after_s / 3)
        while not self._stopping.is_set():
            self.figures.in_hand = self._queue.in_hand
            self.figures.last_beat = time.time()
            self.figures.batch_limit = self._device.batch_limit if self._device is not None else 0
            try:
                rate = self.figures.windows / max(self.figures.embed_seconds, 1e-9)
                await self._queue.beat(asdict(self.figures) | {"embeddings_per_s": rate} | self._about)
            except QueueUnavailable as error:
                log.debug("no beat: %s", error)
            try:
                await asyncio.wait_for(self._stopping.wait(), pause)
            except TimeoutError:
                continue

    # Preparing.

    async def _prepare(self, job: UploadJob) -> None:
        """Decode a stem and place its windows; every way out leaves the job done or its windows with the device."""
        try:
            stem = await self._persist(lambda: self._catalog.stem_for_embedding(job.stem_id))
            if stem is None or await self._needs_nothing(stem.row, stem.state, job.fingerprint):
                await self._done(job)
                return
            await self._in_thread(lambda: self._on_device.require(job.fingerprint))
            work = await self._decode(job, stem)
        except (AudioError, BlobMissing) as error:
            await self._fail(job, self._describe(error))
        except UnknownModel as error:
            log.warning("stem %s stays queued: %s", job.stem_id, error)
            await self._done(job)
        except (ArithmeticError, LookupError, TypeError, ValueError):
            log.exception("stem %s cannot be prepared", job.stem_id)
            await self._fail(job, self._describe(StemNotEmbedded()))
        except Exception:
            # The store or the database may be away. The stem is still queued there, and the sweep brings it back.
            log.exception("stem %s could not be prepared and stays queued", job.stem_id)
            await self._done(job)
        else:
            if len(work.windows):
                self._stems.append(work)
                self._wake.set()
            else:
                await self._fail(job, self._describe(AllWindowsSilent()))
                await self._free(work)

    async def _needs_nothing(self, row: int, state: str, fingerprint: str) -> bool:
        """Whether the job was done before: by a worker that died late, or because it was queued twice."""
        if state == "queued":
            return False
        return state != "ready" or await self._persist(lambda: self._catalog.embeddings_exist(row, fingerprint))

    async def _decode(self, job: UploadJob, stem: StemJob) -> StemWork:
        async with self._decoding:
            async with self._samples_freed:
                # What is decoded and waits may be as much as one longest clip, before another is begun.
                most = self._settings.max_clip_s * SAMPLE_RATE
                await self._samples_freed.wait_for(lambda: self._samples_held < most)
            with self.figures.timed("decode"):
                waveform = await self._queue.handed_over(stem.sha256)
                if waveform is None:
                    waveform = await self._decode_blob(stem.sha256)
            with self.figures.timed("analyse"):
                together = await self._heard_together(stem, waveform)
                analysis = await self._behind(lambda: analyse(waveform, said_of(stem), together))
            laid = await self._behind(lambda: lay(waveform, analysis, self._settings))
            windows = await self._behind(lambda: loud(laid.waveform, laid.parts))
            self._samples_held += len(laid.waveform)
        return StemWork(
            job=job,
            row=stem.row,
            waveform=laid.waveform,
            parts=laid.parts,
            windows=windows,
            beats=laid.beats,
            music=laid.music,
        )

    async def _heard_together(self, stem: StemJob, waveform: NDArray[np.float32]) -> Hearing | None:
        """What is heard of all stems that begin and end with this one; None: it is alone."""
        others = await self._persist(lambda: self._catalog.siblings(stem.row)) if stem.track else []
        if not others:
            return None
        all_of_them = frozenset([stem.sha256, *others])
        if self._together is None or self._together[0] != all_of_them:
            mix = waveform.copy()
            for sha256 in others:
                with suppress(AudioError, BlobMissing):  # its own job says so
                    other = await self._decode_blob(sha256)
                    mix[: len(other)] += other[: len(mix)]
            self._together = all_of_them, await self._behind(lambda: Hearing(mix))
        return self._together[1]

    async def _decode_blob(self, sha256: str) -> NDArray[np.float32]:
        async with self._blobs.fetch(sha256) as path:
            try:
                return (await self._decoder.decode(path, nice=UPLOAD_NICE)).waveform
            except DecoderError as error:
                log.warning("decoding %s once more: %s", sha256, error)
                return (await self._decoder.decode(path, nice=UPLOAD_NICE)).waveform

    async def _check(self, job: QueryJob) -> None:
        """Place a query's windows; every way out leaves it answered or its windows with the device."""
        try:
            windows = await asyncio.to_thread(loud, job.waveform, [job.laid])
            if len(windows):
                work = QueryWork(job=job, waveform=job.waveform, parts=(job.laid,), windows=windows)
                self._queries.append(work)
                self._wake.set()
            else:
                nothing = await self._in_thread(lambda: self._on_device.silence(job.fingerprint, job.laid))
                self.figures.queries += 1
                await self._settle(self._queue.reply(job, nothing))
        except Exception as error:
            await self._fail_query(job, error)
        finally:
            self._checking.discard(job)

    # Computing.

    async def _compute(self) -> None:
        while not self._stopping.is_set():
            batch = await self._next_batch()
            if batch:
                await self._embed_batch(batch)
            else:
                self._wake.clear()
                await self._wake.wait()

    async def _next_batch(self) -> Batch:
        """Queries before stems, but stems that wait get every ninth micro-batch; empty when nothing waits."""
        await self._drop_unwanted()
        limit = self._settings.most_windows
        if self._queries and not (self._stems and self._query_batches >= QUERY_BATCHES):
            self._query_batches += 1
            self._asked_at = time.monotonic()
            batch = share_out(self._served.first(self._queries, limit), limit)
            self._served.count(batch)
            self._queries = [work for work in self._queries if work.left]
            self._room.set()
            return batch
        self._query_batches = 0
        if not self._queries:
            limit = upload_limit(limit, time.monotonic() - self._asked_at)
        batch = share_out(self._stems, limit) if self._stems else []
        self._stems = [work for work in self._stems if work.left]
        return batch

    async def _drop_unwanted(self) -> None:
        """Let go of queries whose deadline has passed, and of those that their callers took back."""
        unwanted = {work.job for work in self._queries if work.job.expired}
        if self._queries and time.monotonic() - self._looked_at >= LOOK_S:
            self._looked_at = time.monotonic()
            with suppress(QueueUnavailable):
                unwanted.update(await self._queue.abandoned([work.job for work in self._queries]))
        for work in [work for work in self._queries if work.job in unwanted]:
            log.info("dropping a query that nobody waits for")
            self._queries.remove(work)
            self._room.set()
            await self._settle(self._queue.done(work.job))

    async def _embed_batch(self, batch: Batch) -> None:
        try:
            embedding = await self._embed(batch)
        except DeviceLost:
            raise  # of no job's making, as far as anybody knows: all stay unacknowledged
        except Exception as error:
            if len(batch) == 1:
                await self._leave(batch[0][0], error)
            else:
                log.warning("a batch of %d jobs failed (%s); embedding them one by one", len(batch), error)
                for part in batch:
                    await self._embed_batch([part])
        else:
            at = 0
            for work, start, end in batch:
                work.embedding.append(embedding[at : at + end - start].copy())
                at += end - start
                if work.complete:
                    _spawn(self._store(work) if isinstance(work, StemWork) else self._ends.reply(work), self._ending)

    async def _embed(self, batch: Batch) -> NDArray[np.complex64]:
        def embed() -> NDArray[np.complex64]:
            clips = joined([work.cut(start, end) for work, start, end in batch])
            return self._on_device.embed(batch[0][0].job.fingerprint, clips)

        with self.figures.timed("embed"):
            embedding = await self._in_thread(embed)
        self.figures.batches += 1
        self.figures.windows += len(embedding)
        return embedding

    async def _leave(self, work: Work, error: Exception) -> None:
        """Let go of a work before its last window."""
        if isinstance(work, QueryWork):
            self._queries = [other for other in self._queries if other is not work]
            await self._fail_query(work.job, error)
        elif isinstance(work, StemWork):
            self._stems = [other for other in self._stems if other is not work]
            await self._fail_stem(work, error)
            await self._free(work)

    async def _fail_query(self, job: QueryJob, error: Exception) -> None:
        self.figures.queries_failed += 1
        if isinstance(error, UnknownModel):
            await self._settle(self._queue.fail(job, FingerprintMismatch(error.fingerprint, error.held)))
        elif isinstance(error, DeviceFull):
            log.warning("a query could not be embedded: %s", error)
            await self._settle(self._queue.fail(job, NoMemory()))
        else:
            log.error("a query could not be embedded", exc_info=error)
            await self._settle(self._queue.fail(job, EmbedFailed(str(error) or type(error).__name__)))

    async def _fail_stem(self, work: StemWork, error: Exception) -> None:
        if isinstance(error, (DeviceFull, UnknownModel)):
            log.warning("stem %s stays queued: %s", work.job.stem_id, error)
            await self._done(work.job)
        else:
            log.error("stem %s cannot be embedded", work.job.stem_id, exc_info=error)
            await self._fail(work.job, self._describe(StemNotEmbedded()))

    async def _store(self, work: StemWork) -> None:
        try:
            await self._ends.store(work)
        finally:
            await self._free(work)

    async def _free(self, work: Work) -> None:
        async with self._samples_freed:
            self._samples_held -= len(work.waveform)
            self._samples_freed.notify_all()

    @property
    def _on_device(self) -> Device:
        assert self._device is not None, "the models are loaded before anything is taken"
        return self._device

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    async def _behind(self, call: Callable[[], T]) -> T:
        """In a thread that steps back behind the device's."""
        return await asyncio.get_running_loop().run_in_executor(self._analysing, call)


def _spawn(work: Coroutine[Any, Any, None], among: set[asyncio.Task[None]]) -> None:
    task = asyncio.create_task(work)
    among.add(task)
    task.add_done_callback(among.discard)
