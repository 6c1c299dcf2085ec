"""The connections to SQLite or PostgreSQL: how a transaction reads or writes, and what is tried again."""

import asyncio
import functools
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, Self, TypeVar

import aiosqlite
from sqlalchemy import Engine, Executable, create_engine, event, func, select, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as NoFreeConnection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from indexer.catalog.names import Names, number_of
from indexer.catalog.records import CatalogUnavailable, UnsupportedDatabase
from indexer.catalog.schema import bring_up_to_date
from indexer.catalog.tables import clock
from model.errors import Told

log = logging.getLogger("phalar.catalog")
P = ParamSpec("P")
T = TypeVar("T")

RETRY_S = 5.0  # a PostgreSQL that fails over takes longer; then a client, or the worker, tries again
FIRST_PAUSE_S = 0.02
LONGEST_PAUSE_S = 0.5
LOCK_S = 30  # how long a writer waits for its turn
READERS = 4  # statements that SQLite answers beside each other
ANSWER_S = 60.0  # a statement without an answer for so long has none to expect
# What a PostgreSQL server does when a client of its falls silent, perhaps while it holds the clock.
GIVE_UP = {
    "lock_timeout": f"{LOCK_S}s",
    "idle_in_transaction_session_timeout": "60s",
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
}
# PostgreSQL's errors that pass: connection lost (class 08), too many connections, server going down or coming up,
# deadlock, serialization failure, lock timeout.
PASSING = ("08", "53300", "57P01", "57P02", "57P03", "40001", "40P01", "55P03", "25P03")
# Those that may last and are not the statement's fault: no room, no disk, cancelled by an operator, a standby.
LASTING = ("53", "57", "58", "25006")

FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE)


class CommitUnknown(Told):
    """The connection was lost in the very moment of a commit: it may or may not have happened."""

    says = "the connection was lost in the moment of a commit"


def retried(method: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Run a transaction again, for a few seconds, after an error that passes by itself.

    Raises CatalogUnavailable when the error stays. So it does at once when the connection was lost during a commit: the
    change may be made already, and making it twice could be wrong.
    """

    @functools.wraps(method)
    async def run(*args: P.args, **kwargs: P.kwargs) -> T:
        deadline = time.monotonic() + RETRY_S
        pause = FIRST_PAUSE_S
        while True:
            try:
                return await method(*args, **kwargs)
            except Exception as error:
                if not (_passes(error) or _lasts(error)):
                    raise
                if not _passes(error) or time.monotonic() + pause > deadline:
                    log.error("the database failed: %s", error)
                    raise CatalogUnavailable(str(error), full=_is_full(error)) from error
                log.warning("the database stood in the way, trying again: %s", error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    return run


class _SqliteReader:
    """SQLite for single statements: each runs in one thread from its start to its last row."""

    def __init__(self, url: str) -> None:
        self._engine: Engine = create_engine(
            make_url(url).set(drivername="sqlite"), pool_size=READERS, pool_reset_on_return=None
        )
        event.listen(self._engine, "connect", _on_connect)
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="sqlite")

    async def rows(self, statement: Executable, values: Mapping[str, Any]) -> Sequence[Any]:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._rows, statement, values)

    def _rows(self, statement: Executable, values: Mapping[str, Any]) -> Sequence[Any]:
        with self._engine.connect() as sql:  # no BEGIN: SQLite holds one instant for each statement by itself
            return sql.execute(statement, values).all()

    async def close(self) -> None:
        await asyncio.to_thread(self._threads.shutdown)
        self._engine.dispose()


class _Cursor(aiosqlite.Cursor):
    """One errand to the connection's thread for each statement; aiosqlite makes a cursor, executes, fetches and closes
    in four. Between two errands whatever else the event loop has to do comes first."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        super().__init__(connection, None)  # type: ignore[arg-type]  # made by the first statement

    async def execute(self, sql: str, parameters: Iterable[Any] | None = None) -> Self:
        await self._execute(self._run, sqlite3.Connection.execute, sql, parameters or ())  # type: ignore[no-untyped-call]
        return self

    async def executemany(self, sql: str, parameters: Iterable[Iterable[Any]]) -> Self:
        await self._execute(self._run, sqlite3.Connection.executemany, sql, parameters)  # type: ignore[no-untyped-call]
        return self

    async def fetchall(self) -> Iterable[sqlite3.Row]:
        return self._rows

    async def close(self) -> None:
        """Nothing is open: all rows were fetched."""

    def _run(self, how: Callable[..., sqlite3.Cursor], sql: str, parameters: Iterable[Any]) -> None:
        self._cursor = how(self._conn._conn, sql, parameters)
        self._rows = self._cursor.fetchall()


class Database:
    """Two kinds of transactions on one database, single statements, and names that only one process holds at a time."""

    def __init__(self, engine: AsyncEngine, locks: AsyncEngine | None, reads: _SqliteReader | None) -> None:
        postgresql = locks is not None
        # A reader must see one instant, however many statements it needs. SQLite has no other kind.
        snapshot = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True} if postgresql else {}
        self._engine = engine
        self._reader = engine.execution_options(read_only=True, **snapshot)
        self._locks = locks
        self._reads = reads
        self._names = Names(Path(f"{engine.url.database}-names"))  # of SQLite alone

    @classmethod
    async def open(cls, url: str) -> Self:
        """Connect and bring the tables up to date. Raises UnsupportedDatabase, NewerSchema, ForeignTables."""
        at = make_url(url)
        driver = at.drivername
        if driver == "sqlite+aiosqlite" and at.database not in (None, "", ":memory:"):
            engine, locks, reads = create_async_engine(url), None, _SqliteReader(url)
            _prepare_sqlite(engine)
        elif driver == "postgresql+asyncpg":
            connect: dict[str, Any] = {"command_timeout": ANSWER_S, "server_settings": GIVE_UP}
            engine = create_async_engine(url, connect_args=connect)
            # Connections of their own: waiting for a name must not use up those that its holder needs.
            locks, reads = create_async_engine(url, isolation_level="AUTOCOMMIT"), None
        else:
            raise UnsupportedDatabase(at.render_as_string(hide_password=True))
        database = cls(engine, locks, reads)
        try:
            await database._bring_up_to_date()
        except BaseException:
            await database.close()
            raise
        return database

    async def close(self) -> None:
        await self._engine.dispose()
        if self._reads is not None:
            await self._reads.close()
        if self._locks is not None:
            await self._locks.dispose()

    @property
    def postgresql(self) -> bool:
        """Else it is SQLite."""
        return self._locks is not None

    async def rows(self, statement: Executable, **values: Any) -> Sequence[Any]:
        """What one statement finds, which sees one instant and changes nothing.

        `values` are its bound parameters: to build a statement takes longer than SQLite takes to answer it.
        """
        if self._reads is not None:
            return await self._reads.rows(statement, values)
        async with self.read() as sql:
            return (await sql.execute(statement, values)).all()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that sees one instant and changes nothing."""
        async with self._reader.begin() as sql:
            yield sql

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that is the only one to write, from here to its commit."""
        async with self._engine.connect() as sql:
            transaction = await sql.begin()
            try:
                if self._locks is not None:
                    await sql.execute(select(clock.c.id).with_for_update())
                yield sql
            except BaseException:
                await transaction.rollback()
                raise
            try:
                await transaction.commit()
            except DBAPIError as error:
                if error.connection_invalidated:
                    raise CommitUnknown from error
                raise

    @asynccontextmanager
    async def alone(self, names: Iterable[str]) -> AsyncIterator[None]:
        """See Catalog.alone. Names are taken in one order, so two who want the same ones do not block each other."""
        async with AsyncExitStack() as held:
            if self._locks is None:
                await held.enter_async_context(self._names.held(names))
            else:
                sql = await self._hold(self._locks, sorted(set(names)))
                held.push_async_callback(_let_go, sql)
            yield

    @retried
    async def _hold(self, engine: AsyncEngine, names: list[str]) -> AsyncConnection:
        """A connection that holds these names: for as long as it is open, whatever becomes of this process."""
        sql = await engine.connect()
        try:
            for name in names:
                await sql.execute(select(func.pg_advisory_lock(number_of(name))))
        except BaseException:
            await _let_go(sql)
            raise
        return sql

    @retried
    async def _bring_up_to_date(self) -> None:
        # A migration may take long, and so may waiting for another process's.
        patient = self._locks.execution_options(isolation_level="READ COMMITTED") if self._locks else self._engine
        async with patient.begin() as sql:
            await sql.run_sync(bring_up_to_date)


async def _let_go(sql: AsyncConnection) -> None:
    try:
        if not sql.invalidated:  # else the server let go of them when it lost the connection
            await sql.execute(select(func.pg_advisory_unlock_all()))
    except DBAPIError as error:
        log.warning("names were not held to the end: %s", error)
        if not sql.invalidated:
            await sql.invalidate()
    finally:
        await sql.close()


def _passes(error: Exception) -> bool:
    """Whether it is worth trying again soon."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    return _state(error).startswith(PASSING) or isinstance(error, OSError)  # TimeoutError is one


def _lasts(error: Exception) -> bool:
    """Whether it is the database's state, and no fault of the statement."""
    if isinstance(error, OperationalError) and isinstance(error.orig, sqlite3.OperationalError):
        return error.orig.sqlite_errorcode != sqlite3.SQLITE_ERROR  # that one is a wrong statement
    return _state(error).startswith(LASTING) or isinstance(error, CommitUnknown | NoFreeConnection)


def _is_full(error: Exception) -> bool:
    """Whether the file of an SQLite database found no room on its disk."""
    found = error.orig if isinstance(error, DBAPIError) else None
    return isinstance(found, sqlite3.OperationalError) and found.sqlite_errorcode in FULL


def _state(error: Exception) -> str:
    """PostgreSQL's five letters for what happened; an error of connecting comes as the driver's own."""
    found = error.orig if isinstance(error, DBAPIError) else error
    return getattr(found, "sqlstate", None) or ""


def _prepare_sqlite(engine: AsyncEngine) -> None:
    """WAL, durable commits, and transactions that say at once whether they write.

    A transaction that reads first and writes later fails with "database is locked" if another has written in between,
    however long it waits. Writers therefore begin IMMEDIATE.
    """

    @event.listens_for(engine.sync_engine, "connect")
    def _on_first(connection: Any, record: Any) -> None:
        driver = connection.driver_connection
        driver.cursor = functools.partial(_Cursor, driver)
        _on_connect(connection, record)

    @event.listens_for(engine.sync_engine, "begin")
    def _on_begin(connection: Any) -> None:
        read_only = connection.get_execution_options().get("read_only", False)
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def _on_connect(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # the driver must not begin transactions of its own
    cursor = connection.cursor()
    # busy_timeout comes first: switching a new file to WAL may have to wait for another process that does the same.
    for pragma in (f"busy_timeout={LOCK_S * 1000}", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


@dataclass
class OnDatabase:
    """What a part of the catalog stands on."""

    _database: Database

    async def _of_each(self, statement: Executable, among: Iterable[Any], **values: Any) -> list[Any]:
        """What a statement finds that has some values of `among` in its parameter `some`, for all of them in turn."""
        found: list[Any] = []
        for some in chunks(list(among)):
            found += await self._database.rows(statement, some=some, **values)
        return found


async def tick(sql: AsyncConnection) -> int:
    """Take the next clock value."""
    advance = update(clock).where(clock.c.id == 1).values(value=clock.c.value + 1).returning(clock.c.value)
    return int((await sql.execute(advance)).scalar_one())


SQL_CHUNK = 500  # values in one IN (...); SQLite allows 32,766 and asyncpg 32,767


def chunks(values: list[Any], size: int = SQL_CHUNK) -> Iterable[list[Any]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
