"""How a database gets this release's tables: from nothing, from the first release, and not from a newer one."""

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite
import numpy as np
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks.installation import free_port
from indexer.catalog.catalog import Catalog
from indexer.catalog.database import Database, tick
from indexer.catalog.records import CatalogUnavailable, ForeignTables, NewerSchema, StemFilter, UnsupportedDatabase
from indexer.catalog.schema import VERSION_TABLE
from indexer.catalog.tables import metadata

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore:autogenerate skipping metadata-specified")]
T = TypeVar("T")

DATA = Path(__file__).parents[3] / "data"
WINDOWS = np.arange(3, dtype=np.int64)
EMBEDDING = np.full((3, 4), 0.5 - 0.5j, np.complex64)


def sqlite_url(path: Path) -> str:
    return f"sqlite+aiosqlite:///{path}"


async def open_and_close(url: str) -> None:
    await (await Catalog.open(url)).close()


async def run(url: str, work: Callable[[Connection], T]) -> T:
    engine = create_async_engine(url)
    async with engine.begin() as sql:
        done = await sql.run_sync(work)
    await engine.dispose()
    return done


def differences(connection: Connection) -> list[Any]:
    # SQLite's index of words is made of tables of its own, which no metadata can describe.
    ours = {"include_name": lambda name, kind, _: kind != "table" or not name.startswith("stem_words")}
    context = MigrationContext.configure(
        connection, opts={"version_table": VERSION_TABLE, "compare_type": True, "compare_server_default": True} | ours
    )
    return list(compare_metadata(context, metadata))


def first_release(path: Path) -> None:
    """A catalog as the first release left it: a bass that is ready, drums that wait, and a vocal that was deleted."""
    blobs = (WINDOWS.tobytes(), (WINDOWS * 2.5).tobytes(), EMBEDDING.tobytes())
    stem = "INSERT INTO stems VALUES (?,?,?,?,?,?,'one',NULL,120.5,'F# minor','FLAC',9.0,44100,2,?,?,NULL,?,1.5e9,?)"
    with sqlite3.connect(path) as sql:
        sql.execute("PRAGMA journal_mode=WAL")
        sql.executescript((DATA / "first_release.sql").read_text(encoding="utf-8"))
        sql.execute(stem, (1, "b1", "a" * 64, "bass.flac", "Bass", "bass", '["truncated"]', "ready", 3, 4))
        sql.execute(stem, (2, "d1", "b" * 64, "drums.flac", "Drums", "drums", "[]", "queued", 0, 0))
        sql.execute(stem, (3, "v1", None, "vocal.flac", "Vocal", None, "[]", "deleted", 0, 5))
        sql.execute("INSERT INTO stem_tags VALUES (1, 'warm'), (1, 'live')")
        sql.execute("INSERT INTO embeddings VALUES (1, 'f', ?, ?, ?, NULL)", blobs)
        sql.execute("INSERT INTO generations VALUES (1, 'f', 1.5e9), (2, 'f', 1.5e9)")
        sql.execute("INSERT INTO aliases VALUES ('live', 2, 1, 'f')")
        sql.execute("INSERT INTO jobs VALUES ('j1', 'ingest', 'running', 1.5e9, NULL, '{}', NULL, NULL, NULL)")
        sql.execute("INSERT INTO job_items VALUES ('j1', 0, 'bass.flac', 1, 1, NULL)")
        sql.execute("UPDATE clock SET value = 5")
    sql.close()


async def test_models_and_migrations_agree(url: str) -> None:
    await open_and_close(url)
    assert await run(url, differences) == []


async def test_a_table_that_no_migration_makes_is_found_out(url: str) -> None:
    await open_and_close(url)
    await run(url, lambda connection: connection.execute(text("ALTER TABLE jobs ADD COLUMN owner VARCHAR")))
    assert len(await run(url, differences)) == 1


async def test_the_first_releases_catalog_keeps_all_that_it_held(tmp_path: Path) -> None:
    first_release(tmp_path / "catalog.sqlite")
    catalog = await Catalog.open(sqlite_url(tmp_path / "catalog.sqlite"))
    bass, drums = (await catalog.list_stems(StemFilter()))[0]
    assert (bass.id, bass.title, bass.tags, bass.warnings) == ("b1", "Bass", ("live", "warm"), ("truncated",))
    assert (bass.tempo_bpm, bass.key, bass.track, bass.state, bass.windows) == (120.5, "F# minor", "one", "ready", 3)
    assert (drums.id, drums.state) == ("d1", "queued")
    assert await catalog.queued() == ["d1"]
    np.testing.assert_array_equal((await catalog.embeddings_of([1], "f"))[1].embedding, EMBEDDING)
    alias, seq = await catalog.position()
    assert alias is not None
    assert (alias.generation, alias.previous, alias.fingerprint, seq) == (2, 1, "f", 5)
    assert [item.stem_id for item in (await catalog.job("j1")).items] == ["b1"]
    assert (bass.sources, bass.sure, bass.kind, bass.beat_bpm) == ({"tempo_bpm": "said", "key": "said"}, {}, None, None)
    assert np.isnan((await catalog.embeddings_of([1], "f"))[1].beats).tolist() == [True] * 3
    assert await catalog.music_of([1, 2]) == {}
    assert (await catalog.changes_since(4, "f")).removed == {3}
    for words, found in (("bass one WAR", ["b1"]), ("one", ["b1", "d1"]), ("vocal", [])):
        assert [stem.id for stem in (await catalog.list_stems(StemFilter(text=words)))[0]] == found
    await catalog.change_metadata("d1", {"title": "Snare", "rating": 4})
    assert [stem.id for stem in (await catalog.list_stems(StemFilter(text="snare", rating_min=4)))[0]] == ["d1"]
    assert await catalog.new_generation("g") == 3
    await catalog.close()
    await open_and_close(sqlite_url(tmp_path / "catalog.sqlite"))
    assert await run(sqlite_url(tmp_path / "catalog.sqlite"), differences) == []


async def test_stems_that_were_there_are_found_in_any_spelling_and_can_be_answered(tmp_path: Path) -> None:
    first_release(tmp_path / "catalog.sqlite")
    with sqlite3.connect(tmp_path / "catalog.sqlite") as sql:
        sql.execute(
            "UPDATE stems SET track = 'Cafe\u0301', warnings = ? WHERE id = 'b1'", ('["odd: \\ud800 \\ud83d\\ude00"]',)
        )
        sql.execute("UPDATE stem_tags SET tag = 'Stra\u00dfe' WHERE tag = 'warm'")
    sql.close()
    catalog = await Catalog.open(sqlite_url(tmp_path / "catalog.sqlite"))
    for wanted in (
        StemFilter(tracks=("CAF\u00c9",)),
        StemFilter(tags=("STRASSE",)),
        StemFilter(keys=("f# MINOR",), tags=("live",)),
    ):
        (found,), _ = await catalog.list_stems(wanted)
        assert (found.id, found.warnings) == ("b1", ("odd: ? \U0001f600",))
    assert (await catalog.list_stems(StemFilter(exclude_tracks=("caf\u00e9", "one"))))[0] == []
    await catalog.close()


async def test_a_newer_releases_catalog_is_refused_and_left_as_it_is(url: str) -> None:
    await open_and_close(url)
    await run(url, lambda connection: connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")))
    with pytest.raises(NewerSchema, match="run the release that made it") as refused:
        await Catalog.open(url)
    assert refused.value.found == "9999"
    assert await run(url, differences) == []


async def test_a_database_of_something_else_is_refused(url: str) -> None:
    await run(url, lambda connection: connection.execute(text("CREATE TABLE jobs (id INTEGER)")))
    with pytest.raises(ForeignTables) as refused:
        await Catalog.open(url)
    assert refused.value.tables == ("jobs",)


async def test_an_upgrade_that_fails_leaves_the_old_schema(url: str) -> None:
    # The last table of the first migration is in the way of its making, as if a process had died just before it.
    await run(url, lambda connection: connection.execute(text("CREATE VIEW aliases AS SELECT 1 AS one")))
    with pytest.raises(Exception, match="aliases"):
        await Catalog.open(url)
    await run(url, lambda connection: connection.execute(text("DROP VIEW aliases")))
    await open_and_close(url)
    assert await run(url, differences) == []


async def test_several_may_make_the_tables_at_once(url: str) -> None:
    def one() -> None:
        asyncio.run(open_and_close(url))

    await asyncio.gather(*(asyncio.to_thread(one) for _ in range(6)))
    assert await run(url, differences) == []


async def test_another_kind_of_database_and_one_in_memory_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedDatabase, match=r"not in mysql\+aiomysql://root:\*\*\*@localhost/phalar"):
        await Catalog.open("mysql+aiomysql://root:secret@localhost/phalar")
    for url in ("sqlite+aiosqlite://", "sqlite+aiosqlite:///:memory:"):
        with pytest.raises(UnsupportedDatabase, match="lies in a file"):
            await Catalog.open(url)


async def test_a_server_that_is_away_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indexer.catalog.database.RETRY_S", 0.3)
    with pytest.raises(CatalogUnavailable) as away:
        await Catalog.open(f"postgresql+asyncpg://phalar:secret@127.0.0.1:{free_port()}/phalar")
    assert "secret" not in str(away.value) + away.value.reason


async def test_statement_in_a_transaction_is_one_errand_to_sqlites_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = await Database.open(sqlite_url(tmp_path / "catalog.sqlite"))
    errands = 0
    send = aiosqlite.Connection._execute

    async def counted(connection: aiosqlite.Connection, *what: Any) -> Any:
        nonlocal errands
        errands += 1
        return await send(connection, *what)

    monkeypatch.setattr(aiosqlite.Connection, "_execute", counted)
    async with database.write() as sql:
        assert [await tick(sql) for _ in range(3)] == [1, 2, 3]
    assert errands == 6, "it begins, ticks three times and is committed; the pool rolls back what may be left"
    await database.close()
