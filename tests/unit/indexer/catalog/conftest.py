"""A catalog on a real SQLite file and on a real PostgreSQL."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from indexer.catalog.catalog import Catalog
from tests import servers


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path / 'catalog.sqlite'}"
    return servers.emptied_database()


@pytest.fixture
async def catalog(url: str) -> AsyncIterator[Catalog]:
    opened = await Catalog.open(url)
    yield opened
    await opened.close()
