"""How many stems there are, as it is told without counting each time."""

import asyncio
from typing import cast

import pytest

from indexer import Catalog
from service.api.counts import Counts


class Counted:
    """A catalog that answers so, one after the other."""

    def __init__(self, *answers: int | None) -> None:
        self.answers = [*answers]
        self.begun = asyncio.Event()

    async def counts(self) -> dict[str, int]:
        self.begun.set()
        await asyncio.sleep(0)
        if (found := self.answers.pop(0)) is None:
            raise ConnectionError
        return {"ready": found}


def test_a_count_that_failed_is_tried_again_by_whoever_asks_next() -> None:
    async def ask() -> None:
        counts = Counts(cast(Catalog, Counted(None, 3)))
        with pytest.raises(ConnectionError):
            await counts.now()
        assert await counts.now() == await counts.now() == {"ready": 3}

    asyncio.run(ask())


def test_what_is_changed_while_it_is_counted_is_seen_by_whoever_asks_next() -> None:
    async def ask() -> None:
        catalog = Counted(3, 4)
        counts = Counts(cast(Catalog, catalog))
        first = asyncio.create_task(counts.now())
        await catalog.begun.wait()
        counts.forget()
        assert (await first, await counts.now()) == ({"ready": 3}, {"ready": 4})

    asyncio.run(ask())
