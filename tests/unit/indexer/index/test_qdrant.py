"""The index on Qdrant: what concerns Qdrant alone. Its hits: parity/test_index_stores.py."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from qdrant_client import QdrantClient

from indexer.catalog.catalog import Catalog
from indexer.index.build import Wanted
from indexer.index.choice import Limits
from indexer.index.fold import HermitianFold
from indexer.index.index import IndexUnavailable
from indexer.index.live import IndexStore, LiveIndex, open_store
from indexer.index.qdrant_generations import QdrantStore, connect
from indexer.index.qdrant_search import Connection
from indexer.index.snapshot import SnapshotCorrupt, SnapshotMissing
from tests.installation import free_port
from tests.web import answered_by

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore:Payload indexes have no effect")]

MODEL = "c" * 64
NAME = f"phalar-000001-{MODEL[:16]}"


def make_fold() -> HermitianFold:
    return HermitianFold(np.diag([3.0, -2.0, 1.0, 0.5]))


@pytest.fixture
def client() -> Iterator[QdrantClient]:
    opened = QdrantClient(":memory:", force_disable_check_same_thread=True)
    yield opened
    opened.close()


async def an_empty_catalog(tmp_path: Path) -> Catalog:
    catalog = await Catalog.open(f"sqlite+aiosqlite:///{tmp_path / 'catalog.sqlite'}")
    generation = await catalog.new_generation(MODEL)
    assert generation == 1
    assert await catalog.go_live(generation, configured=MODEL)
    return catalog


def wanted() -> Wanted:
    return Wanted(1, MODEL, make_fold(), 5.0, 2.5)


def live_on(catalog: Catalog, store: IndexStore) -> LiveIndex:
    async def fold_of(_: str) -> HermitianFold:
        return make_fold()

    return LiveIndex(catalog, store, fold_of, window_s=5.0, stride_s=2.5)


async def test_the_alias_in_qdrant_follows_and_points_at_one_collection(client: QdrantClient, tmp_path: Path) -> None:
    catalog, store = await an_empty_catalog(tmp_path), QdrantStore(client)
    index = await store.build(catalog, wanted())
    for _ in range(2):
        await store.point(index)
        aliases = {alias.alias_name: alias.collection_name for alias in client.get_aliases().aliases}
        assert aliases == {"phalar-live": NAME}
    again = await store.build(catalog, Wanted(2, MODEL, make_fold(), 5.0, 2.5))
    await store.point(again)
    (alias,) = client.get_aliases().aliases
    assert alias.collection_name == f"phalar-000002-{MODEL[:16]}"
    await catalog.close()


async def test_collections_of_others_are_left_alone(client: QdrantClient, tmp_path: Path) -> None:
    catalog = await an_empty_catalog(tmp_path)
    other = QdrantStore(client, prefix="phalar-other")
    await QdrantStore(client).build(catalog, wanted())
    await other.build(catalog, wanted())
    await QdrantStore(client).keep(())
    assert all(found.name.startswith("phalar-other-") for found in client.get_collections().collections)
    assert (await other.load(catalog, 1, MODEL)).generation == 1
    await catalog.close()


async def test_an_unfinished_collection_is_missing_and_is_built_over(client: QdrantClient, tmp_path: Path) -> None:
    catalog, store = await an_empty_catalog(tmp_path), QdrantStore(client)
    store._create(NAME, make_fold())
    with pytest.raises(SnapshotMissing):
        await store.load(catalog, 1, MODEL)
    assert (await store.build(catalog, wanted())).windows == 0
    await catalog.close()


async def test_a_damaged_collection_is_named_as_such(client: QdrantClient, tmp_path: Path) -> None:
    catalog, store = await an_empty_catalog(tmp_path), QdrantStore(client)
    await store.build(catalog, wanted())
    manifest = client.get_collection(NAME).config.metadata["manifest"]  # type: ignore[index]
    client.update_collection(NAME, metadata={"manifest": manifest.replace("5.0", "6.0")})
    with pytest.raises(SnapshotCorrupt, match="checksum"):
        await store.load(catalog, 1, MODEL)
    client.update_collection(NAME, metadata={"manifest": manifest, "windows": 4})
    with pytest.raises(SnapshotCorrupt, match="0 windows, 4 were put in"):
        await store.load(catalog, 1, MODEL)
    client.update_collection(NAME, metadata={"windows": 0})
    client.delete_collection(f"{NAME}-fold")
    with pytest.raises(SnapshotCorrupt, match="lost its fold"):
        await store.load(catalog, 1, MODEL)
    await catalog.close()


async def test_another_mode_of_search_asks_for_another_collection(client: QdrantClient, tmp_path: Path) -> None:
    catalog = await an_empty_catalog(tmp_path)
    await QdrantStore(client).build(catalog, wanted())
    with pytest.raises(SnapshotCorrupt, match="int8 is asked for"):
        await QdrantStore(client, mode="int8").load(catalog, 1, MODEL)
    index = await QdrantStore(client, mode="int8").build(catalog, wanted())
    assert index.base.approximate
    assert index.slack(np.eye(4, dtype=np.complex64)[:1]) >= 2 * 3.0, "nothing is proven by a search that may overlook"
    await catalog.close()


async def test_a_lost_collection_is_noticed_while_it_answers(client: QdrantClient, tmp_path: Path) -> None:
    catalog, store = await an_empty_catalog(tmp_path), QdrantStore(client)
    live = live_on(catalog, store)
    await live.open()
    await live.check()
    client.delete_collection(NAME)
    await live.check()
    assert client.collection_exists(NAME)
    assert live.status == "ready"
    await catalog.close()


async def test_a_server_that_is_not_there_makes_the_index_unreachable(tmp_path: Path) -> None:
    catalog = await an_empty_catalog(tmp_path)
    store = open_store(tmp_path, Limits(1), url=f"http://127.0.0.1:{free_port()}")
    live = live_on(catalog, store)
    assert live.status == "starting"
    with pytest.raises(IndexUnavailable):
        await live.open()
    assert live.status == "unreachable"
    with pytest.raises(IndexUnavailable) as caught:
        await live.current()
    assert caught.value.status == "unreachable"
    await catalog.close()


def test_a_server_in_trouble_is_asked_again_only_after_a_pause() -> None:
    answers = [(503, b"{}"), (200, b'{"result": {"collections": []}, "status": "ok", "time": 0}')]
    with answered_by(lambda asked: asked.respond(*answers.pop(0), Content_Type="application/json")) as url:
        connection = Connection(connect(url, None, 30.0))
        for _ in range(5):
            with pytest.raises(IndexUnavailable) as caught:
                connection(connection.client.get_collections)
        assert len(answers) == 1, "it was asked once"
        assert 0 < caught.value.retry_after_s <= 1.0
        assert not connection.reachable
        time.sleep(1.1)
        assert connection(connection.client.get_collections).collections == []
        assert connection.reachable
