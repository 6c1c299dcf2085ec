"""Two installations on one PostgreSQL, one Redis and one audio store: what one does, the other knows at once."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from indexer import Catalog
from tests import servers
from tests.installation import Installation, add_stem, encode, eventually, noise_bursts, retrieve, wait_ready


@pytest.fixture(scope="module")
def replicas(
    tmp_path_factory: pytest.TempPathFactory, small_checkpoint: Path
) -> Iterator[tuple[Installation, Installation]]:
    stores, tmp_path = servers.new_stores(), tmp_path_factory.mktemp("replicas")
    settings = {"PHALAR_CHECKPOINT": str(small_checkpoint), "PHALAR_BLOB_URL": (tmp_path / "audio").as_uri()}
    pair = [Installation(tmp_path / name, settings, stores=stores).start(wait=False) for name in "ab"]
    for one in pair:
        eventually(one.ready)
    yield pair[0], pair[1]
    for one in pair:
        one.stop()


def test_what_one_replica_does_the_other_answers_by(replicas: tuple[Installation, Installation]) -> None:
    with replicas[0].client() as one, replicas[1].client() as other:
        audio = [encode(noise_bursts(seed)) for seed in range(3)]
        first, second, third = (add_stem(one if n % 2 else other, clip) for n, clip in enumerate(audio))
        wait_ready(one, first, second, third)
        for client in (one, other):
            assert retrieve(client, audio[1])["hits"][0]["stem"]["id"] == second
        assert other.delete(f"/stems/{second}").status_code == 204
        assert second not in {hit["stem"]["id"] for hit in retrieve(one, audio[1])["hits"]}
        again = add_stem(one, audio[1])
        wait_ready(other, again)
        assert retrieve(other, audio[1])["hits"][0]["stem"]["id"] == again


def test_a_reindex_outlives_the_replica_that_began_it(replicas: tuple[Installation, Installation]) -> None:
    dying, other = replicas

    async def begin_and_die() -> set[str]:
        """Both are asked for a reindex, and none can be at it before the first is dead."""
        catalog = await Catalog.open(dying.stores["PHALAR_DATABASE_URL"])
        async with catalog.alone("reindex"):
            with dying.client() as first, other.client() as second:
                begun = {client.post("/admin/reindex", json={}).json()["id"] for client in (first, second)}
                assert _ended(second.get(f"/jobs/{begun.copy().pop()}").json()) is None
            dying.kill_all()
        await catalog.close()
        return begun

    with other.client() as client:
        wait_ready(client, add_stem(client, encode(noise_bursts(0))))
        (job,) = asyncio.run(begin_and_die())
        done = eventually(lambda: _ended(client.get(f"/jobs/{job}").json()))
        assert done["state"] == "done", done
        assert retrieve(client, encode(noise_bursts(0)))["hits"]
    dying.start()  # it follows an index that it did not build


def _ended(job: dict[str, object]) -> dict[str, object] | None:
    return job if job["state"] != "running" else None
