"""A generation is built and opened: after a kill, beside another builder, and from a file that was damaged."""

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import indexer.index.build
import indexer.index.snapshot
import indexer.index.writer
from indexer.catalog.catalog import Catalog
from indexer.index.build import FolderStore, Wanted, build_snapshot, snapshot_folder
from indexer.index.choice import Limits
from indexer.index.fold import HermitianFold
from indexer.index.index import Index
from indexer.index.keys import split_ids
from indexer.index.live import LiveIndex
from indexer.index.snapshot import SnapshotCorrupt
from tests.embeddings import random_fold, random_rows, upload

pytestmark = pytest.mark.anyio

DIMENSION, EACH = 6, 3
MODEL = "a" * 64
LIMITS = Limits(2**30)
WANTED = Wanted(2, MODEL, random_fold(DIMENSION), 5.0, 2.5)
KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
import indexer.index.build, indexer.index.writer
from indexer.catalog.catalog import Catalog
from tests.unit.indexer.index.test_build import LIMITS, WANTED

async def report(stems):
    if stems == 12:
        os.kill(os.getpid(), signal.SIGKILL)

async def build(folder):
    indexer.index.build.STEMS_AT_ONCE, indexer.index.writer.CHECKPOINT_WINDOWS = 2, 21
    catalog = await Catalog.open(f"sqlite+aiosqlite:///{folder / 'catalog.sqlite'}")
    await indexer.index.build.build_snapshot(catalog, folder / "index", WANTED, LIMITS, report)

asyncio.run(build(Path(sys.argv[1])))
"""


@pytest.fixture
async def catalog(tmp_path: Path) -> AsyncIterator[Catalog]:
    catalog = await Catalog.open(f"sqlite+aiosqlite:///{tmp_path / 'catalog.sqlite'}")
    assert await catalog.go_live(await catalog.new_generation(MODEL), configured=MODEL)  # else no stem becomes ready
    await catalog.new_generation(MODEL)
    yield catalog
    await catalog.close()


async def add(catalog: Catalog, seed: int, embedding: NDArray[np.complex64] | None = None) -> tuple[int, str]:
    _, (stem_id,) = await catalog.add([upload(f"{seed}")])
    row = (await catalog.stem(stem_id)).row
    windows = np.arange(EACH, dtype=np.int64)
    own = random_rows(seed, EACH, DIMENSION) if embedding is None else embedding
    assert await catalog.store_embeddings(row, MODEL, windows, windows * 2.5, own)
    return row, stem_id


def live_on(catalog: Catalog, folder: Path) -> tuple[LiveIndex, FolderStore]:
    async def fold_of(_: str) -> HermitianFold:
        return WANTED.fold

    store = FolderStore(folder / "index", LIMITS)
    return LiveIndex(catalog, store, fold_of, window_s=5.0, stride_s=2.5), store


def until_damaged(store: FolderStore) -> None:
    deadline = time.monotonic() + 30
    while not store.damaged and time.monotonic() < deadline:
        time.sleep(0.01)


async def test_a_killed_build_goes_on_where_it_was_and_knows_what_changed_meanwhile(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stems = [await add(catalog, seed) for seed in range(20)]
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    child = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=120)
    assert child.returncode == -signal.SIGKILL, child.stderr
    await catalog.delete(stems[3][1])  # was put in
    await catalog.delete(stems[15][1])  # was not
    late, _ = await add(catalog, 50)
    monkeypatch.setattr(indexer.index.build, "STEMS_AT_ONCE", 2)
    live, _ = live_on(catalog, tmp_path)
    reported: list[int] = []

    async def report(done: int) -> None:
        reported.append(done)

    await live.build(2, MODEL, WANTED.fold, report=report)
    assert reported[0] == 10, "eight stems lay on the disk"
    assert await catalog.go_live(2, configured=MODEL)
    await live.open()
    index = await live.current()
    left = {row for row, _ in stems} - {stems[3][0], stems[15][0]} | {late}
    found = index.search(index.fold.queries(random_rows(99, 1, DIMENSION)), 100)[1]
    rows, counts = np.unique(split_ids(found[found >= 0])[0], return_counts=True)
    assert (set(rows.tolist()), set(counts.tolist())) == (left, {EACH})


async def test_a_large_catalog_is_kept_in_the_directions_that_its_music_has(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexer.index.build, "TURNED_FROM", 1)
    plane = random_rows(7, 2, DIMENSION)
    embeddings = random_rows(8, 20 * EACH, 2) @ plane
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    for seed, own in enumerate(embeddings.reshape(20, EACH, DIMENSION)):
        await add(catalog, seed, own)
    snapshot = await build_snapshot(catalog, tmp_path / "index", WANTED, LIMITS)
    assert (snapshot.manifest.rank, snapshot.manifest.highest_rank) == (2, DIMENSION)
    index = Index.of(snapshot)
    scores, ids = index.search(index.fold.queries(embeddings), 60)
    rows, windows = split_ids(ids)
    exact = WANTED.fold.scores(embeddings, embeddings)
    first = int(rows.min())
    np.testing.assert_allclose(scores, np.take_along_axis(exact, (rows - first) * EACH + windows, axis=1), atol=1e-4)
    assert index.slack(embeddings).max() < 1e-4, "nothing is lost, and known to be"
    asked = Wanted(3, MODEL, WANTED.fold.at_rank(5), 5.0, 2.5)
    assert (await build_snapshot(catalog, tmp_path / "index", asked, LIMITS)).manifest.rank == 5


async def test_of_two_builders_of_one_generation_the_second_takes_what_the_first_made(
    catalog: Catalog, tmp_path: Path
) -> None:
    for seed in range(5):
        await add(catalog, seed)
    both = await asyncio.gather(*(build_snapshot(catalog, tmp_path / "index", WANTED, LIMITS) for _ in range(2)))
    assert both[0].manifest == both[1].manifest, "its second among it"
    assert both[0].manifest.windows == 5 * EACH


async def test_a_mapped_file_answers_at_once_and_is_rebuilt_when_its_damage_is_found(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(5):
        await add(catalog, seed)
    live, _ = live_on(catalog, tmp_path)
    await live.build(2, MODEL, WANTED.fold)
    await catalog.go_live(2, configured=MODEL)
    await live.open()
    queries = WANTED.fold.queries(random_rows(99, 2, DIMENSION))
    before = (await live.current()).search(queries, 10)
    path = snapshot_folder(tmp_path / "index", 2) / "keys.faiss"
    flipped = bytearray(path.read_bytes())
    flipped[len(flipped) // 2 + 3] ^= 0x40  # a coordinate's exponent
    path.write_bytes(flipped)
    monkeypatch.setattr(indexer.index.snapshot, "MAPPED_FROM_BYTES", 1)
    again, store = live_on(catalog, tmp_path)
    await again.open()
    assert again.status == "ready"
    await asyncio.to_thread(until_damaged, store)
    with pytest.raises(SnapshotCorrupt, match="SHA-256"):
        await store.check(await again.current())
    await again.check()
    after = (await again.current()).search(queries, 10)
    assert all(np.array_equal(was, now) for was, now in zip(before, after, strict=True))
    await again.check()
