"""The index that answers now: follows the alias and the catalog's clock, heals itself, and swaps by one reference."""

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Literal, Protocol

from indexer.catalog.catalog import Catalog
from indexer.catalog.records import Alias
from indexer.index.build import FolderStore, Report, Wanted
from indexer.index.choice import IndexType, Limits
from indexer.index.fold import HermitianFold
from indexer.index.index import Index, IndexUnavailable, Status
from indexer.index.snapshot import SnapshotCorrupt, SnapshotError
from model.errors import Told

log = logging.getLogger("phalar.index")

FoldOf = Callable[[str], Awaitable[HermitianFold]]


class IndexStore(Protocol):
    """Where sealed generations are kept: a folder of FAISS snapshots, or a Qdrant server.

    Everything in it is derived from SQL. Any method may raise IndexUnavailable when the store cannot be reached.
    """

    @property
    def reachable(self) -> bool:
        """Whether the last attempt succeeded."""

    async def load(self, catalog: Catalog, generation: int, fingerprint: str) -> Index:
        """A sealed generation. Raises SnapshotError: it is missing, damaged, or of another model."""

    async def build(self, catalog: Catalog, wanted: Wanted, report: Report | None = None) -> Index:
        """Seal every ready stem's keys as a new generation, and measure it; see `build_snapshot`."""

    async def point(self, index: Index) -> None:
        """This generation is live now, for whoever else reads the store."""

    async def check(self, index: Index) -> None:
        """Raise SnapshotError when the generation behind an index is no longer there."""

    async def absorb(self, index: Index) -> Index:
        """The same answers with fewer fresh keys in memory, where the store can take them in."""

    async def keep(self, generations: Collection[int]) -> None:
        """Remove all other generations."""


class QdrantNotInstalled(Told):
    """The settings name a Qdrant server, and its client is not installed."""

    says = "an index on Qdrant needs its client: pip install 'phalar-retrieval[qdrant]'"


def open_store(
    folder: Path,
    limits: Limits,
    *,
    url: str | None = None,
    api_key: str | None = None,
    timeout_s: float = 30.0,
    prefix: str = "phalar",
    mode: Literal["exact", "graph", "int8"] = "exact",
) -> IndexStore:
    """The folder's store, or the Qdrant server's if there is a URL. Nothing is read or sent yet.

    Raises:
        QdrantNotInstalled.
    """
    if url is None:
        return FolderStore(folder, limits)
    try:
        from indexer.index.qdrant_generations import QdrantStore, connect
    except ModuleNotFoundError as error:
        raise QdrantNotInstalled from error
    return QdrantStore(connect(url, api_key, timeout_s), prefix=prefix, mode=mode)


class LiveIndex:
    """Whatever the catalog says is ready and live, searchable.

    An `Index` never changes: a query is answered from the one it began with. `current` first applies every change that
    the catalog committed before the call, so the next query finds a stem that reports ready and no deleted one; no
    process has to tell another.
    """

    def __init__(
        self, catalog: Catalog, store: IndexStore, fold_of: FoldOf, *, window_s: float, stride_s: float
    ) -> None:
        """
        Args:
            fold_of: a model's fold, by fingerprint; asked only when a generation must be built anew.
        """
        self._status: Status = "starting"
        self._catalog = catalog
        self._store = store
        self._fold_of = fold_of
        self._window_s = window_s
        self._stride_s = stride_s
        self._index: Index | None = None
        self._prepared: dict[int, Index] = {}
        self._copying: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()

    @property
    def status(self) -> Status:
        """Whether queries are answered; `unreachable` while the store's server is."""
        return self._status if self._store.reachable else "unreachable"

    @property
    def held(self) -> Index | None:
        """The index of the last answer, perhaps behind the catalog; for reports."""
        return self._index

    async def open(self) -> None:
        """Load the live generation; a missing or corrupt one is rebuilt from SQL, and `status` says so meanwhile."""
        async with self._lock:
            await self._follow()

    async def current(self) -> Index:
        """The live generation with every change committed before this call.

        Raises:
            IndexUnavailable: it is still being loaded or rebuilt, or a change needs a server that cannot be reached.
        """
        if self._status != "ready":
            raise IndexUnavailable(self.status)
        alias, seq = await self._catalog.position()
        index = self._index
        if index is not None and alias is not None and index.generation == alias.generation and index.seq >= seq:
            return index
        async with self._lock:
            return await self._follow()

    async def build(
        self,
        generation: int,
        fingerprint: str,
        fold: HermitianFold,
        index_type: IndexType | None = None,
        report: Report | None = None,
    ) -> Index:
        """Build a generation beside the one that answers.

        Args:
            fold: of the model, at the highest rank that the keys may have.
        """
        wanted = Wanted(generation, fingerprint, fold, self._window_s, self._stride_s, index_type)
        return await self._store.build(self._catalog, wanted, report)

    async def prepare(self, index: Index) -> None:
        """Make a new generation ready to answer, so that the switch of the alias keeps nobody waiting."""
        self._prepared[index.generation] = await self._caught_up(index)

    async def check(self) -> None:
        """Notice a store that is back, or one that lost the generation: that one is rebuilt from SQL."""
        index = self._index
        if self._status == "starting":
            return
        if index is None or self._status != "ready":  # a rebuild that failed, or one under way that holds the lock
            return await self.open()
        try:
            await self._store.check(index)
        except SnapshotError as error:
            log.warning("the live index is gone: %s", error)
            async with self._lock:
                if self._index is index:
                    self._status, self._index = "rebuilding", None
                await self._follow()

    async def absorb(self) -> None:
        """Let the store take in the fresh keys."""
        async with self._lock:
            if self._index is not None:
                self._index = await self._store.absorb(self._index)

    async def tidy(self, generations: Collection[int]) -> None:
        """Keep these generations and no others."""
        self._prepared = {number: index for number, index in self._prepared.items() if number in generations}
        await self._store.keep(generations)

    async def _follow(self) -> Index:
        alias, seq = await self._catalog.position()
        assert alias is not None, "the service points the alias somewhere before it follows it"
        index = self._index
        moved = index is None or index.generation != alias.generation
        if index is None or moved:
            found = self._prepared.pop(alias.generation, None)
            if found is None and index is not None and index.fingerprint == alias.fingerprint:
                found = await self._copied(alias)
            else:
                found = found or await self._load(alias)
            moved, index = found is not None, found or index
        assert index is not None
        if index.seq < seq:
            index = await self._caught_up(index)
        if moved:
            await self._store.point(index)
        self._index = index
        self._status = "ready"
        if moved:  # what another process has built since lies here, too; nobody rolls back further
            oldest = min(alias.generation, alias.previous or alias.generation)
            await self.tidy(range(oldest, sys.maxsize))
        return index

    async def _copied(self, alias: Alias) -> Index | None:
        """A generation that another process built. Where the store lacks it, it is built here, too; None: meanwhile the
        old one, which is of the same model and knows every change, goes on answering."""
        if self._copying is None:
            try:
                return await self._stored(alias)
            except SnapshotError as error:
                log.info("building what another process has built, while the old index answers: %s", error)
            self._copying = asyncio.create_task(self._copy(alias.generation, alias.fingerprint))
        return None

    async def _copy(self, generation: int, fingerprint: str) -> None:
        try:
            index = await self.build(generation, fingerprint, await self._fold_of(fingerprint))
            self._prepared[generation] = await self._caught_up(index)
        except Exception:
            log.exception("generation %d could not be built here; trying again", generation)
        finally:
            self._copying = None

    async def _caught_up(self, index: Index) -> Index:
        changes = await self._catalog.changes_since(index.seq, index.fingerprint)
        return await asyncio.to_thread(index.with_changes, changes.upserted, changes.removed, changes.seq)

    async def _load(self, alias: Alias) -> Index:
        try:
            return await self._stored(alias)
        except SnapshotError as error:
            log.warning("rebuilding the index from the catalog: %s", error)
        self._status = "rebuilding"
        return await self.build(alias.generation, alias.fingerprint, await self._fold_of(alias.fingerprint))

    async def _stored(self, alias: Alias) -> Index:
        index = await self._store.load(self._catalog, alias.generation, alias.fingerprint)
        _, clock = await self._catalog.position()
        if index.seq > clock:
            what = f"has seen change {index.seq} of a catalog that is at {clock}, as after a copy of it was put back"
            raise SnapshotCorrupt(f"generation {alias.generation}", what)
        return index
