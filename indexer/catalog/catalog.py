"""Every query on the tables: stems, their embeddings per fingerprint, jobs, saved searches, generations, the alias.

SQL is the only truth. Everything that must never be lost or answered wrongly is decided in one transaction here; the
queue and the index can be rebuilt from these tables at any time.

**The clock.** Each change that the index must see (a stem became ready, was deleted, was sent back) takes the next
number of one counter row, in its own transaction. Numbers are committed in ascending order: an index that has read all
changes up to n will never see one below n appear later.

**One writer at a time.** A writing transaction locks that row with its first statement (in SQLite, the one write lock)
and holds it until it commits. What it reads stays true until then, and two writers cannot deadlock, whatever processes
they are in. See docs/decisions/one-writer-at-a-time.md.
"""

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Self

from indexer.catalog.database import Database
from indexer.catalog.embeddings import Embeddings
from indexer.catalog.generations import Generations
from indexer.catalog.music import Music
from indexer.catalog.searches import Searches
from indexer.catalog.stems import Stems


@dataclass
class Catalog(Stems, Searches, Music, Embeddings, Generations):
    """The catalog of one installation. Open it with `Catalog.open`; every method is one transaction.

    Where the database is away or another transaction is in the way, a method tries again for a few seconds, then raises
    CatalogUnavailable.
    """

    @classmethod
    async def open(cls, url: str) -> Self:
        """Connect; make the tables, or bring an older release's up to date.

        Args:
            url: `sqlite+aiosqlite:///file` or `postgresql+asyncpg://user:password@host/name`.

        Raises:
            UnsupportedDatabase, NewerSchema, ForeignTables: see indexer.catalog.records.
        """
        return cls(await Database.open(url))

    @property
    def database(self) -> Database:
        """For what else lives in the same database."""
        return self._database

    async def close(self) -> None:
        await self._database.close()

    def alone(self, *names: str) -> AbstractAsyncContextManager[None]:
        """Hold these names until the context ends; of all processes on this database, one at a time holds a name.

        For a change that SQL cannot make in one step, such as bytes in a store and the stem that names them.
        """
        return self._database.alone(names)
