"""What a catalog on a PostgreSQL server lives through: cut connections, a restart, holders and writers that vanish, an
upgrade."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from indexer.catalog.catalog import Catalog
from indexer.catalog.database import GIVE_UP
from indexer.catalog.records import StemFilter
from indexer.catalog.schema import MIGRATIONS, VERSION_TABLE
from tests import servers
from tests.unit.indexer.catalog.test_catalog import make_live, make_ready, upload

pytestmark = pytest.mark.anyio


@pytest.fixture
async def on_postgres(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[str, Catalog]]:
    monkeypatch.setattr("indexer.catalog.database.RETRY_S", 60.0)  # a busy machine takes its time
    url = servers.emptied_database()
    opened = await Catalog.open(url)
    yield url, opened
    await opened.close()


CUT = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


async def test_cut_connections_are_met_by_trying_again(on_postgres: tuple[str, Catalog]) -> None:
    url, catalog = on_postgres
    await make_live(catalog, "f")
    await make_ready(catalog, "n", "f")
    servers.execute(url, CUT)
    adding = asyncio.gather(*(make_ready(catalog, f"m{n}", "f") for n in range(4)))
    while not adding.done():
        await asyncio.to_thread(servers.execute, url, CUT)
        await asyncio.sleep(0.3)
    await adding
    assert (await catalog.counts())["ready"] == 5


async def test_a_restarted_server_holds_what_was_committed_and_is_found_again(on_postgres: tuple[str, Catalog]) -> None:
    _, catalog = on_postgres
    await make_live(catalog, "f")
    first = await make_ready(catalog, "a", "f")
    with servers.stopped_postgres():
        waiting = asyncio.create_task(make_ready(catalog, "b", "f"))
        await asyncio.sleep(0.2)
        assert not waiting.done()
    second = await waiting
    assert [stem.id for stem in (await catalog.list_stems(StemFilter()))[0]] == [first, second]


async def test_a_name_is_free_again_when_its_holders_connection_is_gone(on_postgres: tuple[str, Catalog]) -> None:
    url, catalog = on_postgres
    dead = await Catalog.open(url)
    async with dead.alone("a"):
        servers.execute(url, CUT)
        async with asyncio.timeout(60), catalog.alone("a"):
            pass
    async with dead.alone("a"):
        pass
    await dead.close()


async def test_a_writer_that_falls_silent_does_not_stop_the_others_for_ever(
    on_postgres: tuple[str, Catalog], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, catalog = on_postgres
    monkeypatch.setitem(GIVE_UP, "idle_in_transaction_session_timeout", "500ms")
    silent = await Catalog.open(url)

    async def fall_silent() -> None:
        async with silent._database.write() as sql:
            await catalog.add([upload("a")])
            await sql.execute(select(1))

    with pytest.raises(DBAPIError):
        await fall_silent()
    assert (await catalog.counts())["queued"] == 1
    await silent.close()


def before_0003(sql: Connection) -> None:
    """The tables of revision 0002, with text that a decoder said and UTF-8 does not have."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes |= {"connection": sql, "version_table": VERSION_TABLE}
    command.upgrade(config, "0002")
    stem = """INSERT INTO stems (row, id, sha256, file_name, title, track, format, duration_s, sample_rate, channels,
        warnings, state, problem, windows, created_at, seq)
        VALUES (1, 'b1', :sha, 'b.flac', 'Bass', :track, 'FLAC', 9, 44100, 2, :said, 'failed', :problem, 0, 1.5e9, 1)"""
    problem = r'{"type": "/problems/x", "title": "odd \udfff", "status": 422}'
    said = {"said": r'["odd: \ud800 \ud83d\ude00", "caf\u00e9"]', "problem": problem}
    sql.execute(text(stem), said | {"sha": "a" * 64, "track": "Cafe\u0301"})
    job = "INSERT INTO jobs (id, kind, state, created_at, request) VALUES ('j1', 'ingest', 'running', 1.5e9, '{}')"
    sql.execute(text(job))
    item = "INSERT INTO job_items (job_id, position, file_name, created, problem) VALUES ('j1', 0, 'c', 0, :problem)"
    sql.execute(text(item), {"problem": problem})


async def test_an_upgrade_mends_text_that_no_answer_can_hold_on_postgres_too() -> None:
    url = servers.emptied_database()
    engine = create_async_engine(url)
    async with engine.begin() as sql:
        await sql.run_sync(before_0003)
    await engine.dispose()
    catalog = await Catalog.open(url)
    (stem,), _ = await catalog.list_stems(StemFilter(tracks=("CAF\u00c9",)))
    assert stem.warnings == ("odd: ? \U0001f600", "caf\u00e9")
    assert stem.problem is not None
    (item,) = (await catalog.job("j1")).items
    assert item.problem is not None
    assert stem.problem["title"] == item.problem["title"] == "odd ?"
    await catalog.close()
