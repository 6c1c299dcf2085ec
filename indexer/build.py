"""Embeddings of the whole catalog -> one sealed, measured snapshot."""

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indexer.catalog import Catalog
from indexer.fold import HermitianFold
from indexer.snapshot import IndexType, Snapshot, SnapshotWriter

PROBES = 64  # queries of a recall measurement; each is compared with every window exactly
STEMS_AT_ONCE = 200


def snapshot_folder(index_folder: Path, generation: int) -> Path:
    """Where a generation's snapshot lies."""
    return index_folder / f"generation-{generation:06d}"


async def build_snapshot(
    catalog: Catalog,
    index_folder: Path,
    *,
    generation: int,
    fingerprint: str,
    fold: HermitianFold,
    window_s: float,
    stride_s: float,
    index_type: IndexType = "flat",
    report: Callable[[int], Awaitable[None]] | None = None,
) -> Snapshot:
    """Seal every ready stem's keys under one fingerprint.

    The catalog may change meanwhile: the snapshot states the clock value from before its first read, and whoever
    serves it applies what happened since. What an unfinished build left in the folder is removed first.

    Args:
        report: called with the number of stems folded so far.
    """
    folder = snapshot_folder(index_folder, generation)
    if folder.exists():
        await asyncio.to_thread(shutil.rmtree, folder)
    seq = await catalog.clock_value()
    probes = await _probes(catalog, fingerprint, fold.embedding_dim)
    writer = SnapshotWriter(
        folder,
        fold=fold,
        fingerprint=fingerprint,
        generation=generation,
        seq=seq,
        window_s=window_s,
        stride_s=stride_s,
        index_type=index_type,
        probes=probes,
    )
    done = 0
    async for stems in catalog.all_embeddings(fingerprint, STEMS_AT_ONCE):
        await asyncio.to_thread(writer.add, stems)
        done += len(stems)
        if report:
            await report(done)
    return await asyncio.to_thread(writer.seal)


async def _probes(catalog: Catalog, fingerprint: str, dim: int) -> NDArray[np.complex64]:
    """One window of each of some stems, drawn by a fixed seed: queries as the catalog itself would ask them."""
    rows = await catalog.ready_rows()
    rng = np.random.default_rng(0)
    drawn = np.sort(rng.choice(rows, size=min(PROBES, len(rows)), replace=False))
    stems = await catalog.embeddings_of(drawn.tolist(), fingerprint)
    probes = [stem.embedding[rng.integers(len(stem.windows))] for stem in stems.values() if len(stem.windows)]
    return np.stack(probes) if probes else np.empty((0, dim), np.complex64)
