"""What API processes keep together, for a while and within a bound."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.local.valkey import EmbeddedValkey
from service.work.shelf import Shelf
from service.work.streams import QueueUnavailable, connect
from tests.service.work.queues import deny_disk
from tests.waiting import eventually

pytestmark = pytest.mark.anyio


@pytest.fixture
async def shelf(redis_url: str, tmp_path: Path) -> AsyncIterator[Shelf]:
    opened = Shelf(connect(redis_url), tmp_path.name, seconds=60, most_bytes=200)
    yield opened
    await opened.aclose()


async def test_what_is_kept_comes_back_in_another_process(shelf: Shelf, redis_url: str, tmp_path: Path) -> None:
    assert await shelf.put("a", b"\x00data", b"about")
    other = Shelf(connect(redis_url), tmp_path.name, seconds=60, most_bytes=200)
    assert await other.get("a") == (b"about", b"\x00data")
    assert await other.size("a") == 5
    assert await other.get("b") is None
    assert await other.size("b") == 0
    await other.aclose()


async def test_what_was_asked_for_longest_ago_makes_room(shelf: Shelf) -> None:
    for name in ("a", "b", "c", "d"):
        await shelf.put(name, bytes(50))
    await shelf.get("a")
    assert await shelf.put("e", bytes(50))
    assert await shelf.get("b") is None
    for name in ("a", "c", "d", "e"):
        assert await shelf.get(name) is not None


async def test_nothing_takes_more_than_a_quarter(shelf: Shelf) -> None:
    assert await shelf.put("a", bytes(50))
    assert not await shelf.put("b", bytes(51))
    assert await shelf.get("a") is not None


async def test_each_is_kept_as_long_again_when_it_is_asked_for_and_then_forgotten(
    shelf: Shelf, redis_url: str, tmp_path: Path
) -> None:
    redis = connect(redis_url)
    await shelf.put("c", bytes(50))
    await shelf.put("d", bytes(50))
    asked, forgotten = (f"{tmp_path.name}:kept:{name}" for name in ("a", "b"))
    for name, key in (("a", asked), ("b", forgotten)):
        await shelf.put(name, bytes(50))
        await redis.expire(key, 30)
    await shelf.get("a")
    assert await redis.ttl(asked) > 30 >= await redis.ttl(forgotten)
    await redis.pexpire(forgotten, 1)

    async def is_forgotten() -> bool:
        return await shelf.size("b") == 0

    await eventually(is_forgotten)
    assert await shelf.get("b") is None
    assert await shelf.put("e", bytes(50))
    assert await shelf.get("c") is not None, "b takes no room any more"
    await redis.aclose()


async def test_where_redis_is_away_nothing_is_kept_and_the_rest_is_named(tmp_path: Path) -> None:
    away = Shelf(connect(f"unix://{tmp_path}/none"), "p", seconds=2, most_bytes=200)
    assert not await away.put("a", b"data")
    with pytest.raises(QueueUnavailable):
        await away.get("a")


async def test_a_redis_that_cannot_write_keeps_nothing_and_says_so_to_who_asks(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path) as own:
        redis = connect(own.url)
        shelf = Shelf(redis, "p", seconds=60, most_bytes=200)
        assert await shelf.put("a", b"data")
        await deny_disk(redis, tmp_path)
        assert not await shelf.put("b", b"data")
        with pytest.raises(QueueUnavailable, match="MISCONF"):
            await shelf.get("a")
        await shelf.aclose()
