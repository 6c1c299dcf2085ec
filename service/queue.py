"""Redis Streams between the API and the workers: submit, take a micro-batch, acknowledge, claim.

The queue is transport, not truth: whatever it forgets, a sweep over the catalog enqueues again. Two streams, queries
before uploads, one consumer group. An entry is deleted when its job is done, so a stream's length is
what is outstanding.

The delivery count is the evidence against a job that kills its worker. A fresh micro-batch counts one for each of its
jobs; afterwards each is delivered again alone, so a count of two or more was earned by that job and no other. See
docs/decisions/queue-claims-one-job-at-a-time.md.
"""

import asyncio
import hashlib
import json
import logging
import math
import os
import socket
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.commands.core import AsyncScript
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MasterDownError, OutOfMemoryError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.settings import Settings

log = logging.getLogger("phalar.queue")

Kind = Literal["uploads", "queries"]

GROUP = "workers"
NO_GROUP = ("NOGROUP", "no such key", "UNBLOCKED")  # the last: the stream went while a worker waited on it
ANSWER_S = 5.0  # a command without an answer for so long has none to expect
BLOCK_S = 2.0  # well under it, or it would cut a blocking command short
RETRY_S = 5.0  # a killed Valkey is back within a second; a file it must load takes a few
NO_ANSWER = (RedisConnectionError, RedisTimeoutError, TimeoutError)
TAKES_NOTHING = (ReadOnlyError, MasterDownError, OutOfMemoryError)
REPLY_TTL_S = 60
HANDED_OVER_TTL_S = 60  # a waveform that no worker has fetched by then is decoded again
RETRY_AFTER_S: dict[Kind, float] = {"uploads": 10.0, "queries": 1.0}
STATS_TTL_S = 120
ASK_TIME_S = 10.0  # how long the server's clock is taken to go as ours does
REAP_AFTER_S = 600.0  # a consumer that has been silent this long and owes nothing is forgotten


class QueueError(Exception):
    """The queue could not do what it was asked."""


class QueueFull(QueueError):
    """The stream holds as many jobs as it may."""

    def __init__(self, kind: Kind, depth: int, limit: int, retry_after_s: float) -> None:
        super().__init__(f"{depth} {kind} are waiting and {limit} are allowed; try again in {retry_after_s:g} s")
        self.kind = kind
        self.depth = depth
        self.limit = limit
        self.retry_after_s = retry_after_s


class QueueUnavailable(QueueError):
    """Redis cannot be reached, or takes nothing, although it was tried again for a few seconds."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the queue cannot be reached: {reason}")
        self.reason = reason


class EmbedTimeout(QueueError):
    """No worker answered a query in time."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"no worker embedded the query within {seconds:g} s")
        self.seconds = seconds


class EmbedFailed(QueueError):
    """A worker took the query and could not embed it."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the query could not be embedded: {reason}")
        self.reason = reason


class FingerprintMismatch(QueueError):
    """The workers do not hold the model that a job asks for."""

    def __init__(self, wanted: str, held: Iterable[str]) -> None:
        self.wanted = wanted
        self.held = tuple(held)
        super().__init__(f"the job asks for model {wanted[:16]}, the worker holds {[h[:16] for h in self.held]}")


@dataclass(frozen=True)
class UploadJob:
    """Embed a stem's windows with the model of this fingerprint."""

    entry: str
    stem_id: str
    fingerprint: str
    deliveries: int = 1

    kind: Literal["uploads"] = "uploads"


@dataclass(frozen=True, eq=False)
class QueryJob:
    """Embed windows of one waveform and send them back.

    `waveform` float32 (samples,) at 16 kHz; `starts` int64 (q,), samples; `window` samples; `expires` in the
    seconds of this machine's monotonic clock.
    """

    entry: str
    reply_to: str
    fingerprint: str
    waveform: NDArray[np.float32]
    starts: NDArray[np.int64]
    window: int
    expires: float
    deliveries: int = 1

    kind: Literal["queries"] = "queries"

    @property
    def expired(self) -> bool:
        return time.monotonic() >= self.expires


@dataclass(frozen=True)
class Poisoned:
    """A job that has killed its worker as often as it may; to be failed with a reason, never run again."""

    job: UploadJob | QueryJob

    @property
    def reason(self) -> str:
        times = {1: "once", 2: "twice"}.get(self.job.deliveries, f"{self.job.deliveries} times")
        return f"killed its worker {times}"


Job = UploadJob | QueryJob | Poisoned


# Every script touches one stream (and a key that belongs to it), atomically.

# KEYS stream; ARGV limit, kept 0|1, field, value, ... -> {1, entry} or {0, depth}
# What need not be kept stands in no journal and in no replica: a query is half a megabyte, and whoever asked it asks
# again when it is lost.
_SUBMIT = """
local depth = redis.call('XLEN', KEYS[1])
if depth >= tonumber(ARGV[1]) then return {0, depth} end
if ARGV[2] == '0' then redis.set_repl(redis.REPL_NONE) end
return {1, redis.call('XADD', KEYS[1], '*', unpack(ARGV, 3))}
"""

# KEYS stream; ARGV group, consumer, idle ms, peek 0|1, age ms, entries in hand ...
#   -> {} or {entry, earlier deliveries, fields}
# First what this consumer left unfinished in an earlier life, then what any consumer has left idle.
# What it was given in this life (within its age) and has not in hand, it never saw: the answer was lost with a
# connection. That delivery is no evidence against the job, and this one takes its place.
# An entry that was deleted meanwhile leaves the pending list by being claimed, and the next one is looked at.
_RECLAIM = """
local in_hand = {}
for i = 6, #ARGV do in_hand[ARGV[i]] = true end
local more = #ARGV + 16
local own = redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', more, ARGV[2])
local idle = redis.call('XPENDING', KEYS[1], ARGV[1], 'IDLE', ARGV[3], '-', '+', more)
for _, pending in ipairs({own, idle}) do
  for _, p in ipairs(pending) do
    if not in_hand[p[1]] then
      if ARGV[4] == '1' then return {p[1], p[4], {}} end
      local earlier = p[4]
      if p[2] == ARGV[2] and p[3] < tonumber(ARGV[5]) then earlier = math.max(earlier - 1, 0) end
      local claimed = redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, p[1], 'RETRYCOUNT', earlier + 1)
      if #claimed > 0 then return {p[1], earlier, claimed[1][2]} end
    end
  end
end
return {}
"""

# KEYS stream; ARGV group, consumer, entries ...: resets the idle time of those that are still this consumer's
_REFRESH = """
local kept = 0
for i = 3, #ARGV do
  if #redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2]) > 0 then
    kept = kept + #redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'JUSTID')
  end
end
return kept
"""

# KEYS stream; ARGV group, idle ms, consumer to keep ('' for none), only this consumer ('' for all) -> deleted
# Deleting a consumer deletes its pending entries, so looking and deleting must be one step.
_REAP = """
local deleted = 0
for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local c = {}
  for i = 1, #info, 2 do c[info[i]] = info[i + 1] end
  local meant = c['name'] ~= ARGV[3] and (ARGV[4] == '' or c['name'] == ARGV[4])
  if meant and c['pending'] == 0 and c['idle'] >= tonumber(ARGV[2]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], c['name'])
    deleted = deleted + 1
  end
end
return deleted
"""

# KEYS waveform; ARGV samples, seconds to keep them. They are large and may be lost: no journal, no replica has them.
_HAND_OVER = """
redis.set_repl(redis.REPL_NONE)
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
"""

# KEYS stream, reply; ARGV entry -> 1 while the job or its reply exists
_KNOWN = """
if redis.call('EXISTS', KEYS[2]) == 1 then return 1 end
return #redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])
"""


def connect(url: str, ca: Path | None = None) -> Redis:
    """A client whose commands fail at once when Redis is away; `Queue` decides what is tried again, and for how long.

    Args:
        url: `redis://`, `rediss://` (TLS) or `unix://`; a password stands in it as in any URL.
        ca: certificates of the authority that a `rediss://` server's is from; None: those that the system trusts.

    redis-py would wait with asyncio.wait_for, which before Python 3.12 may swallow a cancellation.
    """
    tls: dict[str, Any] = {"ssl_ca_certs": str(ca)} if ca is not None and url.startswith("rediss:") else {}
    return Redis.from_url(
        url,
        protocol=2,
        socket_timeout=None,
        socket_connect_timeout=2.0,
        retry=Retry(NoBackoff(), 0),
        max_connections=2**16,
        **tls,
    )


def open_queue(settings: Settings, consumer: str | None = None) -> "Queue":
    """The queue of one installation; `consumer` names the worker that will take jobs from it."""
    return Queue(
        connect(settings.resolved_redis_url, settings.redis_ca),
        prefix=settings.redis_prefix,
        max_uploads=settings.max_queued_uploads,
        max_queries=settings.max_queued_queries,
        max_deliveries=settings.max_deliveries,
        claim_after_s=settings.claim_after_s,
        consumer=consumer,
    )


def consumer_name(slot: int | None, data: Path) -> str:
    """A worker's name: stable for a supervised slot, so that it finds its own unfinished jobs after a crash.

    Two workers of one name would take each other's jobs. On one host a supervisor is alone in its data folder; a worker
    without one gets a name that nobody has: in containers that share a host's name, process ids repeat.
    """
    if slot is None:
        return f"{socket.gethostname()}:{uuid.uuid4().hex[:12]}"
    folder = hashlib.sha256(os.fsencode(data)).hexdigest()[:8]
    return f"{socket.gethostname()}:{folder}:slot{slot}"


class Queue:
    """Both sides of the queue; only a queue with a `consumer` takes jobs."""

    def __init__(
        self,
        redis: Redis,
        prefix: str,
        max_uploads: int,
        max_queries: int,
        max_deliveries: int,
        claim_after_s: float,
        consumer: str | None = None,
        retry_s: float = RETRY_S,
    ) -> None:
        self.consumer = consumer
        self._redis = redis
        self._prefix = prefix
        self._limits: dict[Kind, int] = {"uploads": max_uploads, "queries": max_queries}
        self._streams: dict[Kind, str] = {"uploads": f"{prefix}:uploads", "queries": f"{prefix}:queries"}
        self._max_deliveries = max_deliveries
        self._claim_after_s = claim_after_s
        self._retry_s = retry_s
        self._submit = redis.register_script(_SUBMIT)
        self._reclaim = redis.register_script(_RECLAIM)
        self._refresh = redis.register_script(_REFRESH)
        self._reap = redis.register_script(_REAP)
        self._hand_over = redis.register_script(_HAND_OVER)
        self._known = redis.register_script(_KNOWN)
        self._in_hand: dict[Kind, dict[str, UploadJob | QueryJob]] = {"uploads": {}, "queries": {}}
        self._alone: str | None = None
        self._opened_at = time.monotonic()
        self._reclaim_at = 0.0
        self._ask_time_at = 0.0
        self._server_ahead_s = 0.0
        self._background: set[asyncio.Task[None]] = set()

    # The API's side.

    async def ping(self) -> None:
        """Return when Redis answers; QueueUnavailable when it does not."""
        await self._call(self._redis.ping)

    async def submit_upload(self, stem_id: str, fingerprint: str, waveform: NDArray[np.float32] | None = None) -> None:
        """Ask for a stem to be embedded. Asking twice is harmless: the second job finds it done.

        Args:
            stem_id: of the catalog.
            fingerprint: of the model.
            waveform: the stem's, float32 (samples,), 16 kHz, for the first worker that asks within a minute; whoever
                finds none decodes the stem's audio.

        Raises:
            QueueFull: as many uploads are outstanding as may be.
            QueueUnavailable: Redis is away.
        """
        if waveform is not None:
            samples = np.ascontiguousarray(waveform, dtype="<f4").tobytes()
            await self._call(self._hand_over, keys=[self._waveform_key(stem_id)], args=[samples, HANDED_OVER_TTL_S])
        await self._add("uploads", {"stem_id": stem_id, "fingerprint": fingerprint})

    async def embed(
        self,
        fingerprint: str,
        waveform: NDArray[np.float32],
        starts: NDArray[np.int64],
        window: int,
        deadline_s: float,
    ) -> NDArray[np.complex64]:
        """Have a worker embed windows of a waveform, before all uploads.

        Args:
            fingerprint: the model that must embed.
            waveform: float32 (samples,), 16 kHz; sent once, however many windows overlap in it.
            starts: int64 (q,), first samples of the windows.
            window: samples per window.
            deadline_s: seconds from now after which nobody wants the answer; a worker drops the job then.

        Returns:
            complex64 (q, 512) of unit norm; a silent window's row is zero, so it scores 0 with everything.

        Raises:
            QueueFull, EmbedTimeout, EmbedFailed, FingerprintMismatch, QueueUnavailable.
        """
        deadline = time.monotonic() + deadline_s
        reply_to = f"{self._prefix}:reply:{uuid.uuid4().hex}"
        fields: dict[str, str | int | bytes] = {
            "reply_to": reply_to,
            "fingerprint": fingerprint,
            "window": window,
            "waveform": np.ascontiguousarray(waveform, dtype="<f4").tobytes(),
            "starts": np.ascontiguousarray(starts, dtype="<i8").tobytes(),
        }
        entry: str | None = None
        try:
            while True:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise EmbedTimeout(deadline_s)
                if entry is None:
                    entry = await self._add("queries", {**fields, "ttl_ms": math.ceil(left * 1000)})
                block = max(0.01, min(BLOCK_S, left))
                popped = await self._call(self._redis.blpop, [reply_to], timeout=block)
                if popped is not None:
                    entry = None  # the worker has deleted it together with its reply
                    return _parse_reply(popped[1], fingerprint, len(starts))
                if not await self._call(self._known, keys=[self._streams["queries"], reply_to], args=[entry]):
                    log.warning("the queue lost a query, submitting it again")
                    entry = None
        finally:
            if entry is not None:
                self._in_background(self._forget("queries", entry, reply_to))

    async def outstanding_uploads(self) -> set[str]:
        """Ids of the stems that wait or are being embedded."""
        found: set[str] = set()
        start = "-"
        while True:
            page = await self._call(self._redis.xrange, self._streams["uploads"], min=start, max="+", count=1000)
            found.update(fields[b"stem_id"].decode() for _, fields in page if b"stem_id" in fields)
            if len(page) < 1000:
                return found
            start = f"({page[-1][0].decode()}"

    async def depths(self) -> dict[Kind, int]:
        """How many jobs of each kind wait or are being worked on."""

        async def lengths() -> list[int]:
            pipeline = self._redis.pipeline(transaction=False)
            for stream in self._streams.values():
                pipeline.xlen(stream)
            return await pipeline.execute()

        return dict(zip(self._streams, await self._call(lengths), strict=True))

    async def worker_stats(self) -> dict[str, dict[str, float | str]]:
        """What each worker that lives has reported with its last beat, by its name: numbers, and words."""
        names = await self._call(self._redis.smembers, self._workers_key)
        stats: dict[str, dict[str, float | str]] = {}
        for name in sorted(name.decode() for name in names):
            reported = await self._call(self._redis.hgetall, self._stats_key(name))
            if reported:
                stats[name] = {field.decode(): _number_or_words(value) for field, value in reported.items()}
            else:
                await self._call(self._redis.srem, self._workers_key, name)
        return stats

    async def aclose(self) -> None:
        """Wait for removals under way and close the connections."""
        if self._background:
            await asyncio.wait(self._background, timeout=2 * ANSWER_S)
        await self._redis.aclose()

    # The worker's side.

    async def take(self, count: int, block_ms: int, *, uploads: bool = True, queries: bool = True) -> list[Job]:
        """The next jobs: at most one query (the other workers may be idle), then at most `count` uploads.

        A job that an earlier worker left unfinished comes alone: no upload is handed out beside it until it is done.
        Returns an empty list after `block_ms` without a job (at most 2 s); 0 does not wait.
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
            jobs += await self._read([kind], most, 0)
        if jobs or not block_ms:
            return jobs
        if not wanted:
            await asyncio.sleep(block_ms / 1000)
            return []
        return await self._read(list(wanted), 1, block_ms)  # one limit holds for both streams

    async def handed_over(self, job: UploadJob) -> NDArray[np.float32] | None:
        """The waveform that was sent with a stem, float32 (samples,): for one worker, within a minute; else None."""
        samples = await self._call(self._redis.getdel, self._waveform_key(job.stem_id))
        return None if samples is None else np.frombuffer(samples, "<f4").astype(np.float32)

    async def done(self, job: Job) -> None:
        """Acknowledge and delete: the job will never be delivered again.

        It is no longer in hand even when Redis cannot be told: then it comes again, as one that was left over.
        """
        held = job.job if isinstance(job, Poisoned) else job
        try:
            await self._forget(held.kind, held.entry)
        finally:
            self._drop(held)

    async def reply(self, job: QueryJob, embedding: NDArray[np.complex64]) -> None:
        """Send a query's embeddings, complex64 (q, 512), and be done with the job."""
        header = {"shape": embedding.shape}
        await self._send(job, header, np.ascontiguousarray(embedding, dtype="<c8").tobytes())

    async def fail(self, job: QueryJob, error: EmbedFailed | FingerprintMismatch) -> None:
        """Tell a query's caller why there will be no answer, and be done with the job."""
        if isinstance(error, FingerprintMismatch):
            await self._send(job, {"error": "fingerprint-mismatch", "held": error.held}, b"")
        else:
            await self._send(job, {"error": "embed-failed", "reason": error.reason}, b"")

    async def release(self) -> None:
        """Give back what is in hand as if it had never been delivered; another worker may take it at once.

        For a worker that ends in good order: its unfinished jobs have nothing to answer for.
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

    async def beat(self, stats: Mapping[str, float | str]) -> None:
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
                        np.frombuffer(fields[b"starts"], "<i8").astype(np.int64),
                        int(fields[b"window"]),
                        time.monotonic() + (int(fields[b"ttl_ms"]) - age_ms) / 1000,
                        deliveries,
                    )
            except (KeyError, ValueError) as error:
                log.error("dropping entry %s of %s, which no worker can read: %r", entry, kind, error)
                await self._forget(kind, entry)
                continue
            if isinstance(job, QueryJob) and job.expired:
                log.warning("dropping a query that waited past its deadline")
                await self._forget(kind, entry)
                continue
            self._in_hand[kind][entry] = job
            jobs.append(job)
        return jobs

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

    # Both sides.

    async def _add(self, kind: Kind, fields: Mapping[str, str | int | bytes]) -> str:
        flat = [part for pair in fields.items() for part in pair]
        limit = self._limits[kind]
        accepted, value = await self._call(
            self._submit, keys=[self._streams[kind]], args=[limit, int(kind == "uploads"), *flat]
        )
        if not accepted:
            raise QueueFull(kind, int(value), limit, RETRY_AFTER_S[kind])
        return str(value.decode())

    async def _forget(self, kind: Kind, entry: str, reply_to: str | None = None) -> None:
        async def forget() -> None:
            pipeline = self._redis.pipeline(transaction=True)
            pipeline.xack(self._streams[kind], GROUP, entry)
            pipeline.xdel(self._streams[kind], entry)
            if reply_to is not None:
                pipeline.delete(reply_to)
            await pipeline.execute()

        await self._call(forget)

    async def _run(self, script: AsyncScript, kind: Kind, *args: str | int) -> Any:
        """Run a script of the worker's side on one stream."""
        return await self._with_groups(script, keys=[self._streams[kind]], args=[GROUP, *args])

    async def _with_groups(self, command: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        """Run it; where the group is unknown (a new or flushed Redis), create the groups and run it again."""
        try:
            return await self._call(command, *args, **kwargs)
        except ResponseError as error:
            if not any(words in str(error) for words in NO_GROUP):
                raise
        for stream in self._streams.values():
            try:
                # From the first entry on: those added before the group must be delivered too.
                await self._call(self._redis.xgroup_create, stream, GROUP, id="0", mkstream=True)
            except ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise
        return await self._call(command, *args, **kwargs)

    async def _call(self, command: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        """Run it; while Redis is away, try again for a few seconds. What Redis answers has no useful type."""
        deadline = time.monotonic() + self._retry_s
        pause = 0.02
        while True:
            try:
                async with asyncio.timeout(ANSWER_S):
                    return await command(*args, **kwargs)
            except (*NO_ANSWER, ResponseError) as error:
                if isinstance(error, ResponseError) and not _takes_nothing(error):
                    raise
                if isinstance(error, ReadOnlyError):
                    await self._redis.connection_pool.disconnect(inuse_connections=False)  # another is the master now
                if time.monotonic() + pause > deadline:
                    raise QueueUnavailable(str(error) or "it does not answer") from error
                log.debug("Redis is away, trying again: %s", error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.5)

    def _in_background(self, work: Awaitable[None]) -> None:
        """Run to the end what a cancelled caller can no longer wait for."""

        async def run() -> None:
            try:
                await work
            except (QueueError, RedisError) as error:
                log.warning("a query that nobody waits for stays until its deadline: %s", error)

        task = asyncio.create_task(run())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    @property
    def _consumer(self) -> str:
        assert self.consumer is not None, "only a queue with a consumer takes jobs"
        return self.consumer

    @property
    def _workers_key(self) -> str:
        return f"{self._prefix}:workers"

    def _waveform_key(self, stem_id: str) -> str:
        return f"{self._prefix}:waveform:{stem_id}"

    def _stats_key(self, consumer: str) -> str:
        return f"{self._prefix}:worker:{consumer}"


def _parse_reply(message: bytes, fingerprint: str, windows: int) -> NDArray[np.complex64]:
    header_line, _, body = message.partition(b"\n")
    header = json.loads(header_line)
    if header.get("error") == "fingerprint-mismatch":
        raise FingerprintMismatch(fingerprint, header["held"])
    if "error" in header:
        raise EmbedFailed(header["reason"])
    embedding = np.frombuffer(body, "<c8").reshape(header["shape"]).astype(np.complex64)
    if len(embedding) != windows:
        raise EmbedFailed(f"{windows} windows were asked for and {len(embedding)} came back")
    return embedding


def _takes_nothing(error: ResponseError) -> bool:
    """Whether the answer says nothing of the command: Redis follows another master, or has no memory or disk left."""
    return isinstance(error, TAKES_NOTHING) or "MISCONF" in str(error)  # a pipeline puts its own words before it


def _number_or_words(value: bytes) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value.decode()
