"""How many stems are queued, ready and failed, without counting them each time somebody asks."""

import asyncio
import time

from indexer import Catalog

KEPT_S = 1.0  # at least, and so many times what counting took: of a large catalog a second's age is no matter
KEPT_TIMES = 50


class Counts:
    """The catalog's counts as they were a moment ago; those who ask at once share one answer."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._counting = asyncio.Lock()
        self._found: dict[str, int] = {}
        self._until = 0.0
        self._changes = 0

    async def now(self) -> dict[str, int]:
        async with self._counting:
            if (begun := time.monotonic()) >= self._until:
                changes = self._changes
                self._found = await self._catalog.counts()
                ended = time.monotonic()
                if changes == self._changes:  # else it was changed while it was counted
                    self._until = ended + max(KEPT_S, KEPT_TIMES * (ended - begun))
            return self._found

    def forget(self) -> None:
        """The catalog was changed from here, and whoever asks next must see it."""
        self._until = 0.0
        self._changes += 1
