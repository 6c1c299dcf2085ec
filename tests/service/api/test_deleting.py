"""Stems that are deleted while others search, and while the disk is full."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread

import httpx
import numpy as np
import pytest

from model.audio import SAMPLE_RATE
from service.local.valkey import EmbeddedValkey
from service.settings import Settings
from tests.installation import Installation, add_stem, encode, noise_bursts, serving, wait_ready

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


def test_on_a_full_disk_a_stem_can_be_deleted_which_makes_room(small_disk: Path, small_checkpoint: Path) -> None:
    with EmbeddedValkey(small_disk.parent / "valkey") as valkey:
        chosen = Settings(data=small_disk, redis_url=valkey.url, checkpoint=small_checkpoint)
        with serving(chosen) as url, httpx.Client(base_url=url, timeout=60) as client:
            stems = [add_stem(client, encode(noise_bursts(seed))) for seed in range(4)]
            fill(small_disk / "filler")
            refused = client.post("/stems", files={"files": ("a.flac", encode(noise_bursts(9)))})
            assert refused.status_code == 503
            for stem_id in stems[:2]:
                assert client.delete(f"/stems/{stem_id}").status_code == 204
                assert client.get(f"/stems/{stem_id}").status_code == 404
            add_stem(client, encode(noise_bursts(9, 2.0)))
            assert len(client.get("/stems").json()["stems"]) == 3
