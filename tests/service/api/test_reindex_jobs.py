"""Reindexes that fail, that a rollback overtakes, that a restart finds: with a catalog, an index and models on disk."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import text

from indexer import Alias, Catalog, CatalogUnavailable, ClipFacts, HermitianFold, LiveIndex, StemMetadata, Upload
from service.api.errors import problem
from service.api.operating import ReindexIn
from service.api.reindex import Reindexer
from service.settings import Settings
from service.work.models import Models
from service.work.queue import open_queue
from tests.embeddings import random_rows
from tests.installation import save_small_checkpoint
from tests.parity.test_two_processes import SlowStore
from tests.service.api.conftest import Fresh
from tests.waiting import SOON_S, eventually

pytestmark = pytest.mark.anyio

WINDOWS = 10  # of each stem


@dataclass
class Process:
    """What an API process has for reindexes."""

    settings: Settings
    catalog: Catalog
    models: Models
    store: SlowStore
    live: LiveIndex
    reindexer: Reindexer

    async def start(self) -> None:
        await self.reindexer.point_alias()
        await self.live.open()
        await self.reindexer.resume()

    async def alias(self) -> Alias:
        alias = await self.catalog.alias()
        assert alias is not None
        return alias

    async def add(self, stems: int) -> None:
        """Put stems in that nobody has to embed."""
        known = (await self.catalog.counts())["ready"]
        for seed in range(known, known + stems):
            sha256 = hashlib.sha256(str(seed).encode()).hexdigest()
            upload = Upload(sha256, f"{seed}.wav", StemMetadata(), ClipFacts("wav", 9.0, 16_000, channels=1))
            _, (stem_id,) = await self.catalog.add([upload])
            fingerprint = self.models.configured_fingerprint
            embedding = random_rows(seed, WINDOWS, self.models.of(fingerprint).config.dimension)
            windows = np.arange(WINDOWS)
            row = (await self.catalog.stem(stem_id)).row
            assert await self.catalog.store_embeddings(row, fingerprint, windows, windows * 2.5, embedding)
        await self.live.current()

    async def reindexed(self) -> None:
        """Put three stems in, and let the second generation answer."""
        await self.add(3)
        await self.reindexer.start(ReindexIn())
        await self.finished()
        assert (await self.alias()).generation == 2

    async def finished(self) -> None:
        """Wait until no reindex is left, and what it did afterwards is done, too."""

        async def none_is_left() -> bool:
            return await self.catalog.unfinished_reindex() is None

        await eventually(none_is_left)
        async with asyncio.timeout(SOON_S), self.catalog.alone("reindex"):
            pass

    async def problems(self) -> list[str]:
        """Why reindexes failed."""
        found = await self.catalog.database.rows(text("SELECT problem ->> 'type' FROM jobs WHERE state = 'failed'"))
        return [kind for (kind,) in found]

    def generations(self) -> list[int]:
        """Which lie on the disk."""
        return sorted(int(folder.name.split("-")[1]) for folder in self.settings.index_folder.iterdir())


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def opened(stack: AsyncExitStack, settings: Settings) -> Process:
    settings.make_data_folder()
    catalog, queue, models = await Catalog.open(settings.resolved_database_url), open_queue(settings), Models(settings)
    stack.push_async_callback(catalog.close)
    stack.push_async_callback(queue.aclose)
    store = SlowStore(settings.index_folder, settings.index_limits)

    async def fold_of(fingerprint: str) -> HermitianFold:
        return models.fold(fingerprint)

    live = LiveIndex(catalog, store, fold_of, window_s=settings.window_s, stride_s=settings.stride_s)
    reindexer = Reindexer(settings, catalog, queue, models, live, problem)
    stack.push_async_callback(reindexer.close)
    process = Process(settings, catalog, models, store, live, reindexer)
    await process.start()
    return process


async def test_a_new_base_that_fails_leaves_nothing_and_is_due_again_after_as_many_changes(
    fresh: Fresh, stack: AsyncExitStack
) -> None:
    process = await opened(stack, fresh(rank=2, seal_windows=30 * WINDOWS))  # two directions find too little
    await process.add(30)
    for failed in (1, 1, 2):
        await process.reindexer.seal_if_due()
        await process.finished()
        assert await process.problems() == ["/problems/recall-too-low"] * failed
        assert process.generations() == [1]
        if failed == 1:
            await process.add(15)


async def test_a_rollback_while_an_index_is_built_stays(fresh: Fresh, stack: AsyncExitStack) -> None:
    process = await opened(stack, fresh())
    await process.reindexed()
    process.store.may_build.clear()
    await process.reindexer.start(ReindexIn())
    await eventually(lambda: process.store.builds == 3)
    assert (await process.reindexer.roll_back()).generation == 1
    process.store.may_build.set()
    await process.finished()
    assert ((await process.alias()).generation, (await process.live.current()).generation) == (1, 1)
    assert await process.problems() == ["/problems/live-moved"]
    assert process.generations() == [1, 2]


@pytest.mark.parametrize("answered", [False, True], ids=["before it answered", "after it answered"])
async def test_a_rollback_stays_that_came_between_a_reindexs_death_and_the_restart(
    fresh: Fresh, stack: AsyncExitStack, answered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = await opened(stack, fresh())
    await process.reindexed()
    if answered:
        await dies_after_the_switch(process, monkeypatch)
    else:
        process.store.may_build.clear()
        await process.reindexer.start(ReindexIn())
        await eventually(lambda: process.store.builds == 3)
        await process.reindexer.close()
    wanted = 2 if answered else 1
    assert (await process.reindexer.roll_back()).generation == wanted
    restarted = await opened(stack, process.settings)
    await restarted.finished()
    assert (await restarted.alias()).generation == wanted
    assert await restarted.problems() == ["/problems/live-moved"]


async def dies_after_the_switch(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin a reindex whose process ends once the new generation answers."""
    switched = asyncio.Event()

    async def dies(_: object) -> None:
        switched.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(process.catalog, "forget_models", dies)
    await process.reindexer.start(ReindexIn())
    async with asyncio.timeout(SOON_S):
        await switched.wait()
    await process.reindexer.close()


async def test_a_reindex_that_died_after_the_switch_builds_nothing_more_and_keeps_the_way_back(
    fresh: Fresh, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = await opened(stack, fresh())
    await process.reindexed()
    await dies_after_the_switch(process, monkeypatch)
    job = await process.catalog.unfinished_reindex()
    assert job is not None
    restarted = await opened(stack, process.settings)
    await restarted.finished()
    alias = await restarted.alias()
    assert (alias.generation, alias.previous, restarted.generations()) == (3, 2, [2, 3])
    job = await restarted.catalog.job(job.id)
    assert job.result is not None
    assert (job.state, job.result["generation"], job.result["stems"]) == ("done", 3, 3)


async def test_a_reindex_outlives_a_catalog_that_is_away_for_a_while(
    fresh: Fresh, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = await opened(stack, fresh())
    await process.add(3)
    away = asyncio.Event()

    async def fails(_: object) -> int:
        away.set()
        raise CatalogUnavailable("terminating connection")

    with monkeypatch.context() as patched:
        patched.setattr(process.catalog, "count_lacking", fails)
        await process.reindexer.start(ReindexIn())
        async with asyncio.timeout(SOON_S):
            await away.wait()
    async with process.catalog.alone("reindex"):
        pass  # that try is over
    await process.reindexer.resume()  # as every few seconds
    await process.finished()
    assert (await process.alias()).generation == 2
    assert await process.problems() == []


async def test_whoever_waited_for_a_process_that_died_knows_how_far_that_came(
    fresh: Fresh, stack: AsyncExitStack
) -> None:
    process = await opened(stack, fresh())
    await process.reindexed()
    job, _ = await process.catalog.start_reindex(ReindexIn().model_dump())
    async with process.catalog.alone("reindex"):
        waiting = await opened(stack, process.settings)
        await asyncio.sleep(0.1)
        generation = await process.catalog.new_generation(process.models.configured_fingerprint)
        await process.catalog.report_progress(job.id, {"generation": generation, "instead_of": 2})
        assert (await process.reindexer.roll_back()).generation == 1
    await waiting.finished()
    assert (await waiting.alias()).generation == 1
    assert await waiting.problems() == ["/problems/live-moved"]


async def test_a_changed_model_is_followed_after_the_reindex_that_a_restart_finds(
    fresh: Fresh, stack: AsyncExitStack, tmp_path: Path
) -> None:
    settings = fresh()
    before = await opened(stack, settings)
    old = before.models.configured_fingerprint
    job, _ = await before.catalog.start_reindex(ReindexIn().model_dump())  # and the process ends
    other = tmp_path / "other.safetensors"
    new = save_small_checkpoint(other, seed=1)
    process = await opened(stack, settings.model_copy(update={"checkpoint": other}))
    async with asyncio.timeout(SOON_S):
        while (await process.alias()).configured == old:
            await process.reindexer.resume()  # as every few seconds
            await asyncio.sleep(0.01)
    alias = await process.alias()
    assert (alias.configured, alias.fingerprint, alias.previous_fingerprint) == (new, new, old)
    assert (await process.catalog.job(job.id)).state == "done"
