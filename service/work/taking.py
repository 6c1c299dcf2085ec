"""The worker's side of the queue: take a micro-batch, keep it, answer it, take over what a dead worker left."""

import asyncio
import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.audio import Windows
from service.work.jobs import (
    EmbedFailed,
    FingerprintMismatch,
    Job,
    Kind,
    NoMemory,
    Poisoned,
    QueryJob,
    UploadJob,
    WorkersLost,
)
from service.work.streams import GROUP, QueueUnavailable, Streams

log = logging.getLogger("phalar.queue")

BLOCK_S = 2.0  # well under ANSWER_S, which would cut a blocking command short
REPLY_TTL_S = 60
STATS_TTL_S = 120
ASK_TIME_S = 10.0  # how often the server is asked for its time; in between, our clock tells it
REAP_AFTER_S = 600.0  # a consumer that has been silent this long and owes nothing is forgotten


class Taking(Streams):
    """Only a queue with a `consumer` takes jobs."""

    async def take(self, count: int, block_ms: int, *, uploads: bool = True, queries: bool = True) -> list[Job]:
        """The next jobs: at most one query (the other workers may be idle), then at most `count` uploads.

        A job that an earlier worker left unfinished comes alone: no upload is handed out beside it until it is done.
        Returns an empty list after `block_ms` without a job (at most 2 s); 0 does not wait. Where Redis goes after a
        job was read, that one is returned; without one it raises QueueUnavailable.
        """
        waiting_alone, left_over = await self._take_left_over(uploads)
        if left_over:
            return left_over
        wanted: dict[Kind, int] = {}
        if queries:
            wanted["queries"] = 1
        if uploads and not waiting_alone and self._alone is None:
            wanted["uploads"] = count
        jobs: list[Job] = []
        for kind, most in wanted.items():
            try:
                jobs += await self._read([kind], most, 0)
            except QueueUnavailable:
                if not jobs:
                    raise
                return jobs  # they are in hand; the next call says that Redis is away
        if jobs or not block_ms:
            return jobs
        if not wanted:
            await asyncio.sleep(block_ms / 1000)
            return []
        return await self._read(list(wanted), 1, block_ms)  # one limit holds for both streams

    async def handed_over(self, sha256: str) -> NDArray[np.float32] | None:
        """The waveform that was left for this audio, float32 (samples,): for one worker, within a minute; else None."""
        samples = await self._call(self._redis.getdel, self._waveform_key(sha256))
        return None if samples is None else np.frombuffer(samples, "<f4").astype(np.float32)

    async def done(self, job: Job) -> None:
        """Acknowledge and delete: the job will never be delivered again.

        Where Redis cannot be told, it is no longer in hand all the same, and is delivered again as a left-over.
        """
        held = job.job if isinstance(job, Poisoned) else job
        try:
            await self._forget(held.kind, held.entry)
        finally:
            self._drop(held)

    async def abandoned(self, jobs: Sequence[QueryJob]) -> list[QueryJob]:
        """Those of some queries in hand that their callers have taken back."""

        stream = self._streams["queries"]
        known = [await self._call(self._known, keys=[stream, job.reply_to], args=[job.entry]) for job in jobs]
        return [job for job, found in zip(jobs, known, strict=True) if not found]

    async def reply(self, job: QueryJob, embedding: NDArray[np.complex64]) -> None:
        """Send a query's embeddings, complex64 (q, 512), and be done with the job."""
        header = {"shape": embedding.shape}
        await self._send(job, header, np.ascontiguousarray(embedding, dtype="<c8").tobytes())

    async def fail(self, job: QueryJob, error: EmbedFailed | FingerprintMismatch | NoMemory | WorkersLost) -> None:
        """Tell a query's caller why there will be no answer, and be done with the job."""
        if isinstance(error, FingerprintMismatch):
            await self._send(job, {"error": "fingerprint-mismatch", "held": error.held}, b"")
        elif isinstance(error, WorkersLost):
            await self._send(job, {"error": "workers-lost"}, b"")
        elif isinstance(error, NoMemory):
            await self._send(job, {"error": "no-memory"}, b"")
        else:
            await self._send(job, {"error": "embed-failed", "reason": error.reason}, b"")

    async def release(self) -> None:
        """Give back what is in hand as if it had never been delivered; another worker may take it at once.

        For a worker that stops in good order: its unfinished jobs have killed nobody.
        """
        idle_ms = math.ceil(self._claim_after_s * 1000)
        for kind, jobs in self._in_hand.items():
            for job in list(jobs.values()):
                give_back: dict[str, Any] = {"idle": idle_ms, "retrycount": job.deliveries - 1, "justid": True}
                await self._with_groups(
                    self._redis.xclaim, self._streams[kind], GROUP, self._consumer, 0, [job.entry], **give_back
                )
                self._drop(job)
            await self._run(self._reap, kind, 0, "", self._consumer)
        await self._call(self._redis.delete, self._stats_key(self._consumer))

    async def beat(self, stats: Mapping[str, float]) -> None:
        """Say that the jobs in hand are being worked on, and report; at least every third of `claim_after_s`."""
        for kind, jobs in self._in_hand.items():
            if jobs:
                await self._run(self._refresh, kind, self._consumer, *jobs)

        fields: dict[Any, Any] = dict(stats)

        async def report() -> None:
            pipeline = self._redis.pipeline(transaction=False)
            pipeline.hset(self._stats_key(self._consumer), mapping=fields)
            pipeline.expire(self._stats_key(self._consumer), STATS_TTL_S)
            pipeline.sadd(self._workers_key, self._consumer)
            await pipeline.execute()

        if stats:
            await self._call(report)

    @property
    def in_hand(self) -> int:
        """Uploads that were taken and are not done."""
        return len(self._in_hand["uploads"])

    async def _take_left_over(self, uploads: bool) -> tuple[bool, list[Job]]:
        """One job that nobody works on any more; True when it is an upload that waits for those in hand."""
        now = time.monotonic()
        if now < self._reclaim_at:
            return False, []
        if found := await self._claim("queries"):
            return False, found
        if self._in_hand["uploads"] or not uploads:
            if await self._run(self._reclaim, "uploads", *self._reclaim_args("uploads", peek=True)):
                return True, []
        elif found := await self._claim("uploads"):
            return False, found
        self._reclaim_at = now + self._claim_after_s / 4
        for kind in self._streams:
            await self._run(self._reap, kind, math.ceil(REAP_AFTER_S * 1000), self._consumer, "")
        return False, []

    async def _claim(self, kind: Kind) -> list[Job]:
        while claimed := await self._run(self._reclaim, kind, *self._reclaim_args(kind, peek=False)):
            entry, earlier, flat = claimed
            poisoned = int(earlier) >= self._max_deliveries
            fields = dict(zip(flat[::2], flat[1::2], strict=True))
            parsed = await self._parse(kind, [(entry, fields)], int(earlier) if poisoned else int(earlier) + 1)
            for job in parsed:
                if not poisoned and kind == "uploads":
                    self._alone = job.entry
                return [Poisoned(job) if poisoned else job]
        return []

    def _reclaim_args(self, kind: Kind, peek: bool) -> list[str | int]:
        idle_ms, age_ms = math.ceil(self._claim_after_s * 1000), int((time.monotonic() - self._opened_at) * 1000)
        return [self._consumer, idle_ms, int(peek), age_ms, *self._in_hand[kind]]

    async def _read(self, kinds: list[Kind], count: int, block_ms: int) -> list[Job]:
        streams: dict[Any, Any] = {self._streams[kind]: ">" for kind in kinds}
        block = min(block_ms, int(BLOCK_S * 1000)) or None
        answer = await self._with_groups(
            self._redis.xreadgroup, GROUP, self._consumer, streams, count=count, block=block
        )
        entries = {name.decode(): found for name, found in answer or []}
        jobs: list[Job] = []
        for kind in kinds:
            jobs += await self._parse(kind, entries.get(self._streams[kind], []), 1)
        return jobs

    async def _parse(
        self, kind: Kind, entries: list[tuple[bytes, dict[bytes, bytes]]], deliveries: int
    ) -> list[UploadJob | QueryJob]:
        """Entries as jobs. One that no worker can read, or that nobody waits for, is deleted here."""
        jobs: list[UploadJob | QueryJob] = []
        server_ms = await self._server_ms() if kind == "queries" and entries else 0.0
        for raw, fields in entries:
            entry = raw.decode()
            job: UploadJob | QueryJob
            try:
                if kind == "uploads":
                    job = UploadJob(entry, fields[b"stem_id"].decode(), fields[b"fingerprint"].decode(), deliveries)
                else:
                    # Both times are the server's, so clocks of two machines need not agree.
                    age_ms = max(0.0, server_ms - int(entry.split("-")[0]))
                    job = QueryJob(
                        entry,
                        fields[b"reply_to"].decode(),
                        fields[b"fingerprint"].decode(),
                        np.frombuffer(fields[b"waveform"], "<f4").astype(np.float32),
                        _laid(fields),
                        time.monotonic() + (int(fields[b"ttl_ms"]) - age_ms) / 1000,
                        deliveries,
                        fields.get(b"who", b"").decode(),
                    )
            except (KeyError, ValueError) as error:
                log.error("dropping entry %s of %s, which no worker can read: %r", entry, kind, error)
                await self._refuse(kind, entry)
                continue
            if isinstance(job, QueryJob) and job.expired:
                log.warning("dropping a query that waited past its deadline")
                await self._refuse(kind, entry)
                continue
            self._in_hand[kind][entry] = job
            jobs.append(job)
        return jobs

    async def _refuse(self, kind: Kind, entry: str) -> None:
        """Delete an entry that is not taken in hand. While Redis is away it stays, comes again, and keeps no other."""
        try:
            await self._forget(kind, entry)
        except QueueUnavailable as error:
            log.warning("entry %s of %s stays, and will come again: %s", entry, kind, error)

    async def _server_ms(self) -> float:
        """What the server's clock says, by ours since it was last asked, which was lately."""
        now = time.monotonic()
        if now >= self._ask_time_at:
            seconds, microseconds = await self._call(self._redis.time)
            now = time.monotonic()
            self._server_ahead_s = seconds + microseconds / 1e6 - now
            self._ask_time_at = now + ASK_TIME_S
        return (now + self._server_ahead_s) * 1000

    async def _send(self, job: QueryJob, header: Mapping[str, object], body: bytes) -> None:
        message = json.dumps(header).encode() + b"\n" + body

        async def send() -> None:
            pipeline = self._redis.pipeline(transaction=True)
            pipeline.rpush(job.reply_to, message)
            pipeline.expire(job.reply_to, REPLY_TTL_S)
            pipeline.xack(self._streams["queries"], GROUP, job.entry)
            pipeline.xdel(self._streams["queries"], job.entry)
            await pipeline.execute()

        try:
            await self._call(send)
        finally:
            self._drop(job)

    def _drop(self, job: UploadJob | QueryJob) -> None:
        self._in_hand[job.kind].pop(job.entry, None)
        if self._alone == job.entry:
            self._alone = None


def _laid(fields: Mapping[bytes, bytes]) -> Windows:
    """The windows that `Queue.embed` wrote down."""
    starts, lengths = np.frombuffer(fields[b"spans"], "<i8").astype(np.int64).reshape(2, -1)
    frames, inner, semitones = (int(fields[name]) for name in (b"frames", b"inner", b"semitones"))
    laid = Windows(starts, lengths, frames or None, inner or None, semitones)
    if frames == 0 and len(np.unique(lengths)) > 1:
        raise ValueError("windows in clock time are of one length")
    return laid
