"""Embeddings of the whole catalog -> one sealed, measured generation, in a folder of this machine."""

import asyncio
import fcntl
import logging
import shutil
import threading
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from indexer.catalog.catalog import Catalog
from indexer.catalog.records import StemEmbeddings
from indexer.index.choice import LEARNING, IndexType, Limits, choose
from indexer.index.fold import HermitianFold
from indexer.index.index import Index
from indexer.index.manifest import Manifest
from indexer.index.snapshot import MANIFEST, Snapshot, SnapshotCorrupt, SnapshotError
from indexer.index.writer import SnapshotWriter

log = logging.getLogger("phalar.index")
Report = Callable[[int], Awaitable[None]]

PROBES = 64  # queries of a recall measurement; each is compared with every window exactly
STEMS_AT_ONCE = 200
# From so many windows on keys are kept in as few directions as hold them; below, nothing is gained.
TURNED_FROM = 20_000
# How far a score may be off then, before it is scored again exactly: neighbours lie several times as far apart.
LOST_OF_A_SCORE = 0.02
# Windows from which a fold learns its directions, sq8 each coordinate's range and ivf its lists; more change
# little, and cost memory.
SAMPLE_WINDOWS = 50_000


@dataclass(frozen=True)
class Wanted:
    """What the next generation is to be: of which model, and what a person chose of it."""

    generation: int
    fingerprint: str
    fold: HermitianFold  # at the highest rank it may have
    window_s: float
    stride_s: float
    index_type: IndexType | None = None  # None: what the size of the catalog and the memory call for

    @property
    def facts(self) -> dict[str, Any]:
        """What its manifest must say."""
        return {
            "generation": self.generation,
            "fingerprint": self.fingerprint,
            "highest_rank": self.fold.rank,
            "asked_type": self.index_type,
            "window_s": self.window_s,
            "stride_s": self.stride_s,
        }


def snapshot_folder(index_folder: Path, generation: int) -> Path:
    """Where a generation's snapshot lies."""
    return index_folder / f"generation-{generation:06d}"


async def build_snapshot(
    catalog: Catalog, index_folder: Path, wanted: Wanted, limits: Limits, report: Report | None = None
) -> Snapshot:
    """Seal every ready stem's keys under one fingerprint, in the most exact kind of index that the limits allow.

    The catalog may change meanwhile: the snapshot states the clock value that it is whole to, from before its first
    read, and the index that loads it applies the changes since. A build of the same that was killed is gone on with,
    and a whole snapshot that lies there already is taken as it is. An approximate type that nobody asked for must reach
    the required recall on this catalog's own windows, else every key is compared.

    Args:
        report: called with the number of stems folded so far.
    """
    folder = snapshot_folder(index_folder, wanted.generation)
    with await asyncio.to_thread(_alone_in, folder):
        _, clock = await catalog.position()
        fits = partial(_fits, wanted, clock)
        with suppress(SnapshotError):  # none, or a damaged one
            found = await asyncio.to_thread(Snapshot.load, folder)
            if fits(found.manifest):
                return found
        (folder / MANIFEST).unlink(missing_ok=True)
        writer = await asyncio.to_thread(SnapshotWriter.resumed, folder, fits)
        if writer is not None:
            log.info("generation %d is gone on with after %d stems", wanted.generation, writer.stems)
        else:
            writer = await _begun(catalog, folder, wanted, limits)
        snapshot = await _filled(writer, catalog, wanted, report)
        manifest = snapshot.manifest
        if manifest.index_type == "ivf" and wanted.index_type is None and not _worthwhile(snapshot, limits):
            why = f"ivf was tried and needed {manifest.probed} of its {manifest.lists} lists"
            log.info("comparing every key after all: %s", why)
            (folder / MANIFEST).unlink()
            writer = await _begun(catalog, folder, wanted, limits, not_approximate=why)
            snapshot = await _filled(writer, catalog, wanted, report)
        return snapshot


def _alone_in(folder: Path) -> BinaryIO:
    """One builder in a folder at a time, of all processes: another waits here until this file is closed, and then finds
    what the first has made."""
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / "lock").open("wb")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def _fits(wanted: Wanted, clock: int, found: Manifest) -> bool:
    """Whether a snapshot, or the beginning of one, is of what is wanted, and has seen no more than the catalog: where a
    copy of that was put back, numbers of generations are given again."""
    return found.seq <= clock and all(getattr(found, name) == fact for name, fact in wanted.facts.items())


def _worthwhile(snapshot: Snapshot, limits: Limits) -> bool:
    """Whether an approximate index finds enough and looks at less than half of its lists for it."""
    manifest = snapshot.manifest
    recall = manifest.recall
    return recall is None or (recall.rescored >= limits.minimum_recall and 2 * manifest.probed <= manifest.lists)


async def _begun(
    catalog: Catalog, folder: Path, wanted: Wanted, limits: Limits, *, not_approximate: str | None = None
) -> SnapshotWriter:
    """A writer of what the catalog's size and the limits call for, and has learnt what that must learn."""
    seq = await catalog.whole_to(wanted.fingerprint)
    windows = await catalog.window_count(wanted.fingerprint)
    fold, sample = await fold_for(catalog, wanted)
    choice = choose(windows, fold.rank, limits, index_type=wanted.index_type, approximate=not_approximate is None)
    if sample is None and choice.index_type in LEARNING:
        sample = await draw_stems(catalog, wanted, SAMPLE_WINDOWS)
    log.info("generation %d is built as %s: %s", wanted.generation, choice.index_type, choice.reason)
    if choice.rank != fold.rank:
        fold = fold.at_rank(choice.rank)
    reason = "; ".join(filter(None, [choice.reason, not_approximate]))
    manifest = Manifest.unsealed(fold, **wanted.facts, seq=seq, index_type=choice.index_type, reason=reason)
    probes = await draw_probes(catalog, wanted)
    return await asyncio.to_thread(SnapshotWriter, folder, fold, manifest, sample=sample, probes=probes)


async def fold_for(catalog: Catalog, wanted: Wanted) -> tuple[HermitianFold, dict[int, StemEmbeddings] | None]:
    """The fold of a new generation, turned to the catalog where that is large, and the stems it was turned to."""
    if await catalog.window_count(wanted.fingerprint) < TURNED_FROM:
        return wanted.fold, None
    sample = await draw_stems(catalog, wanted, SAMPLE_WINDOWS)
    embeddings = np.concatenate([stem.embedding for stem in sample.values()])
    return await asyncio.to_thread(turned, wanted.fold, embeddings), sample


def turned(fold: HermitianFold, sample: NDArray[np.complex64]) -> HermitianFold:
    """The fold turned to a catalog's windows, at the lowest rank that loses next to nothing of their scores.

    A rank that somebody asked for stays as it is.
    """
    to_these = fold.turned_to(sample)
    if fold.rank < fold.embedding_dim:
        return to_these
    return to_these.at_rank(to_these.rank_within(LOST_OF_A_SCORE, sample[:: max(1, len(sample) // 5000)]))


async def _filled(writer: SnapshotWriter, catalog: Catalog, wanted: Wanted, report: Report | None) -> Snapshot:
    done = writer.stems
    async for stems in catalog.all_embeddings(wanted.fingerprint, STEMS_AT_ONCE, after=writer.last_row):
        await asyncio.to_thread(writer.add, stems)
        done += len(stems)
        if report:
            await report(done)
    return await asyncio.to_thread(writer.seal)


async def draw_stems(
    catalog: Catalog, wanted: Wanted, windows: int, *, one_of_each: bool = False
) -> dict[int, StemEmbeddings]:
    """Stems drawn by a fixed seed, with all of their windows or one of each, until there are so many windows."""
    rows = await catalog.ready_rows()
    rng = np.random.default_rng(0)
    drawn: dict[int, StemEmbeddings] = {}
    shuffled, count = rng.permutation(rows)[:windows], 0
    for start in range(0, len(shuffled), STEMS_AT_ONCE):
        if count >= windows:
            break
        some = np.sort(shuffled[start : start + STEMS_AT_ONCE]).tolist()
        for row, stem in (await catalog.embeddings_of(some, wanted.fingerprint)).items():
            if len(stem.windows):
                drawn[row] = stem.some([rng.integers(len(stem.windows))]) if one_of_each else stem
                count += len(drawn[row].windows)
    return drawn


async def draw_probes(catalog: Catalog, wanted: Wanted) -> NDArray[np.complex64]:
    """Queries of a recall measurement, windows of as many stems: complex64 (n, D)."""
    drawn = await draw_stems(catalog, wanted, PROBES, one_of_each=True)
    nothing = np.empty((0, wanted.fold.embedding_dim), np.complex64)
    return np.concatenate([nothing, *(stem.embedding for stem in drawn.values())])[:PROBES]


class FolderStore:
    """Keeps generations as FAISS snapshots in a folder; see `IndexStore`."""

    reachable = True

    def __init__(self, folder: Path, limits: Limits) -> None:
        self._folder, self._limits = folder, limits
        self.damaged: dict[int, SnapshotCorrupt] = {}
        """By generation, what reading a mapped file through has found."""

    async def load(self, catalog: Catalog, generation: int, fingerprint: str) -> Index:
        """See `IndexStore.load`. A mapped file is read through beside the first answers; see `check`."""
        folder = snapshot_folder(self._folder, generation)
        damaged = self.damaged.pop(generation, None) is not None
        snapshot = await asyncio.to_thread(Snapshot.load, folder, check_mapped=damaged)
        found = snapshot.manifest
        if (found.fingerprint, found.generation) != (fingerprint, generation):
            raise SnapshotCorrupt(folder, "belongs to another model or generation")
        if snapshot.mapped and not damaged:
            threading.Thread(target=self._read_through, args=(snapshot,), name="phalar-snapshot", daemon=True).start()
        return await asyncio.to_thread(Index.of, snapshot)

    def _read_through(self, snapshot: Snapshot) -> None:
        try:
            snapshot.check_mapped()
        except SnapshotCorrupt as error:
            self.damaged[snapshot.manifest.generation] = error

    async def build(self, catalog: Catalog, wanted: Wanted, report: Report | None = None) -> Index:
        snapshot = await build_snapshot(catalog, self._folder, wanted, self._limits, report)
        return await asyncio.to_thread(Index.of, snapshot)

    async def point(self, index: Index) -> None:
        """The alias is in SQL alone."""

    async def check(self, index: Index) -> None:
        """See `IndexStore.check`. What was copied stays in memory; a mapped file that was found damaged is named."""
        if problem := self.damaged.get(index.generation):
            raise problem

    async def absorb(self, index: Index) -> Index:
        """A snapshot never changes; the index stays as it is."""
        return index

    async def keep(self, generations: Collection[int]) -> None:
        for folder in self._folder.glob("generation-*"):
            number = folder.name.removeprefix("generation-")
            if number.isdecimal() and int(number) not in generations:
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
