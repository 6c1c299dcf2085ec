"""Micro-batches -> device -> catalog: what turns queued stems and queries into embeddings.

Three things go on at once. The taker keeps a few uploads in hand, and as many queries as fill the next micro-batch;
preparers fetch and decode; one device thread embeds, micro-batch by micro-batch, and looks for queries before each, so
that a query waits for one micro-batch at most. Nothing waits for a batch to fill: the queries that come while the
device works are the next one. The event loop itself never computes.
"""

import asyncio
import logging
import os
import re
import signal
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from indexer import Catalog, CatalogUnavailable
from model import (
    SAMPLE_RATE,
    AudioError,
    CheckpointError,
    Phalar,
    cut_windows,
    facts_of,
    is_silent,
    load_phalar,
    open_device,
    window_starts,
)
from service.blobs import BlobMissing, Blobs
from service.errors import KilledItsWorker, StemNotEmbedded, problem
from service.models import configured_model
from service.queue import (
    EmbedFailed,
    FingerprintMismatch,
    Job,
    Poisoned,
    QueryJob,
    Queue,
    QueueUnavailable,
    UploadJob,
    consumer_name,
    open_queue,
)
from service.settings import Settings
from service.uploads import UPLOAD_NICE, DecodeLimits, Decoder, DecoderError

log = logging.getLogger("phalar.worker")
T = TypeVar("T")

MODELS_HELD = 2  # the live one, and the one a reindex is on its way to
FEWEST_HELD, MOST_HELD = 8, 64  # uploads in hand; those of a killed worker come back one at a time, so not many
TAKE_MS = 500  # how long a taker waits; also the longest it delays an exit
POLL_MS = 30  # how long it waits at most while its hands are full of uploads, or of queries
LATELY_S = 1.0  # after a query another is likely: until then micro-batches of uploads are smaller
LATELY_SHARE = 4  # so many times
QUERY_BATCHES = 8  # micro-batches of queries before one of uploads that wait: queries without end must not starve them
BEAT_S = 5.0
STORE_ATTEMPTS = 5
FIRST_PAUSE_S = 0.2


@dataclass
class Figures:
    """What a worker has done since it started; reported with each beat and shown by /metrics."""

    decode_seconds: float = 0.0
    embed_seconds: float = 0.0
    store_seconds: float = 0.0
    batches: int = 0
    windows: int = 0
    stems: int = 0
    stems_failed: int = 0
    queries: int = 0
    queries_failed: int = 0
    batch_limit: int = 0
    in_hand: int = 0
    last_beat: float = 0.0
    pid: int = 0

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            name = f"{stage}_seconds"
            setattr(self, name, getattr(self, name) + time.perf_counter() - begun)


class UnknownModel(Exception):
    """No checkpoint with this fingerprint is configured or kept."""

    def __init__(self, fingerprint: str, held: Sequence[str]) -> None:
        super().__init__(f"no checkpoint with the fingerprint {fingerprint} is kept")
        self.fingerprint = fingerprint
        self.held = tuple(held)


class NonFiniteEmbedding(Exception):
    """The network gave a NaN or an infinity."""


class DeviceLost(Exception):
    """The device no longer answers, whatever it is asked: only a new process may find it well again."""

    def __init__(self, device: str, reason: str) -> None:
        super().__init__(f"the device {device} no longer answers ({reason}); what was in hand is left to others")
        self.device = device


class Device:
    """The models on their device. Everything here runs in the worker's one device thread."""

    def __init__(self, settings: Settings, place: int = 0) -> None:
        if settings.torch_threads:
            torch.set_num_threads(settings.torch_threads)
        self._settings = settings
        self._held: OrderedDict[str, Phalar] = OrderedDict()
        self.batch_limit = settings.most_windows
        self.device = open_device(settings.device, place, max(1, settings.workers))
        model = configured_model(settings).to(self.device)
        self._held[model.fingerprint] = model
        if self.device.type != "cpu":
            # What fits is found before anybody waits, and the first batch finds all plans and kernels made.
            self.embed(
                model.fingerprint, np.full((self.batch_limit, round(settings.window_s * SAMPLE_RATE)), 0.1, "f4")
            )

    def embed(self, fingerprint: str, windows: NDArray[np.float32]) -> NDArray[np.complex64]:
        """Embed windows of one length, float32 (n, samples), with the model of this fingerprint.

        Where memory does not suffice the batch is halved, now and from now on.

        Raises:
            DeviceLost, UnknownModel, NonFiniteEmbedding, and whatever a single window makes the model raise.
        """
        model = self._model(fingerprint)
        done: list[NDArray[np.complex64]] = []
        start = 0
        while start < len(windows):
            part = windows[start : start + self.batch_limit]
            try:
                embedding = model.embed(part).cpu().numpy()
            except (MemoryError, RuntimeError) as error:
                if not _out_of_memory(error) or len(part) == 1:
                    self._require_answer(model, error)
                    raise
                self.batch_limit = len(part) // 2
                log.warning("no memory for %d windows at once; from now on %d", len(part), self.batch_limit)
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                continue
            if not np.isfinite(embedding).all():
                raise NonFiniteEmbedding("the network gave numbers that are not finite")
            done.append(embedding.astype(np.complex64, copy=False))
            start += len(part)
        return np.concatenate(done)

    def _require_answer(self, model: Phalar, error: Exception) -> None:
        """Tell a window that cannot be embedded from a device that can do nothing more. Raises DeviceLost."""
        try:
            torch.zeros(1, device=model.device).sum().item()
        except RuntimeError as lost:
            if not _out_of_memory(lost):
                raise DeviceLost(str(model.device), str(error).partition("\n")[0]) from error

    def require(self, fingerprint: str) -> int:
        """Have this model at hand; returns the length of its embeddings. Raises UnknownModel."""
        return self._model(fingerprint).config.dimension

    def _model(self, fingerprint: str) -> Phalar:
        if fingerprint not in self._held:
            self._held[fingerprint] = self._load(fingerprint)
            if len(self._held) > MODELS_HELD:
                self._held.popitem(last=False)
        self._held.move_to_end(fingerprint)
        return self._held[fingerprint]

    def _load(self, fingerprint: str) -> Phalar:
        path = self._settings.checkpoint_folder / f"{fingerprint}.safetensors"
        try:
            if not re.fullmatch("[0-9a-f]{64}", fingerprint):
                raise FileNotFoundError(fingerprint)
            model = load_phalar(path, self.device)
        except (CheckpointError, OSError) as error:
            log.warning("cannot load the model %s: %s", fingerprint, error)
            raise UnknownModel(fingerprint, list(self._held)) from error
        if model.fingerprint != fingerprint:
            log.error("%s holds the model %s", path, model.fingerprint)
            raise UnknownModel(fingerprint, list(self._held))
        return model


@dataclass(eq=False, kw_only=True)
class Work:
    """A waveform in hand. `windows` are the indices of those that are not silent, `starts` the first samples of all;
    `taken` of them have gone to the device, `embedding` grows in their order."""

    job: UploadJob | QueryJob
    waveform: NDArray[np.float32]
    starts: NDArray[np.int64]
    windows: NDArray[np.int64]
    length: int
    taken: int = 0
    embedding: list[NDArray[np.complex64]] = field(default_factory=list)

    @property
    def left(self) -> int:
        """Windows that the device has not been given."""
        return len(self.windows) - self.taken

    @property
    def complete(self) -> bool:
        return sum(map(len, self.embedding)) == len(self.windows)

    def cut(self, start: int, end: int) -> NDArray[np.float32]:
        """Windows start to end of those that are not silent, float32 (end - start, length)."""
        return cut_windows(self.waveform, self.starts[self.windows[start:end]], self.length)


@dataclass(eq=False, kw_only=True)
class StemWork(Work):
    """A stem, decoded; `row` is its number in the catalog."""

    job: UploadJob
    row: int


@dataclass(eq=False, kw_only=True)
class QueryWork(Work):
    """A query."""

    job: QueryJob


Batch = list[tuple[Work, int, int]]
"""What goes to the device as one: works, and from which of their windows to which."""


def share_out(works: Sequence[Work], limit: int) -> Batch:
    """Choose the next micro-batch, and count its windows as taken.

    Args:
        works: with windows left, at least one; the batch is of the first one's model and length.
        limit: most windows in the batch.

    Returns:
        (work, start, end) of its windows that are not silent. Works get even shares, and what one cannot use goes to
        the others, so that a long one does not keep short ones waiting.
    """
    kind = (works[0].job.fingerprint, works[0].length)
    alike = [work for work in works if (work.job.fingerprint, work.length) == kind]
    alike.sort(key=lambda work: work.left)
    batch: Batch = []
    for position, work in enumerate(alike):
        share = min(-(-limit // (len(alike) - position)), work.left)
        if share > 0:
            batch.append((work, work.taken, work.taken + share))
            work.taken += share
            limit -= share
    return batch


class Worker:
    """Takes jobs until `stop`."""

    def __init__(
        self, settings: Settings, catalog: Catalog, blobs: Blobs, queue: Queue, decoder: Decoder, place: int = 0
    ) -> None:
        self._place = place
        self.figures = Figures(pid=os.getpid())
        self._settings = settings
        self._catalog = catalog
        self._blobs = blobs
        self._queue = queue
        self._decoder = decoder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._device: Device | None = None
        self._about: dict[str, str] = {}
        self._held_limit = min(max(FEWEST_HELD, settings.most_windows // 2), MOST_HELD)
        self._checking: set[QueryJob] = set()
        self._queries: list[QueryWork] = []
        self._stems: list[StemWork] = []
        self._query_batches = 0  # since the last one of stems
        self._asked_at = -LATELY_S  # when the device last had a query
        self._preparing: set[asyncio.Task[None]] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._decoding = asyncio.Semaphore(settings.decoders)
        self._samples_held = 0
        self._samples_freed = asyncio.Condition()
        self._wake = asyncio.Event()
        self._room = asyncio.Event()  # set when the device has taken windows of queries
        self._stopping = asyncio.Event()

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
            self._about = about(self._device.device)
            log.info("ready on %s", facts_of(self._device.device))
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
            self._thread.shutdown(wait=True, cancel_futures=True)
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
            # No more queries than fill the next micro-batch: the rest is for other workers.
            queries = self._windows_asked < self._settings.most_windows
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
                await self._wait_for_room()

    @property
    def _windows_asked(self) -> int:
        """Windows of queries in hand that the device has not been given."""
        return sum(len(job.starts) for job in self._checking) + sum(work.left for work in self._queries)

    async def _wait_for_room(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(POLL_MS / 1000):
                await self._room.wait()

    def _accept(self, job: Job) -> None:
        handler: Coroutine[Any, Any, None]
        if isinstance(job, QueryJob):
            self._checking.add(job)
            handler = self._check(job)
        else:
            handler = self._bury(job) if isinstance(job, Poisoned) else self._prepare(job)
        task = asyncio.create_task(handler)
        self._preparing.add(task)
        task.add_done_callback(self._preparing.discard)

    async def _bury(self, poisoned: Poisoned) -> None:
        """End a job that kills its workers."""
        job = poisoned.job
        if isinstance(job, QueryJob):
            self.figures.queries_failed += 1
            await self._settle(self._queue.fail(job, EmbedFailed(f"it {poisoned.reason}")))
            return
        log.error("stem %s %s; it ends as failed", job.stem_id, poisoned.reason)
        await self._fail(job, problem(KilledItsWorker(f"Embedding this stem {poisoned.reason}.")))

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
            work = await self._decode(job, stem.row, stem.sha256)
        except AudioError as error:
            await self._fail(job, problem(error))
        except BlobMissing as error:
            await self._fail(job, problem(error))
        except UnknownModel as error:
            log.warning("stem %s stays queued: %s", job.stem_id, error)
            await self._done(job)
        except Exception:
            # The store or the database may be away. The stem is still queued there, and the sweep brings it back.
            log.exception("stem %s could not be prepared and stays queued", job.stem_id)
            await self._done(job)
        else:
            if len(work.windows):
                self._stems.append(work)
                self._wake.set()
            else:
                await self._fail(job, problem(StemNotEmbedded("All of its windows are silent.")))
                await self._free(work)

    async def _needs_nothing(self, row: int, state: str, fingerprint: str) -> bool:
        """Whether the job was done before: by a worker that died late, or because it was queued twice."""
        if state == "queued":
            return False
        return state != "ready" or await self._persist(lambda: self._catalog.embeddings_exist(row, fingerprint))

    async def _decode(self, job: UploadJob, row: int, sha256: str) -> StemWork:
        async with self._decoding:
            async with self._samples_freed:
                # What is decoded and waits may be as much as one longest clip, before another is begun.
                most = self._settings.max_clip_s * SAMPLE_RATE
                await self._samples_freed.wait_for(lambda: self._samples_held < most)
            with self.figures.timed("decode"):
                waveform = await self._queue.handed_over(job)
                if waveform is None:
                    waveform = await self._decode_blob(job, sha256)
            window, stride = (round(s * SAMPLE_RATE) for s in (self._settings.window_s, self._settings.stride_s))
            length = min(window, len(waveform))
            starts = window_starts(len(waveform), window, stride)
            windows = await asyncio.to_thread(_loud, waveform, starts, length)
            self._samples_held += len(waveform)
        return StemWork(job=job, row=row, waveform=waveform, starts=starts, windows=windows, length=length)

    async def _decode_blob(self, job: UploadJob, sha256: str) -> NDArray[np.float32]:
        async with self._blobs.fetch(sha256) as path:
            try:
                return (await self._decoder.decode(path, nice=UPLOAD_NICE)).waveform
            except DecoderError as error:
                log.warning("decoding stem %s once more: %s", job.stem_id, error)
                return (await self._decoder.decode(path, nice=UPLOAD_NICE)).waveform

    async def _check(self, job: QueryJob) -> None:
        """Place a query's windows; every way out leaves it answered or its windows with the device."""
        try:
            length = min(job.window, len(job.waveform))
            windows = await asyncio.to_thread(_loud, job.waveform, job.starts, length)
            if len(windows):
                starts = job.starts
                self._queries.append(
                    QueryWork(job=job, waveform=job.waveform, starts=starts, windows=windows, length=length)
                )
                self._wake.set()
            else:
                dimension = await self._in_thread(lambda: self._on_device.require(job.fingerprint))
                self.figures.queries += 1
                await self._settle(self._queue.reply(job, np.zeros((len(job.starts), dimension), np.complex64)))
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
        await self._drop_expired()
        limit = self._settings.most_windows
        if self._queries and not (self._stems and self._query_batches >= QUERY_BATCHES):
            self._query_batches += 1
            self._asked_at = time.monotonic()
            batch = share_out(self._queries, limit)
            self._queries = [work for work in self._queries if work.left]
            self._room.set()
            return batch
        self._query_batches = 0
        if not self._queries and time.monotonic() - self._asked_at < LATELY_S:
            limit = max(1, limit // LATELY_SHARE)  # whoever asks next waits for one of these
        batch = share_out(self._stems, limit) if self._stems else []
        self._stems = [work for work in self._stems if work.left]
        return batch

    async def _drop_expired(self) -> None:
        for work in [work for work in self._queries if work.job.expired]:
            log.warning("dropping a query whose deadline has passed")
            self._queries.remove(work)
            await self._settle(self._queue.done(work.job))

    async def _embed_batch(self, batch: Batch) -> None:
        try:
            embedding = await self._embed(batch)
        except DeviceLost:
            raise  # of no job's making, as far as anybody knows: all stay unacknowledged
        except UnknownModel as error:
            for work, _, _ in batch:
                await self._leave(work, error)
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
                    self._spawn(self._store(work) if isinstance(work, StemWork) else self._reply(work))

    async def _embed(self, batch: Batch) -> NDArray[np.complex64]:
        def embed() -> NDArray[np.complex64]:
            cut = np.concatenate([work.cut(start, end) for work, start, end in batch])
            return self._on_device.embed(batch[0][0].job.fingerprint, cut)

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
        else:
            log.error("a query could not be embedded", exc_info=error)
            await self._settle(self._queue.fail(job, EmbedFailed(str(error) or type(error).__name__)))

    async def _fail_stem(self, work: StemWork, error: Exception) -> None:
        if isinstance(error, UnknownModel):
            log.warning("stem %s stays queued: %s", work.job.stem_id, error)
            await self._done(work.job)
        else:
            log.error("stem %s cannot be embedded", work.job.stem_id, exc_info=error)
            reason = str(error) or type(error).__name__
            said = problem(StemNotEmbedded(f"This stem could not be embedded: {reason}"))
            await self._fail(work.job, said)

    # Answering and storing.

    def _spawn(self, ending: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(ending)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _reply(self, work: Work) -> None:
        assert isinstance(work, QueryWork)
        found = np.concatenate(work.embedding)
        embedding = np.zeros((len(work.starts), found.shape[1]), np.complex64)
        embedding[work.windows] = found
        self.figures.queries += 1
        await self._settle(self._queue.reply(work.job, embedding))

    async def _store(self, work: StemWork) -> None:
        job = work.job
        starts_s = work.starts[work.windows].astype(np.float64) / SAMPLE_RATE
        embedding = np.concatenate(work.embedding)
        try:
            with self.figures.timed("store"):
                kept = await self._persist(
                    lambda: self._catalog.store_embeddings(work.row, job.fingerprint, work.windows, starts_s, embedding)
                )
            self.figures.stems += 1
            if not kept:
                log.info("stem %s was deleted meanwhile", job.stem_id)
        except Exception:
            log.exception("stem %s could not be stored and stays queued", job.stem_id)
        finally:
            await self._done(job)
            await self._free(work)

    async def _fail(self, job: UploadJob, said: dict[str, Any]) -> None:
        self.figures.stems_failed += 1
        log.warning("stem %s failed: %s", job.stem_id, said.get("detail"))
        try:
            await self._persist(lambda: self._catalog.mark_failed(job.stem_id, said, job.fingerprint))
        except Exception:
            log.exception("stem %s could not be marked as failed and stays queued", job.stem_id)
        await self._done(job)

    async def _persist(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Run it; a database that is away or locked is tried again for some seconds."""
        pause = FIRST_PAUSE_S
        for attempt in range(1, STORE_ATTEMPTS + 1):
            try:
                return await operation()
            except CatalogUnavailable as error:
                if attempt == STORE_ATTEMPTS or self._stopping.is_set():
                    raise
                log.warning("the catalog does not answer, trying again: %s", error)
            await asyncio.sleep(pause)
            pause *= 2
        raise AssertionError("the last attempt returns or raises")

    async def _done(self, job: UploadJob) -> None:
        await self._settle(self._queue.done(job))

    async def _settle(self, acknowledging: Awaitable[None]) -> None:
        """A job that cannot be acknowledged now comes again, and is found done."""
        try:
            await acknowledging
        except QueueUnavailable as error:
            log.warning("a job was done and could not be acknowledged: %s", error)

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


async def run_worker(settings: Settings, slot: int | None = None) -> None:
    """A worker process from start to SIGTERM or SIGINT.

    `slot` numbers the workers that one supervisor keeps on this machine: a worker started again in the same slot goes
    on with what its predecessor left.
    """
    catalog = await Catalog.open(settings.resolved_database_url)
    queue = open_queue(settings, consumer_name(slot, settings.data_folder))
    try:
        async with Decoder(DecodeLimits.of(settings)) as decoder:
            worker = Worker(settings, catalog, Blobs(settings.resolved_blob_url), queue, decoder, slot or 0)
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, worker.stop)
            await worker.run()
    finally:
        await queue.aclose()
        await catalog.close()


def _loud(waveform: NDArray[np.float32], starts: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Indices of the windows that are not silent, int64. Raises ValueError where a window leaves the waveform."""
    if len(starts) and not (starts.min() >= 0 and starts.max() + length <= len(waveform)):
        raise ValueError(f"windows of {length} samples leave a waveform of {len(waveform)}")
    loud = [index for index, start in enumerate(starts) if not is_silent(waveform[start : start + length])]
    return np.array(loud, np.int64)


NO_MEMORY = ("can't allocate memory", "_ALLOC_FAILED", "CUDA error: out of memory")
"""How it is said in words: by torch's allocator on a CPU, by cuFFT, cuBLAS and cuDNN, and by CUDA itself."""


def _out_of_memory(error: BaseException) -> bool:
    """torch has an error of its own for its allocator on a card only; all others say it in words."""
    in_words = isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or in_words


def about(device: torch.device) -> dict[str, str]:
    """What /readyz and /metrics say of a worker's device."""
    facts = facts_of(device)
    return {"device": facts.name, "driver": facts.driver}
