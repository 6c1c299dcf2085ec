"""Two processes on one catalog, each with a folder of its own for the index."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from indexer.catalog.catalog import Catalog
from indexer.index.build import FolderStore, Report, Wanted
from indexer.index.choice import Limits
from indexer.index.index import Index
from tests.parity.test_index_stores import MODEL, OTHER_MODEL, World
from tests.waiting import eventually

pytestmark = pytest.mark.anyio


class SlowStore(FolderStore):
    """Builds when it may."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.may_build = asyncio.Event()
        self.may_build.set()
        self.builds = 0

    async def build(self, catalog: Catalog, wanted: Wanted, report: Report | None = None) -> Index:
        self.builds += 1
        await self.may_build.wait()
        return await super().build(catalog, wanted, report)


@pytest.fixture
async def slow(tmp_path: Path) -> AsyncIterator[tuple[World, list[SlowStore]]]:
    """A catalog, and the stores of the processes on it; the last one's is the newest's."""
    catalog, stores = await Catalog.open(f"sqlite+aiosqlite:///{tmp_path / 'c.sqlite'}"), list[SlowStore]()

    def new_store() -> SlowStore:
        stores.append(SlowStore(tmp_path / f"index-{len(stores)}", Limits(2**30)))
        return stores[-1]

    yield await World.open(catalog, new_store), stores
    await catalog.close()


async def test_the_old_index_answers_while_another_processs_generation_is_built_here(
    slow: tuple[World, list[SlowStore]], tmp_path: Path
) -> None:
    world, stores = slow
    rows = [await world.add(seed) for seed in range(4)]
    first = await world.go_live()
    other = world.another()
    await other.open()
    assert (await world.check(other)).generation == first

    stores[-1].may_build.clear()
    second = await world.go_live()
    for seed in (20, 21):
        await world.add(seed)
        await world.delete(rows.pop())
        async with asyncio.timeout(60):
            index = await world.check(other)
        assert (index.generation, other.status) == (first, "ready")
    assert (await world.check()).generation == second

    before = stores[-1].builds
    stores[-1].may_build.set()

    async def follows() -> bool:
        return (await other.current()).generation == newest

    newest = second
    await eventually(follows)
    assert (await world.check(other)).fingerprint == MODEL
    assert stores[-1].builds == before, "it was built once, however often it was asked for"

    newest = await world.go_live()
    await eventually(follows)
    left = sorted(folder.name for folder in (tmp_path / "index-1").iterdir())
    assert left == [f"generation-{number:06d}" for number in (second, newest)], "those that a rollback needs"


async def test_a_rebuild_that_was_cut_off_is_begun_again(slow: tuple[World, list[SlowStore]]) -> None:
    """Another process let another model answer. The question that began to build its index here ran out of time."""
    world, stores = slow
    heard = {await world.add(seed): 1000 + seed for seed in range(4)}
    other = world.another()
    await other.open()
    await world.embed(heard, OTHER_MODEL)
    second = await world.go_live(OTHER_MODEL)
    stores[-1].may_build.clear()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await other.current()
    assert other.status == "rebuilding"
    stores[-1].may_build.set()
    await other.check()
    assert (await world.check(other)).generation == second
