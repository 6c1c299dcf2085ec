"""The index that answers now: follows the alias and the catalog's clock, heals itself, and swaps by one reference."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal

from indexer.build import build_snapshot, snapshot_folder
from indexer.catalog import Catalog
from indexer.fold import HermitianFold
from indexer.index import Index
from indexer.snapshot import Snapshot, SnapshotCorrupt, SnapshotMissing

log = logging.getLogger("phalar.index")

Status = Literal["starting", "ready", "rebuilding"]
FoldOf = Callable[[str], Awaitable[HermitianFold]]


class IndexUnavailable(Exception):
    """No index can answer yet; `status` says whether it is being loaded or rebuilt."""

    def __init__(self, status: Status) -> None:
        super().__init__(f"the index is {status}; try again soon")
        self.status = status


class LiveIndex:
    """Whatever the catalog says is ready and live, searchable.

    An `Index` never changes, so a query that holds one is answered from that one to its end. Asking for the current
    index applies every change of the catalog that was committed before the question: a stem that reports ready is
    found by the next query, and a deleted one is not, with no message from anyone.
    """

    def __init__(self, catalog: Catalog, folder: Path, fold_of: FoldOf, *, window_s: float, stride_s: float) -> None:
        """
        Args:
            folder: holds one snapshot folder a generation.
            fold_of: a model's fold, by fingerprint; asked only when a snapshot must be built anew.
        """
        self.status: Status = "starting"
        self._catalog = catalog
        self._folder = folder
        self._fold_of = fold_of
        self._window_s = window_s
        self._stride_s = stride_s
        self._index: Index | None = None
        self._prepared: dict[int, Index] = {}
        self._lock = asyncio.Lock()

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
            IndexUnavailable: it is still being loaded or rebuilt.
        """
        if self.status != "ready":
            raise IndexUnavailable(self.status)
        alias, seq = await self._catalog.position()
        index = self._index
        if index is not None and alias is not None and index.generation == alias.generation and index.seq >= seq:
            return index
        async with self._lock:
            return await self._follow()

    async def prepare(self, snapshot: Snapshot) -> None:
        """Make a new generation ready to answer, so that the switch of the alias keeps nobody waiting."""
        self._prepared[snapshot.manifest.generation] = await self._caught_up(Index.of(snapshot))

    async def _follow(self) -> Index:
        alias, seq = await self._catalog.position()
        assert alias is not None, "the service points the alias somewhere before it follows it"
        index = self._index
        if index is None or index.generation != alias.generation:
            index = self._prepared.pop(alias.generation, None) or Index.of(
                await self._load(alias.generation, alias.fingerprint)
            )
        if index.seq < seq:
            index = await self._caught_up(index)
        self._index = index
        self.status = "ready"
        return index

    async def _caught_up(self, index: Index) -> Index:
        changes = await self._catalog.changes_since(index.seq, index.fingerprint)
        return await asyncio.to_thread(index.with_changes, changes.upserted, changes.removed, changes.seq)

    async def _load(self, generation: int, fingerprint: str) -> Snapshot:
        folder = snapshot_folder(self._folder, generation)
        try:
            snapshot = await asyncio.to_thread(Snapshot.load, folder)
        except (SnapshotCorrupt, SnapshotMissing) as error:
            log.warning("rebuilding the index from the catalog: %s", error)
        else:
            if snapshot.manifest.fingerprint == fingerprint and snapshot.manifest.generation == generation:
                return snapshot
            log.warning("rebuilding the index from the catalog: %s belongs to another model or generation", folder)
        self.status = "rebuilding"
        return await build_snapshot(
            self._catalog,
            self._folder,
            generation=generation,
            fingerprint=fingerprint,
            fold=await self._fold_of(fingerprint),
            window_s=self._window_s,
            stride_s=self._stride_s,
        )
