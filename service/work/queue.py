"""Redis Streams between the API and the workers: submit, take a micro-batch, acknowledge, claim.

The queue is transport, not truth: a sweep over the catalog queues again what it forgot. There are two streams, queries
before uploads, and one consumer group. A job that is done is deleted, so a stream's length is what is outstanding.

Which job kills its worker shows in its delivery count. A micro-batch counts one delivery for each of its jobs; if the
worker dies, each is delivered again alone, so a second death is the fault of that one job. See
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
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from redis.exceptions import RedisError

from model.audio import Windows
from service.settings import Settings
from service.work.jobs import EmbedFailed, FingerprintMismatch, Kind, NoMemory, QueueError, WorkersLost
from service.work.streams import connect
from service.work.taking import BLOCK_S, Taking
from service.work.turns import LATELY_S

log = logging.getLogger("phalar.queue")

TICKET_S = int(3 * BLOCK_S)  # of a query that lives; whoever asks holds it for longer each BLOCK_S
ASK_AGAIN_S = 0.03  # a caller that has its share of the stream
HANDED_OVER_TTL_S = 60  # a waveform that no worker has fetched by then is decoded again


@dataclass(frozen=True)
class Share:
    """A caller, and how many jobs it may have in the stream of queries while others have come lately: in all, however
    many API processes it asks."""

    who: str
    most: int


class EmbedTimeout(QueueError):
    public = "No worker embedded the query within {seconds:g} s."
    seconds: float


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

    Two workers of one name would take each other's jobs. Host, data folder and slot are one supervisor's; a worker
    without a slot gets a random name, since process ids repeat in containers that share a host's name.
    """
    if slot is None:
        return f"{socket.gethostname()}:{uuid.uuid4().hex[:12]}"
    folder = hashlib.sha256(os.fsencode(data)).hexdigest()[:8]
    return f"{socket.gethostname()}:{folder}:slot{slot}"


class Queue(Taking):
    """Both sides of the queue: the API submits, asks and looks; a worker takes."""

    async def ping(self) -> None:
        """Return when Redis answers; QueueUnavailable when it does not."""
        await self._call(self._redis.ping)

    async def hand_over(self, sha256: str, waveform: NDArray[np.float32]) -> None:
        """Leave the waveform of some audio, float32 (samples,), 16 kHz, for the first worker that asks for it within a
        minute; whoever finds none decodes the audio. Raises QueueUnavailable."""
        samples = np.ascontiguousarray(waveform, dtype="<f4").tobytes()
        await self._call(self._hand_over, keys=[self._waveform_key(sha256)], args=[samples, HANDED_OVER_TTL_S])

    async def submit_upload(self, stem_id: str, fingerprint: str) -> None:
        """Ask for a stem to be embedded, by the model of this fingerprint. Asking twice is harmless: the second job
        finds it done.

        Raises:
            QueueFull: as many uploads are outstanding as may be.
            QueueUnavailable: Redis is away.
        """
        await self._add("uploads", {"stem_id": stem_id, "fingerprint": fingerprint})

    async def embed(
        self,
        fingerprint: str,
        waveform: NDArray[np.float32],
        laid: Windows,
        deadline_s: float,
        share: "Share | None" = None,
    ) -> NDArray[np.complex64]:
        """Have a worker embed windows of a waveform, before all uploads.

        Args:
            fingerprint: the model that must embed.
            waveform: float32 (samples,), 16 kHz; sent once, however many windows overlap in it.
            laid: q windows of it.
            deadline_s: seconds from now after which nobody wants the answer; a worker drops the job then.
            share: of whom; the job waits, outside the stream, while it has its share there.

        Returns:
            complex64 (q, 512) of unit norm, or (q, 512 m) where each window has m inner ones or keys; a silent window's
            row is zero, so it scores 0 with everything.

        Raises:
            QueueFull, EmbedTimeout, EmbedFailed, NoMemory, WorkersLost, FingerprintMismatch, QueueUnavailable.
        """
        deadline = time.monotonic() + deadline_s
        reply_to = f"{self._prefix}:reply:{uuid.uuid4().hex}"
        fields: dict[str, str | int | bytes] = {
            "reply_to": reply_to,
            "who": "" if share is None else share.who,
            "fingerprint": fingerprint,
            "waveform": np.ascontiguousarray(waveform, dtype="<f4").tobytes(),
            # A worker that knows no such windows finds no such field either: it drops the job, which is sent again.
            "spans": np.stack([laid.starts, laid.lengths]).astype("<i8").tobytes(),
            "frames": laid.frames or 0,
            "inner": laid.inner or 0,
            "semitones": laid.semitones,
        }
        entry: str | None = None
        try:
            while True:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise EmbedTimeout(deadline_s)
                if share is not None and not await self._may(share, reply_to) and entry is None:
                    await asyncio.sleep(ASK_AGAIN_S)
                    continue
                if entry is None:
                    entry = await self._add("queries", {**fields, "ttl_ms": math.ceil(left * 1000)})
                block = max(0.01, min(BLOCK_S, left))
                popped = await self._call(self._redis.blpop, [reply_to], timeout=block)
                if popped is not None:
                    entry = None  # the worker has deleted it together with its reply
                    return _parse_reply(popped[1], fingerprint, len(laid))
                if not await self._call(self._known, keys=[self._streams["queries"], reply_to], args=[entry]):
                    log.warning("the queue lost a query, submitting it again")
                    entry = None
        finally:
            if entry is not None:
                self._in_background(self._forget("queries", entry, reply_to))
            if share is not None:
                self._in_background(self._call(self._redis.zrem, self._share_key(share.who), reply_to))

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

    async def _may(self, share: "Share", ticket: str) -> bool:
        """Whether a caller may have this job in the stream, too; its ticket holds for `TICKET_S`."""
        keys = [f"{self._prefix}:callers", self._share_key(share.who)]
        args = [share.who, ticket, share.most, TICKET_S, int(LATELY_S)]
        return bool(await self._call(self._share, keys=keys, args=args))

    def _share_key(self, who: str) -> str:
        return f"{self._prefix}:share:{who}"

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


def _parse_reply(message: bytes, fingerprint: str, windows: int) -> NDArray[np.complex64]:
    header_line, _, body = message.partition(b"\n")
    header = json.loads(header_line)
    if header.get("error") == "fingerprint-mismatch":
        raise FingerprintMismatch(fingerprint, tuple(header["held"]))
    if header.get("error") == "workers-lost":
        raise WorkersLost
    if header.get("error") == "no-memory":
        raise NoMemory
    if "error" in header:
        raise EmbedFailed(header["reason"])
    embedding = np.frombuffer(body, "<c8").reshape(header["shape"]).astype(np.complex64)
    if len(embedding) != windows:
        raise EmbedFailed(f"{windows} windows were asked for and {len(embedding)} came back")
    return embedding


def _number_or_words(value: bytes) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value.decode()
