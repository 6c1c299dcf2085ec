"""How many requests a caller may make: a token bucket in Redis, so that it holds over all API processes.

A bucket holds up to `burst` requests and gains `per_s` a second; one script takes one, atomically. While Redis does not
answer, each process keeps buckets of its own: the service goes on, and a caller gains at most its limit once a process.
"""

import asyncio
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

from redis.asyncio import Redis
from redis.exceptions import RedisError

from model.errors import Told
from service.settings import Rate, Scope

log = logging.getLogger("phalar.rates")
ANSWER_S = 0.25  # a limit is not worth waiting for; well over what a busy Redis takes
AWAY_S = 1.0  # after a failure, Redis is left alone for so long
MOST_LOCAL = 10_000  # buckets kept in this process


class TooManyRequests(Told):
    public = "{per_s:g} requests a second are allowed to {scope}; try again in {retry_after_s:.1f} s."
    scope: str
    per_s: float
    retry_after_s: float
    headers: dict[str, str]


# KEYS bucket; ARGV requests a second, burst -> {1 taken | 0, requests left as text}
# The clock is the server's, so the API processes' clocks need not agree.
_TAKE = """
local rate, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local held = redis.call('HMGET', KEYS[1], 'left', 'at')
local left, at = tonumber(held[1]) or burst, tonumber(held[2]) or now
left = math.min(burst, left + math.max(0, now - at) * rate)
local taken = 0
if left >= 1 then left, taken = left - 1, 1 end
redis.call('HSET', KEYS[1], 'left', tostring(left), 'at', string.format('%.6f', now))
redis.call('PEXPIRE', KEYS[1], math.ceil((burst - left) / rate * 1000) + 1000)
return {taken, tostring(left)}
"""


@dataclass(frozen=True)
class Allowance:
    """What a caller has left of one scope's rate after a request."""

    scope: Scope
    rate: Rate
    left: float

    @property
    def headers(self) -> dict[str, str]:
        """RateLimit fields, as the IETF's draft-ietf-httpapi-ratelimit-headers has them."""
        full_in_s = math.ceil((self.rate.burst - self.left) / self.rate.per_s)
        window_s = math.ceil(self.rate.burst / self.rate.per_s)
        return {
            "RateLimit-Policy": f'"{self.scope}";q={self.rate.burst};w={window_s}',
            "RateLimit": f'"{self.scope}";r={math.floor(self.left)};t={full_in_s}',
        }


class RateLimiter:
    """The buckets of all callers. A scope without a Rate is not limited."""

    def __init__(self, redis: Redis, prefix: str, rates: Mapping[Scope, Rate]) -> None:
        self._redis = redis
        self._prefix = prefix
        self._rates = rates
        self._script = redis.register_script(_TAKE)
        self._local = LocalBuckets()
        self._away_until = 0.0

    async def take(self, scope: Scope, who: str) -> Allowance | None:
        """Count one request of the caller `who`; None where the scope has no limit.

        Raises:
            TooManyRequests: the bucket is empty.
        """
        rate = self._rates.get(scope)
        if rate is None:
            return None
        taken, left = await self._take(f"{self._prefix}:rate:{scope}:{who}", rate)
        allowance = Allowance(scope, rate, left)
        if not taken:
            raise TooManyRequests(scope, rate.per_s, (1 - left) / rate.per_s, allowance.headers)
        return allowance

    async def aclose(self) -> None:
        await self._redis.aclose()

    async def _take(self, bucket: str, rate: Rate) -> tuple[bool, float]:
        if time.monotonic() >= self._away_until:
            try:
                async with asyncio.timeout(ANSWER_S):
                    taken, left = await self._script(keys=[bucket], args=[rate.per_s, rate.burst])
                    return bool(taken), float(left)
            except (RedisError, OSError, TimeoutError) as error:
                log.warning("rates are kept by each process alone while Redis is away: %s", error or "no answer")
                self._away_until = time.monotonic() + AWAY_S
        return self._local.take(bucket, rate, time.monotonic())


class LocalBuckets:
    """The same buckets in this process's memory."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[float, float]] = {}  # bucket -> (requests left, when)

    def take(self, bucket: str, rate: Rate, now: float) -> tuple[bool, float]:
        """Whether there was one to take, and how many are left."""
        left, at = self._held.pop(bucket, (float(rate.burst), now))
        left = min(rate.burst, left + (now - at) * rate.per_s)
        taken = left >= 1
        self._held[bucket] = (left - taken, now)  # the last used stands last
        if len(self._held) > MOST_LOCAL:
            del self._held[next(iter(self._held))]
        return taken, left - taken
