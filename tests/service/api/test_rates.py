"""Rates on a real Valkey: one bucket for all processes, and one of its own for each while Valkey is away."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from service.api.errors import TooManyRequests
from service.api.rates import MOST_LOCAL, LocalBuckets, RateLimiter
from service.local.valkey import EmbeddedValkey
from service.settings import Rate, Scope
from service.work.streams import connect

pytestmark = pytest.mark.anyio

SLOW: dict[Scope, Rate] = {"read": Rate(per_s=0.001, burst=5)}  # gains nothing worth mentioning during a test

Open = Callable[..., RateLimiter]


@pytest.fixture
async def opened(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Open]:
    """Opens limiters of one fresh prefix, as several processes would."""
    monkeypatch.setattr("service.api.rates.ANSWER_S", 30.0)  # a busy machine is not a lost Redis
    prefix = uuid.uuid4().hex
    async with AsyncExitStack() as stack:

        def open_one(rates: dict[Scope, Rate] = SLOW, url: str = redis_url) -> RateLimiter:
            limiter = RateLimiter(connect(url), prefix, rates)
            stack.push_async_callback(limiter.aclose)
            return limiter

        yield open_one


async def taken(*attempts: tuple[RateLimiter, str]) -> int:
    """How many of these requests, made at once, were let through."""
    asked = [limiter.take("read", who) for limiter, who in attempts]
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert all(result is None or not isinstance(result, Exception) or isinstance(result, TooManyRequests)
               for result in results), results  # fmt: skip
    return sum(not isinstance(result, Exception) for result in results)


async def refused(limiter: RateLimiter) -> float:
    """Ask until the bucket is empty; when to come back, seconds."""
    while True:  # a machine may be slower than the bucket fills
        try:
            await limiter.take("read", "a")
        except TooManyRequests as error:
            return error.retry_after_s


async def test_bucket_fills_again_at_its_rate(opened: Open) -> None:
    limiter = opened({"read": Rate(per_s=20, burst=2)})
    assert await taken(*[(limiter, "a")] * 2) == 2
    await asyncio.sleep(await refused(limiter) + 0.05)
    await limiter.take("read", "a")


async def test_allowance_says_what_is_left_and_when_to_come_back(opened: Open) -> None:
    limiter = opened({"read": Rate(per_s=0.1, burst=2)})
    first = await limiter.take("read", "a")
    assert first is not None
    assert first.headers["RateLimit-Policy"] == '"read";q=2;w=20'
    assert first.headers["RateLimit"] == '"read";r=1;t=10'
    await limiter.take("read", "a")
    with pytest.raises(TooManyRequests) as caught:
        await limiter.take("read", "a")
    assert 0 < caught.value.retry_after_s <= 10
    assert caught.value.headers["RateLimit"].startswith('"read";r=0;t=')


async def test_scope_without_a_rate_has_no_limit_and_asks_nobody(opened: Open) -> None:
    assert await opened({}, url="unix:///nowhere").take("read", "a") is None


async def test_lost_redis_neither_opens_the_gate_nor_closes_it(opened: Open, tmp_path: Path) -> None:
    limiter = opened(url=f"unix://{tmp_path / 'nobody'}")
    assert await taken(*[(limiter, "a")] * 20) == SLOW["read"].burst


async def test_redis_that_comes_back_counts_again(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.api.rates.AWAY_S", 0.0)
    with EmbeddedValkey(tmp_path / "valkey") as server:
        limiter = opened(url=server.url)
        assert await taken((limiter, "a")) == 1
    assert await taken(*[(limiter, "a")] * 20) == SLOW["read"].burst
    with EmbeddedValkey(tmp_path / "valkey") as server:
        assert await taken(*[(limiter, "b")] * 20) == SLOW["read"].burst
        assert await taken((opened(url=server.url), "b")) == 0


async def test_buckets_of_a_process_do_not_fill_its_memory() -> None:
    buckets = LocalBuckets()
    for n in range(MOST_LOCAL + 100):
        assert buckets.take(str(n), Rate(1, 1), 0.0) == (True, 0.0)
    assert len(buckets._held) == MOST_LOCAL
    assert buckets.take(str(MOST_LOCAL + 99), Rate(1, 1), 0.5) == (False, 0.5)
