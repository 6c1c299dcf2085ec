"""What the congruence suite cannot ask of every store: Qdrant's engine is opened again, and its files are damaged."""

from pathlib import Path
from typing import cast

import numpy as np
import pytest
from qdrant_client import QdrantClient

from indexer.catalog.catalog import Catalog
from indexer.index.qdrant_generations import QdrantStore
from tests.parity.test_index_stores import World, unit_rows

pytest.importorskip("qdrant_edge")
pytestmark = pytest.mark.anyio


async def test_the_engine_answers_the_same_after_a_restart_and_is_filled_again_where_it_refuses_its_files(
    tmp_path: Path,
) -> None:
    from tests.qdrant_edge import EdgeClient

    folder = tmp_path / "edge"
    client = EdgeClient(folder)
    catalog = await Catalog.open(f"sqlite+aiosqlite:///{tmp_path / 'catalog.sqlite'}")
    world = await World.open(catalog, lambda: QdrantStore(cast(QdrantClient, client)))
    rows = [await world.add(seed) for seed in range(20)]
    generation = await world.go_live()
    await world.delete(rows[3])
    await world.add(30)
    index = await world.check()
    queries = index.fold.queries(unit_rows(99, 5))
    before = index.search(queries, 40)
    for damage in (False, True):
        client.close()
        versions = list(folder.glob(f"phalar-{generation:06d}-*[0-9a-f]/segments/*/version.info"))
        assert versions
        if damage:
            for version in versions:
                version.write_bytes(b"no version")
        client = EdgeClient(folder)
        restarted = world.another()
        await restarted.open()
        found = (await world.check(restarted)).search(queries, 40)
        assert np.array_equal(before[1], found[1])
        aliases = {alias.alias_name: alias.collection_name for alias in client.get_aliases().aliases}
        assert aliases["phalar-live"].startswith(f"phalar-{generation:06d}-")
    client.close()
    await catalog.close()
