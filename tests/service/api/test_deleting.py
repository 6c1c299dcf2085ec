"""Stems that are deleted while others search, and while the disk is full."""

import os
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread

import httpx
import numpy as np
import pytest

from indexer import Stem
from model.audio import SAMPLE_RATE
from service.api.retrieval import Retrieval
from service.search.retrieval import SPARE, Found
from service.settings import Settings
from tests.installation import Installation, add_stem, encode, noise_bursts, serving, wait_ready
from tests.service.api.conftest import Fresh

LIMIT, MORE = 40, 20


def tiny(seed: int) -> bytes:
    return encode(np.random.default_rng(seed).uniform(-0.5, 0.5, SAMPLE_RATE * 11 // 10).astype(np.float32))


def test_a_query_gets_as_many_hits_as_it_asked_for_while_stems_are_deleted(installation: Installation) -> None:
    with installation.client() as client:
        stems = [add_stem(client, tiny(seed)) for seed in range(LIMIT + MORE)]
        wait_ready(client, *stems)
        mix, form = {"file": ("m.flac", encode(noise_bursts(3)))}, {"limit": LIMIT, "align": "grid"}
        asked = Event()
        deleting = Thread(target=delete_all, args=[installation, stems[:MORE], asked])
        deleting.start()
        found = []
        while deleting.is_alive():
            asked.set()
            found.append(len(client.post("/retrieve", files=mix, data=form).json()["hits"]))
        delete_all(installation, stems[MORE:], asked)
    assert set(found) == {LIMIT}, found


def test_hits_that_are_deleted_before_they_are_shown_are_made_up_for(
    installation: Installation, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than there are to spare, between the search and the answer."""
    look, limit = Retrieval._stems, 4

    async def deleted_first(self: Retrieval, found: Found, rows: Iterable[int]) -> dict[int, Stem]:
        while doomed:
            await self.catalog.delete(doomed.pop())
        return await look(self, found, rows)

    chosen = Settings(
        data=installation.folder / "data",
        database_url=installation.stores.get("PHALAR_DATABASE_URL"),
        redis_url=installation.stores.get("PHALAR_REDIS_URL"),
        checkpoint=small_checkpoint,
    )
    with installation.client() as client, serving(chosen) as url:
        stems = [add_stem(client, tiny(1000 + seed), collection="doomed") for seed in range(2 * limit + SPARE)]
        wait_ready(client, *stems)
        mix, form = {"file": ("m.flac", tiny(999))}, {"limit": limit, "align": "grid", "collection": "doomed"}
        ranked = client.post("/retrieve", files=mix, data=form | {"limit": len(stems)}).json()["hits"]
        doomed = [hit["stem"]["id"] for hit in ranked[: limit + SPARE]]
        rest = [hit["stem"]["id"] for hit in ranked[limit + SPARE :]]
        monkeypatch.setattr(Retrieval, "_stems", deleted_first)
        hits = httpx.post(f"{url}/retrieve", files=mix, data=form, timeout=60).json()["hits"]
        assert [hit["stem"]["id"] for hit in hits] == rest[:limit]
        for stem_id in rest:
            client.delete(f"/stems/{stem_id}")


def delete_all(installation: Installation, stems: list[str], asked: Event) -> None:
    asked.wait()
    with installation.client() as client:
        for stem_id in stems:
            assert client.delete(f"/stems/{stem_id}").status_code == 204


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with a disk of its own; skips the test where none may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("no disk may be mounted here: a full one was NOT tested")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1000))


def test_on_a_full_disk_a_stem_can_be_deleted_which_makes_room(small_disk: Path, fresh: Fresh) -> None:
    with serving(fresh(data=small_disk)) as url, httpx.Client(base_url=url, timeout=60) as client:
        stems = [add_stem(client, encode(noise_bursts(seed))) for seed in range(4)]
        fill(small_disk / "filler")
        refused = client.post("/stems", files={"files": ("a.flac", encode(noise_bursts(9)))})
        assert refused.status_code == 503
        for stem_id in stems[:2]:
            assert client.delete(f"/stems/{stem_id}").status_code == 204
            assert client.get(f"/stems/{stem_id}").status_code == 404
        add_stem(client, encode(noise_bursts(9, 2.0)))
        assert len(client.get("/stems").json()["stems"]) == 3
