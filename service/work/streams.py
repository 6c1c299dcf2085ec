"""Redis Streams: a connection that outlasts a short absence, and the scripts that change a stream in one step."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.commands.core import AsyncScript
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MasterDownError, OutOfMemoryError, ReadOnlyError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.work.jobs import Kind, QueryJob, QueueError, UploadJob

log = logging.getLogger("phalar.queue")

GROUP = "workers"
NO_GROUP = ("NOGROUP", "no such key")
ANSWER_S = 5.0  # a command that takes longer has failed
RETRY_S = 5.0  # a killed Valkey is back within a second; a file it must load takes a few
NO_ANSWER = (RedisConnectionError, RedisTimeoutError, TimeoutError)
TAKES_NOTHING = (ReadOnlyError, MasterDownError, OutOfMemoryError)
RETRY_AFTER_S: dict[Kind, float] = {"uploads": 10.0, "queries": 1.0}


class QueueFull(QueueError):
    public = "{depth} {kind} are waiting and {limit} are allowed; try again in {retry_after_s:g} s."
    kind: Kind
    depth: int
    limit: int
    retry_after_s: float


class QueueUnavailable(QueueError):
    """Redis cannot be reached, or takes nothing, although it was tried again for a few seconds."""

    says = "the queue cannot be reached: {reason}"
    reason: str


# Every script touches one stream (and a key that belongs to it), atomically.

# KEYS stream; ARGV limit, kept 0|1, field, value, ... -> {1, entry} or {0, depth}
# Queries (kept 0) go into no journal and no replica: they are half a megabyte each, and are asked again when lost.
_SUBMIT = """
local depth = redis.call('XLEN', KEYS[1])
if depth >= tonumber(ARGV[1]) then return {0, depth} end
if ARGV[2] == '0' then redis.set_repl(redis.REPL_NONE) end
return {1, redis.call('XADD', KEYS[1], '*', unpack(ARGV, 3))}
"""

# KEYS stream; ARGV group, consumer, idle ms, peek 0|1, age ms, entries in hand ...
#   -> {} or {entry, earlier deliveries, fields}
# First what this consumer left unfinished before its restart, then what any consumer has left idle. A job delivered to
# it since its start (within its age) that it does not have in hand never arrived: the connection broke. That delivery
# does not count against the job. Claiming an entry that was deleted meanwhile takes it off the pending list; then the
# next one is looked at.
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

# KEYS callers, what this caller has in the stream; ARGV caller, ticket, most, seconds a ticket holds, seconds "lately"
#   -> 1 with a ticket taken, or held for longer; 0 where the caller has its share and others have come lately
_SHARE = """
local now = tonumber(redis.call('TIME')[1])
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[5])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[5])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - 1)
local held = redis.call('ZCARD', KEYS[2])
if not redis.call('ZSCORE', KEYS[2], ARGV[2]) and held >= tonumber(ARGV[3]) and redis.call('ZCARD', KEYS[1]) > 1 then
  return 0
end
redis.call('ZADD', KEYS[2], now + ARGV[4], ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[4] + 1)
return 1
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


class Streams:
    """The two streams of one installation, as API and workers both need them."""

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
        self._share = redis.register_script(_SHARE)
        self._in_hand: dict[Kind, dict[str, UploadJob | QueryJob]] = {"uploads": {}, "queries": {}}
        self._alone: str | None = None
        self._opened_at = time.monotonic()
        self._reclaim_at = 0.0
        self._ask_time_at = 0.0
        self._server_ahead_s = 0.0
        self._background: set[asyncio.Task[None]] = set()

    async def aclose(self) -> None:
        """Wait for removals under way and close the connections."""
        if self._background:
            await asyncio.wait(self._background, timeout=2 * ANSWER_S)
        await self._redis.aclose()

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

    @property
    def _consumer(self) -> str:
        assert self.consumer is not None, "only a queue with a consumer takes jobs"
        return self.consumer

    @property
    def _workers_key(self) -> str:
        return f"{self._prefix}:workers"

    def _waveform_key(self, sha256: str) -> str:
        return f"{self._prefix}:waveform:{sha256}"

    def _stats_key(self, consumer: str) -> str:
        return f"{self._prefix}:worker:{consumer}"


def _takes_nothing(error: ResponseError) -> bool:
    """Whether the answer says nothing of the command: Redis follows another master, or has no memory, disk or replica
    left; or while it was waited for, its master or its stream went."""
    said = str(error)  # a pipeline puts its own words before it
    return isinstance(error, TAKES_NOTHING) or any(word in said for word in ("MISCONF", "NOREPLICAS", "UNBLOCKED"))
