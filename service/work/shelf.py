"""Bytes that the API processes of an installation keep together for a while: in Redis, within a bound."""

import asyncio
import logging
from collections.abc import Awaitable
from typing import Any, Protocol

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from service.settings import Settings
from service.work.streams import ANSWER_S, NO_ANSWER, QueueUnavailable, connect

log = logging.getLogger("phalar.shelf")

# KEYS shelf, thing; ARGV seconds, most bytes, about, data. The shelf has the names of what lies on it, by when each is
# forgotten: those asked for longest ago come first, and make room. No journal and no replica has any of it.
_PUT = """
redis.set_repl(redis.REPL_NONE)
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
redis.call('HSET', KEYS[2], 'about', ARGV[3], 'data', ARGV[4])
redis.call('EXPIRE', KEYS[2], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZADD', KEYS[1], now + ARGV[1], KEYS[2])
redis.call('EXPIRE', KEYS[1], ARGV[1])
local held = 0
for _, name in ipairs(redis.call('ZREVRANGE', KEYS[1], 0, -1)) do
  held = held + redis.call('HSTRLEN', name, 'data')
  if held > tonumber(ARGV[2]) then
    redis.call('DEL', name)
    redis.call('ZREM', KEYS[1], name)
  end
end
"""

# KEYS shelf, thing; ARGV seconds -> {about, data}, and it is kept for as long again
_GET = """
redis.set_repl(redis.REPL_NONE)
if redis.call('EXPIRE', KEYS[2], ARGV[1]) == 0 then return {} end
local time = redis.call('TIME')
redis.call('ZADD', KEYS[1], time[1] + time[2] / 1e6 + ARGV[1], KEYS[2])
redis.call('EXPIRE', KEYS[1], ARGV[1])
return redis.call('HMGET', KEYS[2], 'about', 'data')
"""


class Keeper(Protocol):
    """Whoever keeps bytes under a name."""

    async def put(self, name: str, data: bytes, about: bytes = b"") -> bool: ...
    async def get(self, name: str) -> tuple[bytes, bytes] | None: ...


class Shelf:
    """Data under names, each with a few words about it, kept until nobody has asked for it for `kept_mix_s` seconds.

    All that lies here together has `kept_mix_bytes` at most; what was asked for longest ago makes room, and nothing has
    more than a quarter. It is a convenience: where Redis takes nothing, nothing is kept, and that is no error.
    """

    def __init__(self, redis: Redis, prefix: str, seconds: int, most_bytes: int) -> None:
        self._redis = redis
        self._prefix = prefix
        self._seconds = seconds
        self._most_bytes = most_bytes
        self.largest = most_bytes // 4
        self._put = redis.register_script(_PUT)
        self._get = redis.register_script(_GET)

    @classmethod
    def of(cls, settings: Settings) -> "Shelf":
        redis = connect(settings.resolved_redis_url, settings.redis_ca)
        return cls(redis, settings.redis_prefix, settings.kept_mix_s, settings.kept_mix_bytes)

    async def aclose(self) -> None:
        await self._redis.aclose()

    async def put(self, name: str, data: bytes, about: bytes = b"") -> bool:
        """Keep it. Returns whether it is kept: not where it is larger than `largest`, or Redis takes nothing."""
        if len(data) > self.largest:
            return False
        try:
            await _asked(self._put(keys=self._keys(name), args=[self._seconds, self._most_bytes, about, data]))
        except QueueUnavailable as error:
            log.warning("a query is not kept: %s", error)
            return False
        return True

    async def get(self, name: str) -> tuple[bytes, bytes] | None:
        """What is kept under a name, as (about, data), for as long again. Raises QueueUnavailable: Redis is
        away, or takes nothing."""
        found = await _asked(self._get(keys=self._keys(name), args=[self._seconds]))
        return (found[0], found[1]) if found else None

    async def size(self, name: str) -> int:
        """Bytes of its data; 0: nothing is kept under this name. Raises QueueUnavailable."""
        return int(await _asked(self._redis.hstrlen(self._keys(name)[1], "data")))

    def _keys(self, name: str) -> list[str]:
        return [f"{self._prefix}:shelf", f"{self._prefix}:kept:{name}"]


async def _asked(command: Awaitable[Any]) -> Any:
    """What Redis answers, soon. To look at a thing is to keep it for longer, which a full disk does not allow."""
    try:
        async with asyncio.timeout(ANSWER_S):
            return await command
    except (*NO_ANSWER, ResponseError) as error:
        raise QueueUnavailable(str(error) or "it does not answer") from error
