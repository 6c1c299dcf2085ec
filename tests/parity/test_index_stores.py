"""Every store of the index gives the hits of brute force, whatever happened to the catalog: one suite for all of them.

Qdrant is met three times: its engine itself (`edge`), its client's own re-implementation in Python (`qdrant`), and with
PHALAR_TEST_QDRANT_URL (and PHALAR_TEST_QDRANT_KEY) a server; its collections are removed.
"""

import asyncio
import os
import secrets
import sqlite3
import warnings
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from qdrant_client import QdrantClient

import indexer.index.qdrant_generations
import indexer.index.qdrant_search
from indexer.catalog.catalog import Catalog
from indexer.catalog.records import StemEmbeddings, StemFilter
from indexer.diagonals import QueryWindows
from indexer.index.build import FolderStore
from indexer.index.choice import Limits
from indexer.index.fold import HermitianFold
from indexer.index.index import Index
from indexer.index.keys import split_ids
from indexer.index.live import IndexStore, LiveIndex
from indexer.index.qdrant_generations import QdrantStore
from indexer.index.snapshot import SnapshotError
from indexer.search import candidates
from tests.embeddings import SCORE_TOLERANCE, assert_hits, random_fold, random_rows, random_stem, upload

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore:Local mode performs exact")]

DIMENSION = 6
MODEL, OTHER_MODEL = "a" * 64, "b" * 64
STORES = ["folder", "qdrant", "edge"] + (["server"] if "PHALAR_TEST_QDRANT_URL" in os.environ else [])


make_fold = partial(random_fold, DIMENSION)


unit_rows = partial(random_rows, dimension=DIMENSION)


class World:
    """A catalog, what we know to be in it, and the index that answers for it."""

    def __init__(self, catalog: Catalog, new_store: Callable[[], IndexStore]) -> None:
        self.catalog, self.new_store = catalog, new_store
        self.fold = make_fold()
        self.stems: dict[int, StemEmbeddings] = {}
        self.ids: dict[int, str] = {}
        self.store = new_store()
        self.live = self.another()

    @classmethod
    async def open(cls, catalog: Catalog, new_store: Callable[[], IndexStore]) -> "World":
        """As the service begins: with a live generation of nothing."""
        world = cls(catalog, new_store)
        await world.go_live()
        return world

    def another(self) -> LiveIndex:
        """What a second process, or the same one after a restart, would open."""

        async def fold_of(_: str) -> HermitianFold:
            return self.fold

        return LiveIndex(self.catalog, self.new_store(), fold_of, window_s=5.0, stride_s=2.5)

    async def go_live(self, fingerprint: str = MODEL) -> int:
        generation = await self.catalog.new_generation(fingerprint)
        await self.live.build(generation, fingerprint, self.fold)
        assert await self.catalog.go_live(generation, configured=fingerprint)
        await self.live.open()
        return generation

    async def add(self, seed: int, n: int = 3, fingerprint: str = MODEL, **said: Any) -> int:
        stem = random_stem(seed, n, dimension=DIMENSION, gaps=True)
        _, (stem_id,) = await self.catalog.add([upload(f"{seed} {secrets.token_hex(4)}", **said)])
        row = (await self.catalog.stem(stem_id)).row
        assert await self.catalog.store_embeddings(row, fingerprint, stem.windows, stem.starts_s, stem.embedding)
        self.stems[row], self.ids[row] = stem, stem_id
        return row

    async def embed(self, seeds: Mapping[int, int], fingerprint: str) -> None:
        """As another model hears these stems: by row, the seed of what it hears."""
        for row, seed in seeds.items():
            stem = self.stems[row]
            heard = unit_rows(seed, len(stem.windows))
            self.stems[row] = StemEmbeddings.in_clock_time(stem.windows, stem.starts_s, heard)
            assert await self.catalog.store_embeddings(row, fingerprint, stem.windows, stem.starts_s, heard)

    async def delete(self, row: int) -> None:
        await self.catalog.delete(self.ids[row])
        del self.stems[row]

    async def check(self, live: LiveIndex | None = None, allowed: npt.NDArray[np.int64] | None = None) -> Index:
        """The hits of the current index are those of brute force over the stems that we know to be there."""
        index = await (live or self.live).current()
        for k in (1, 7, 200):
            assert_hits(index, self.stems, k, allowed)
        if allowed is None:
            sizes = [len(stem.windows) for stem in self.stems.values()]
            assert (index.windows, index.stems) == (sum(sizes), np.count_nonzero(sizes))
        return index


@pytest.fixture(params=STORES)
async def world(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    catalog = await Catalog.open(f"sqlite+aiosqlite:///{tmp_path / 'catalog.sqlite'}")
    # Small enough that a few stems need several filters, batches and points requests.
    for name, size in (("FILTER_ROWS", 4), ("QUERIES_AT_ONCE", 2), ("POINTS_AT_ONCE", 5), ("ABSORBED_FROM", 1)):
        for module in (indexer.index.qdrant_generations, indexer.index.qdrant_search):
            monkeypatch.setattr(module, name, size, raising=False)
    if request.param == "folder":
        yield await World.open(catalog, lambda: FolderStore(tmp_path / "index", Limits(2**30)))
    else:
        client: Any
        if request.param == "server":
            url, key = os.environ["PHALAR_TEST_QDRANT_URL"], os.environ.get("PHALAR_TEST_QDRANT_KEY")
            client = QdrantClient(url=url, api_key=key, timeout=60)
        elif request.param == "edge":
            pytest.importorskip("qdrant_edge")
            from tests.qdrant_edge import EdgeClient

            client = EdgeClient(tmp_path / "edge")
        else:
            client = QdrantClient(":memory:", force_disable_check_same_thread=True)
        prefix = f"test-{secrets.token_hex(4)}"
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Payload indexes have no effect in the local Qdrant")
            yield await World.open(catalog, lambda: QdrantStore(client, prefix=prefix))
        await QdrantStore(client, prefix=prefix).keep(())
        client.close()
    await catalog.close()


async def test_the_hits_are_those_of_brute_force(world: World) -> None:
    for seed in range(12):
        await world.add(seed, n=1 + seed % 5)
    await world.go_live()
    index = await world.check()
    every = np.concatenate([stem.embedding for stem in world.stems.values()])
    norms = np.linalg.norm(index.fold.keys(every), axis=1)
    assert norms.max() > 1.5 * norms.min(), "unequal norms are the point: this is no cosine"
    scores, _ = index.search(index.fold.queries(unit_rows(99, 5)), index.windows)
    assert scores.min() < 0 < scores.max(), "and scores may be negative"


async def test_an_empty_index_answers_with_padding_and_takes_stems(world: World) -> None:
    await world.go_live()
    await world.check()
    await world.add(1)
    await world.check()


async def test_a_stem_without_windows_is_found_by_nothing(world: World) -> None:
    await world.add(1, n=0)
    await world.go_live()
    await world.add(2, n=0)
    await world.add(3)
    await world.check()


async def test_windows_that_tie_are_all_answered(world: World) -> None:
    for _ in range(4):
        await world.add(7)
    await world.go_live()
    await world.add(7)
    await world.check()


async def test_filters_mean_what_sql_says(world: World) -> None:
    for seed in range(10):
        await world.add(seed, instrument="bass" if seed % 2 else "drums", track=f"track {seed // 3}")
    await world.go_live()
    for seed in range(20, 24):
        await world.add(seed, instrument="bass", track="late")
    await world.delete(min(world.stems))
    for wanted in (
        StemFilter(instruments=("bass",)),
        StemFilter(instruments=("drums",), exclude_tracks=("track 1",)),
        StemFilter(tracks=("late", "track 2")),
        StemFilter(tracks=("no such track",)),
    ):
        await world.check(allowed=await world.catalog.rows_allowed(wanted))
    await world.check(allowed=np.array([77, *list(world.stems)[:3]], np.int64))


async def test_new_stems_are_found_and_deleted_ones_never_again(world: World) -> None:
    rows = [await world.add(seed) for seed in range(6)]
    await world.go_live()
    fresh = await world.add(20)
    await world.check()
    await world.delete(rows[2])
    await world.delete(fresh)
    await world.check()
    restarted = world.another()
    await restarted.open()
    await world.check(restarted)


async def test_fresh_keys_that_the_store_takes_in_change_no_answer(world: World) -> None:
    rows = [await world.add(seed) for seed in range(4)]
    await world.go_live()
    other = world.another()
    await other.open()
    rows += [await world.add(seed) for seed in range(20, 26)]
    await world.delete(rows[1])
    await world.check()
    await world.check(other)
    await world.live.absorb()
    await world.check()
    await world.check(other)  # which still holds in memory what the store now has as well
    await world.delete(rows[5])
    await world.add(30)
    await other.absorb()
    for process in (world.live, other, world.another()):
        await process.open()
        await world.check(process)
    await world.live.absorb()
    await world.check()


async def test_what_another_process_had_the_store_take_in_is_found_by_one_that_was_behind(world: World) -> None:
    await world.add(1)
    await world.go_live()
    behind = world.another()
    await behind.open()
    rows = [await world.add(seed) for seed in range(20, 24)]
    await world.check()
    await world.live.absorb()
    await world.delete(rows[0])
    await world.check(behind)
    await world.check()


async def test_stems_that_have_fewer_windows_than_before_make_no_generation_incomplete(world: World) -> None:
    rows = [await world.add(seed) for seed in range(4)]
    generation = await world.go_live()
    for row in rows:
        stem = world.stems[row] = world.stems[row].some(slice(1))
        assert await world.catalog.store_embeddings(row, MODEL, stem.windows, stem.starts_s, stem.embedding)
    await world.check()
    await world.live.absorb()
    assert (await world.store.load(world.catalog, generation, MODEL)).generation == generation
    await world.check()


async def test_an_index_held_by_a_query_keeps_its_answers(world: World) -> None:
    rows = [await world.add(seed) for seed in range(4)]
    await world.go_live()
    held = await world.check()
    queries = held.fold.queries(unit_rows(99, 5))
    before = held.search(queries, 20)
    await world.add(20)
    await world.delete(rows[0])
    await world.check()
    for was, now in zip(before, held.search(queries, 20), strict=True):
        assert np.array_equal(was, now)


async def test_the_same_stems_come_up_as_candidates(world: World) -> None:
    for seed in range(60):
        await world.add(seed, n=2)
    await world.go_live()
    await world.add(100)
    index = await world.live.current()
    embedding = unit_rows(5, 4)
    queries = QueryWindows(embedding, np.arange(4) * 0.04, np.arange(4))
    found = candidates(index, queries, limit=3)
    best = {
        row: float(index.fold.scores(embedding, stem.embedding).max()) for row, stem in world.stems.items()
    }  # of each stem
    expected = sorted(best, key=lambda row: -best[row])[: len(found.rows)]
    assert len(found.rows) >= 50
    assert found.rows[:10].tolist() == expected[:10]
    np.testing.assert_allclose(found.best[:10], [best[row] for row in expected[:10]], atol=SCORE_TOLERANCE)


async def test_a_switch_and_a_rollback_answer_from_one_whole_generation(world: World) -> None:
    for seed in range(5):
        await world.add(seed)
    first = await world.go_live()
    await world.embed({row: 1000 + row for row in world.stems}, OTHER_MODEL)
    old_fold, world.fold = world.fold, make_fold(seed=1)
    second = await world.go_live(OTHER_MODEL)
    index = await world.check()
    assert (index.generation, index.fingerprint) == (second, OTHER_MODEL)
    assert not np.allclose(index.fold.hermitian, old_fold.hermitian)
    await world.catalog.roll_back()
    back = await world.live.current()
    assert (back.generation, back.fingerprint) == (first, MODEL)
    assert np.array_equal(back.fold.hermitian, old_fold.hermitian)
    await world.catalog.roll_back()
    await world.check()


@pytest.mark.parametrize("late", ["before its first read", "after it"])
async def test_a_stem_that_is_ready_before_the_next_model_has_seen_it_is_found_by_that_model(
    world: World, late: str
) -> None:
    heard = {await world.add(1): 1001}
    await world.embed(heard, OTHER_MODEL)
    generation = await world.catalog.new_generation(OTHER_MODEL)
    assert await world.catalog.lacking(OTHER_MODEL) == []
    if late == "before its first read":
        heard[await world.add(2)] = 1002
    index = await world.live.build(generation, OTHER_MODEL, world.fold)
    if late == "after it":
        heard[await world.add(2)] = 1002
    await world.live.prepare(index)
    assert not await world.catalog.go_live(generation, configured=OTHER_MODEL)
    await world.embed(heard, OTHER_MODEL)
    assert await world.catalog.go_live(generation, configured=OTHER_MODEL)
    assert (await world.check()).generation == generation
    restarted = world.another()
    await restarted.open()
    await world.check(restarted)


async def test_a_generation_of_another_model_is_not_loaded(world: World) -> None:
    await world.add(1)
    generation = await world.go_live()
    with pytest.raises(SnapshotError):
        await world.store.load(world.catalog, generation, OTHER_MODEL)


async def test_a_lost_generation_is_built_again_from_sql(world: World) -> None:
    for seed in range(3):
        await world.add(seed)
    await world.go_live()
    await world.store.keep(())
    restarted = world.another()
    await restarted.open()
    await world.check(restarted)


async def test_processes_that_meet_a_lost_generation_at_once_answer_from_the_one_that_is_built(world: World) -> None:
    for seed in range(6):
        await world.add(seed)
    await world.go_live()
    others = [world.another() for _ in range(2)]
    for other in others:
        await other.open()
    await world.store.keep(())
    world.fold = world.fold.turned_to(unit_rows(5, 20))  # the same scores by other keys, as another machine may have
    await asyncio.gather(world.live.check(), others[0].check())
    await others[1].check()
    for process in (world.live, *others):
        await world.check(process)


async def test_where_a_copy_of_the_catalog_is_put_back_what_the_index_has_seen_since_is_forgotten(
    world: World, tmp_path: Path
) -> None:
    await world.add(1)
    await world.go_live()
    kept = dict(world.stems)
    with closing(sqlite3.connect(tmp_path / "catalog.sqlite")) as catalog, closing(sqlite3.connect(":memory:")) as copy:
        catalog.backup(copy)
        for seed in range(20, 26):
            await world.add(seed)
        await world.check()
        await world.live.absorb()
        await world.go_live()
        copy.backup(catalog)
    world.stems, world.live = kept, world.another()
    await world.live.open()
    await world.check()
    for seed in range(30, 33):
        await world.add(seed)
    await world.check()
    await world.go_live()
    await world.check()


async def test_only_the_generations_that_a_rollback_needs_are_kept(world: World) -> None:
    await world.add(1)
    generations = [await world.go_live() for _ in range(3)]
    await world.live.tidy(generations[1:])
    for generation in generations[1:]:
        assert (await world.store.load(world.catalog, generation, MODEL)).generation == generation
    with pytest.raises(SnapshotError):
        await world.store.load(world.catalog, generations[0], MODEL)


async def test_a_truncated_rank_is_searched_alike_and_its_slack_holds(world: World) -> None:
    world.fold = make_fold(rank=3)
    for seed in range(8):
        await world.add(seed)
    await world.go_live()
    await world.add(20)
    index = await world.check()
    assert index.manifest.rank == 3
    assert index.manifest.bound == world.fold.bound > 0
    x = unit_rows(3, 4)
    scores, ids = index.search(index.fold.queries(x), 27)
    rows, windows = split_ids(ids)
    slack = index.slack(x)
    for query in range(4):
        exact = [
            index.fold.scores(x[[query]], stem.embedding[stem.windows == window])[0, 0]
            for row, window in zip(rows[query].tolist(), windows[query], strict=True)
            for stem in [world.stems[row]]
        ]
        assert (np.abs(scores[query] - exact) <= slack[query]).all()


async def test_a_generation_measures_its_recall(world: World) -> None:
    for seed in range(20):
        await world.add(seed)
    await world.go_live()
    recall = (await world.live.current()).manifest.recall
    assert recall is not None
    assert (recall.at, recall.probes, recall.deep_at) == (10, 20, 60)
    assert (recall.value, recall.rescored, recall.deep) == (1.0, 1.0, 1.0)
