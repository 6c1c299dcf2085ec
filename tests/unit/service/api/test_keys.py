"""API keys over a real SQLite file: made, known again, ended."""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from indexer import ApiKey, ApiKeys, Catalog
from service.api.errors import KeyMissing, KeyRefused, KeyUnknown
from service.api.keys import SCOPES, Caller, KeyRing, new_api_key
from service.settings import Scope, Settings

pytestmark = pytest.mark.anyio


@pytest.fixture
async def two_processes(tmp_path: Path) -> AsyncIterator[tuple[ApiKeys, ApiKeys]]:
    """The keys of one database as two processes hold them: nothing but the file is shared."""
    url = f"sqlite+aiosqlite:///{tmp_path / 'catalog.sqlite'}"
    async with AsyncExitStack() as stack:
        opened = []
        for _ in range(2):
            catalog = await Catalog.open(url)
            stack.push_async_callback(catalog.close)
            opened.append(ApiKeys(catalog.database))
        yield opened[0], opened[1]


@pytest.fixture
def stored(two_processes: tuple[ApiKeys, ApiKeys]) -> ApiKeys:
    return two_processes[0]


def ring(stored: ApiKeys, **settings: object) -> KeyRing:
    return KeyRing(Settings(**{"require_keys": True, **settings}), stored)  # type: ignore[arg-type]


async def made(stored: ApiKeys, scope: Scope = "ingest", expires_at: float | None = None) -> tuple[str, ApiKey]:
    token, key = new_api_key("daw", scope, expires_at)
    await stored.add(key)
    return token, key


async def test_token_is_known_again_and_the_database_does_not_hold_it(stored: ApiKeys, tmp_path: Path) -> None:
    token, key = await made(stored)
    assert await ring(stored).caller(token, "read") == Caller(key.id, "ingest")
    secret = token.split("_", 2)[2]
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())  # noqa: ASYNC240
    assert key.digest.encode() in written
    assert secret.encode() not in written


async def test_token_has_a_prefix_that_scanners_find_and_256_random_bits(stored: ApiKeys) -> None:
    tokens = {new_api_key("daw", "read", None)[0] for _ in range(100)}
    assert len(tokens) == 100
    assert all(token.startswith("phalar_") and len(token) == len("phalar_") + 12 + 1 + 43 for token in tokens)


async def test_wrong_secret_under_a_known_id_is_unknown(stored: ApiKeys) -> None:
    token, _ = await made(stored)
    for wrong in (token[:-1] + ("A" if token[-1] != "A" else "B"), token[:-1], token + "x", "", "phalar_", "\xff\x00"):
        with pytest.raises(KeyUnknown):
            await ring(stored).caller(wrong, "read")


async def test_expired_key_is_unknown(stored: ApiKeys) -> None:
    token, _ = await made(stored, expires_at=time.time() - 1)
    with pytest.raises(KeyUnknown):
        await ring(stored).caller(token, "read")
    token, _ = await made(stored, expires_at=time.time() + 3600)
    await ring(stored).caller(token, "read")


async def test_last_use_is_written_down_and_never_goes_back(two_processes: tuple[ApiKeys, ApiKeys]) -> None:
    here, there = two_processes
    token, key = await made(here)
    keys = ring(here)
    await keys.caller(token, "read")
    await keys.flush_uses()
    (listed,) = await there.all()
    assert listed.last_used_at == pytest.approx(time.time(), abs=60)
    await there.note_uses({key.id: 1.0})
    assert await there.all() == [listed]


async def test_keys_of_the_settings_work_beside_made_ones(stored: ApiKeys) -> None:
    token, key = await made(stored, "read")
    keys = ring(stored, require_keys=False, read_key="r", ingest_key="ï", admin_key="r")
    assert await keys.caller(token, "read") == Caller(key.id, "read")
    assert await keys.caller("r", "read") == Caller("settings:admin", "admin")  # the larger of two equal ones
    assert await keys.caller("ï", "read") == Caller("settings:ingest", "ingest")
    with pytest.raises(KeyUnknown):
        await keys.caller("R", "read")


async def test_without_keys_everything_is_open(stored: ApiKeys) -> None:
    assert await ring(stored, require_keys=False).caller(None, "admin") == Caller(None, "admin")


async def test_required_keys_are_required_though_none_was_made(stored: ApiKeys) -> None:
    with pytest.raises(KeyMissing):
        await ring(stored).caller(None, "read")


@pytest.mark.parametrize("held", SCOPES)
@pytest.mark.parametrize("needed", SCOPES)
async def test_a_larger_scope_includes_the_smaller_ones(held: Scope, needed: Scope) -> None:
    if SCOPES.index(held) >= SCOPES.index(needed):
        Caller("x", held).check(needed)
    else:
        with pytest.raises(KeyRefused):
            Caller("x", held).check(needed)
